"""GSM8K, MATH and AMC 23: rows, prompts, verdicts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipeline.benchmarks.benchmark import Answer, Grade, Graded, Item, Prompt, Tools
from data_pipeline.benchmarks.suite.amc23 import AMC23
from data_pipeline.benchmarks.suite.gsm8k import GSM8K
from data_pipeline.benchmarks.suite.math import MATH
from data_pipeline.benchmarks.suite.mathematics import Mathematics
from fusejax.common.cli import UserError

ITEM = GSM8K().items({"gsm8k": [{"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}]})[0]
SYSTEM = {"role": "system", "content": r"Please reason step by step, and put your final answer within \boxed{}."}
IN_THE_TURN = "1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}."


def grade(benchmark: Mathematics, item: Item, *texts: str) -> list[Grade]:
    answers = [Answer(item, index, (text,), ("stop",), 5) for index, text in enumerate(texts)]
    return benchmark.grade(answers, "clean", Tools(workers=1))


@pytest.mark.parametrize("kind", [GSM8K, MATH, AMC23])
def test_they_are_benchmarks(kind: type[Mathematics]):
    assert isinstance(kind(), Graded)


@pytest.mark.parametrize(
    ("benchmark", "row", "question", "label"),
    [
        (GSM8K(), {"question": "q", "answer": "It is 1,000.\n#### 1,000"}, "q", "1,000"),
        (GSM8K(), {"question": "q", "answer": 18}, "q", "18"),
        (MATH(), {"problem": "q", "type": "Algebra", "solution": r"So $\boxed{\frac12}$."}, "q", r"\frac12"),
        (MATH(), {"problem": "q", "solution": r"So $\boxed{3}$.", "answer": "3", "subject": "Algebra"}, "q", "3"),
        (AMC23(), {"id": 0, "problem": "q", "answer": 27.0, "url": "u", "question": "q"}, "q", "27"),
        (AMC23(), {"question": "q", "answer": "27"}, "q", "27"),
    ],
)  # fmt: skip
def test_every_shape_of_row(benchmark: Mathematics, row: dict[str, Any], question: str, label: str):
    item = benchmark.items({benchmark.name: [row]})[0]
    assert (item.text, item.fields) == (question, {"question": question, "answer": label})
    assert item.stratum == ""


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        (GSM8K(), {"question": "q"}, "gsm8k: row 2: no text in answer; its columns are question"),
        (GSM8K(), {"question": "q", "answer": "3 and\n####"}, "gsm8k: row 2: nothing behind ####"),
        (MATH(), {"problem": "q", "solution": "So 3."}, "math: row 2: no answer, and no box in its solution"),
        (AMC23(), {"answer": 3}, "amc23: row 2: no text in question or problem; its columns are answer"),
        (AMC23(), {"id": 0, "question": "q", "answer": 3}, "amc23: row 2: 0 has been the name of a row before"),
    ],
)
def test_a_wrong_row_is_one_line(benchmark: Mathematics, row: dict[str, Any], message: str):
    good = {"id": 0, "question": "q", "answer": "3", "solution": r"\boxed{3}"}
    with pytest.raises(UserError) as error:
        benchmark.items({benchmark.name: [good, row]})
    assert str(error.value) == message


def test_ids_do_not_depend_on_the_shape():
    rows = [{"question": str(n), "answer": str(n)} for n in range(3)]
    numbered = [{"idx": n, **row} for n, row in enumerate(rows)]
    ids = [[item.id for item in GSM8K().items({"gsm8k": each})] for each in (rows, numbered, numbered[1:])]
    assert ids == [["0", "1", "2"], ["0", "1", "2"], ["1", "2"]]


@pytest.mark.parametrize(
    ("family", "profile", "expected"),
    [
        ("llama", "clean", Prompt((SYSTEM, {"role": "user", "content": "1 + 1?"}))),
        ("qwen", "clean", Prompt((SYSTEM, {"role": "user", "content": "1 + 1?"}))),
        ("gemma", "clean", Prompt(({"role": "user", "content": IN_THE_TURN},))),
        ("other", "clean", Prompt(({"role": "user", "content": IN_THE_TURN},))),
        (
            "llama",
            "fusechat3",
            Prompt(
                text="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nPlease reason step by step, and "
                "put your final answer within \\boxed{}.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n1 + 1?"
                "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                bos_again=True,
            ),
        ),
        (
            "qwen",
            "fusechat3",
            Prompt(
                text="<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}."
                "<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
        (
            "gemma",
            "fusechat3",
            Prompt(
                text="<bos><start_of_turn>user\n1 + 1?\nPlease reason step by step, and put your final answer within "
                "\\boxed{}.<end_of_turn>\n<start_of_turn>model\n"
            ),
        ),
    ],
)
def test_prompts(family: Any, profile: Any, expected: Prompt):
    assert GSM8K().prompt(ITEM, family, profile, ()) == expected
    asked = GSM8K().asked(ITEM, family, profile)
    assert (asked.sampling.temperature, asked.sampling.stop, asked.max_tokens, asked.samples) == (0.0, (), 2048, 1)


def test_right_wrong_unanswered_and_doubtful():
    item = MATH().items({"math": [{"problem": "q", "answer": r"\frac13"}]})[0]
    grades = grade(MATH(), item, r"So \boxed{1/3}.", r"So \boxed{3}.", "I do not know.", r"\boxed{0.333}")
    assert [found.score for found in grades] == [1, 0, 0, 0]
    reasons = [(found.detail or "").partition(":")[0] for found in grades]
    assert reasons == ["same_number", "other_number", "unanswered", "unknown"]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (r"The answer is \boxed{2}, which is less than 5, as it must be.", 1),
        ("She has 5, gives 3 away, and 2 are left.", 1),
        ("She has 2, finds 3, and has 5.", 0),
        (r"\boxed{2}. No, I forgot one: \boxed{3}.", 0),
    ],
)
def test_the_answer_that_is_found_last_counts(text: str, score: float):
    assert grade(GSM8K(), ITEM, text)[0].score == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("So 5 - 3 = 2 dollars every day.", 1),
        ("Thus, 1 x 2 = 2", 1),
        (r"So, $1 \times 2 = 2$ dollars.", 1),
        ("Thus, 1 x 3 = 3", 0),
        (r"\boxed{x + 3 = 2}", 0),
    ],
)
def test_the_result_of_a_calculation_is_the_answer(text: str, score: float):
    assert grade(GSM8K(), ITEM, text)[0].score == score


def test_formulas_are_compared():
    item = MATH().items({"math": [{"problem": "q", "solution": r"It is \boxed{\frac{\sqrt2}{2}}."}]})[0]
    grades = grade(MATH(), item, r"\boxed{\dfrac{1}{\sqrt{2}}}", r"\boxed{\sqrt{2}}")
    assert [found.score for found in grades] == [1, 0]


def test_the_score_is_a_weighted_mean_in_percent():
    rows = pl.DataFrame({"score": [1.0, 0.0, 1.0, None]})
    assert GSM8K().score(rows, np.ones(4)) == pytest.approx(200 / 3)
    assert GSM8K().score(rows, np.array([1.0, 3.0, 0.0, 9.0])) == 25


@pytest.mark.parametrize(
    ("benchmark", "file", "count"), [(AMC23(), "amc23_test.jsonl", 40), (GSM8K(), "gsm8k_test_first100.jsonl", 100)]
)
def test_published_items_against_their_own_labels(eval_data: Path, benchmark: Mathematics, file: str, count: int):
    rows = [json.loads(line) for line in (eval_data / file).read_text().splitlines()]
    items = benchmark.items({benchmark.name: rows})
    assert len(items) == count
    answers = [
        Answer(item, 0, (rf"So the answer is \boxed{{{text}}}.",), ("stop",), 9)
        for item in items
        for text in (item.fields["answer"], item.fields["answer"] + "7")
    ]
    grades = benchmark.grade(answers, "clean", Tools(workers=1))
    assert [found.score for found in grades] == [1, 0] * count
