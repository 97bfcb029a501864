"""MMLU-Pro, MMLU, MMLU-Redux and GPQA: rows, prompts, letters."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.benchmarks import results
from data_pipeline.benchmarks.benchmark import Answer, Grade, Graded, Item, Prompt, Tools
from data_pipeline.benchmarks.grading import frame
from data_pipeline.benchmarks.suite.choices import LETTERS, Choices, first_or_any, guessed, last_stated
from data_pipeline.benchmarks.suite.gpqa import GPQA
from data_pipeline.benchmarks.suite.mmlu import MMLU
from data_pipeline.benchmarks.suite.mmlu_pro import MMLUPro
from data_pipeline.benchmarks.suite.mmlu_redux import SUBJECTS, MMLURedux
from fusejax.common.cli import UserError

ROW = {"question": "What is wet?", "subject": "physics", "choices": ["fire", "water", "air", "sand"], "answer": 1}
USER_TURN = """\
Please read the following multiple-choice questions and provide the most likely correct answer based on the options given.
Question:
What is wet?
Options:
A. fire
B. water
C. air
D. sand
- For simple problems:
Directly provide the answer with minimal explanation.

- For complex problems:
Use this step-by-step format:
## Step 1: [Concise description]
[Brief explanation]
## Step 2: [Concise description]
[Brief explanation]

Regardless of the approach, always conclude with:
The best answer is [the_answer_letter].
where the [the_answer_letter] is the correct letter choice.

Answer: Let's think step by step."""  # noqa: E501


def item_of(benchmark: Choices, row: dict[str, Any]) -> Item:
    return benchmark.items({benchmark.name: [row]})[0]


def grade(benchmark: Choices, item: Item, profile: Any, *texts: str) -> list[Grade]:
    answers = [Answer(item, index, (text,), ("stop",), 5) for index, text in enumerate(texts)]
    return benchmark.grade(answers, profile, Tools())


@pytest.mark.parametrize("kind", [MMLUPro, MMLU, MMLURedux, GPQA])
def test_they_are_benchmarks(kind: type[Choices]):
    assert isinstance(kind(), Graded)


@pytest.mark.parametrize(
    ("benchmark", "row", "options", "right"),
    [
        (MMLU(), ROW, ["fire", "water", "air", "sand"], 1),
        (MMLU(), ROW | {"choices": "['fire', 'water']", "answer": "B"}, ["fire", "water"], 1),
        (MMLU(), ROW | {"choices": '["fire", "water"]', "answer": "1"}, ["fire", "water"], 1),
        (
            MMLUPro(),
            {
                "question_id": 70, "question": "What is wet?", "options": ["fire", "N/A", "water"], "answer": "C",
                "answer_index": 2, "category": "physics",
            },
            ["fire", "water"], 1,
        ),
        (MMLURedux(), ROW | {"error_type": "ok"}, ["fire", "water", "air", "sand"], 1),
        (GPQA(), {"question": "What is wet?", "options": ["fire", "water"], "answer": "B"}, ["fire", "water"], 1),
    ],
)  # fmt: skip
def test_every_shape_of_row(benchmark: Choices, row: dict[str, Any], options: list[str], right: int):
    item = item_of(benchmark, row)
    assert item.fields == {"question": "What is wet?", "options": options, "right": right}
    assert (item.text, item.stratum) == ("What is wet?", "")


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        (MMLU(), {"question": "q"}, "mmlu: row 2: no list in options or choices; its columns are question"),
        (MMLU(), ROW | {"choices": "fire, water"}, "mmlu: row 2: no list in options or choices; its columns are"),
        (MMLU(), ROW | {"answer": 4}, "mmlu: row 2: the answer 4 is none of 4 options"),
        (MMLU(), ROW | {"answer": "water"}, "mmlu: row 2: the answer water is none of 4 options"),
        (MMLU(), ROW | {"choices": ["N/A", "N/A"]}, "mmlu: row 2: 0 options that are not N/A, with answer 1"),
        (MMLU(), ROW | {"question_id": 0}, "mmlu: row 2: 0 has been the name of a row before"),
        (MMLURedux(), ROW, "mmlu_redux: row 2: no text in error_type; its columns are question, subject"),
        (GPQA(), {"Question": "q", "Correct Answer": "a"}, "gpqa: row 2: no text in Incorrect Answer 1; its columns"),
    ],
)
def test_a_wrong_row_is_one_line(benchmark: Choices, row: dict[str, Any], message: str):
    with pytest.raises(UserError) as error:
        benchmark.items({benchmark.name: [ROW | {"error_type": "ok"}, row]})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_redux_leaves_out_mistaken_questions_but_keeps_the_names_of_the_others():
    rows = [ROW | {"error_type": kind} for kind in ("ok", "wrong_groundtruth", "ok")]
    assert [item.id for item in MMLURedux().items({"mmlu_redux": rows})] == ["0", "2"]
    assert len(set(SUBJECTS)) == 57


@pytest.mark.parametrize(
    ("family", "profile", "expected"),
    [
        ("llama", "clean", Prompt(({"role": "user", "content": USER_TURN},))),
        ("qwen", "clean", Prompt(({"role": "user", "content": USER_TURN},))),
        ("gemma", "clean", Prompt(({"role": "user", "content": USER_TURN},))),
        ("other", "clean", Prompt(({"role": "user", "content": USER_TURN},))),
        ("llama", "fusechat3", Prompt(({"role": "user", "content": USER_TURN},), bos_again=True)),
        ("gemma", "fusechat3", Prompt(({"role": "user", "content": USER_TURN},), bos_again=True)),
        ("qwen", "fusechat3", Prompt(text=f"<|im_start|>user\n{USER_TURN}<|im_end|>\n<|im_start|>assistant\n")),
    ],
)
def test_prompts(family: Any, profile: Any, expected: Prompt):
    item = item_of(MMLU(), ROW)
    assert MMLU().prompt(item, family, profile, ()) == expected
    asked = MMLU().asked(item, family, profile)
    assert (asked.sampling.temperature, asked.sampling.stop, asked.max_tokens) == (0.0, ("Question:",), 2048)


GPQA_ROW = {
    "Record ID": "rec1", "Question": "What is wet?", "Correct Answer": "water\n", "Incorrect Answer 1": "fire",
    "Incorrect Answer 2": "air", "Incorrect Answer 3": "sand", "Subdomain": "Physics (general)",
}  # fmt: skip


def test_the_order_of_gpqas_options():
    """By hash, whichever file it is, but for a file's own order where FuseChat-3.0's scripts had theirs."""
    hub = item_of(GPQA(), GPQA_ROW)
    own = item_of(GPQA(), {"question": "What is wet?", "options": ["sand", "water", "air", "fire"], "answer": "B"})
    assert hub.id == "rec1"

    def shown(item: Item, profile: Any) -> list[str]:
        return re.findall(r"^[A-D]\. (.*)$", GPQA().prompt(item, "llama", profile, ()).messages[0]["content"], re.M)

    assert shown(hub, "clean") == shown(hub, "fusechat3") == shown(own, "clean") == ["fire", "air", "water", "sand"]
    assert shown(own, "fusechat3") == ["sand", "water", "air", "fire"]
    for item, profile, right in ((hub, "clean", "C"), (own, "clean", "C"), (own, "fusechat3", "B")):
        scores = [found.score for found in grade(GPQA(), item, profile, *(f"The answer is {x}." for x in "ABCD"))]
        assert scores == [letter == right for letter in "ABCD"]


@pytest.mark.parametrize(
    ("text", "clean", "published"),
    [
        ("## Step 1: Think\nWater is wet.\n\nThe best answer is B.", "B", "B"),
        ("The best answer is (B).", "B", "B"),
        ("The best answer is [B].", "B", "B"),
        ("The best answer is **B**.", "B", "B"),
        ("The best answer is [D]. I checked.", "D", "I"),
        ("The best answer is **D**, as A is dry.", "D", "A"),
        ("The best answer is **(C) air**.", "C", "C"),
        ("**The best answer is: C. air**", "C", "C"),
        ("The best answer is \\boxed{C}.", "C", "C"),
        ("The best answer is $\\boxed{\\text{C}}$.", "C", "C"),
        ("$\\boxed{D}$", "D", "D"),
        ('The correct answer is "C".', "C", "C"),
        ("The correct option is C) air", "C", "C"),
        ("The correct answer is option D.", "D", "D"),
        ("So C is the correct answer. It is wet.", "C", "C"),
        ("Answer: C", "C", "C"),
        ("**Answer:** C", "C", "C"),
        ("**Final Answer**: (C)\n\nThis is since A burns.", "C", "A"),
        ("The answer is A. Wait, sand is dry. The best answer is B.", "B", "A"),
        ("The best answer is not A. The best answer is B.", "B", "B"),
        ("The answer is A because it burns.", "A", "A"),
        ("The answer is A question of taste.", None, "A"),
        ("The answer is I think C.", None, "I"),
        ("The best answer is H.", None, "H"),
        ("The best answer is either.", None, None),
        ("The best answer is A or B.", None, "A"),
        ("The best answer is A, and B is wrong.", "A", "A"),
        ("I would say water. A sure thing.", None, "A"),
        ("B", "B", "B"),
        ("**B**", "B", "B"),
        ("(B)", "B", "B"),
        ("B. water", "B", "B"),
        ("A. fire burns\nB. water is wet", None, "B"),
        ("Water is wet, so:\n\nB", "B", "B"),
        ("Water is wet.", None, None),
        ("", None, None),
        (r"The best answer is \(B\).", "B", "B"),
        (r"The best answer is \( C \).", "C", "C"),
        ("So it is.\n\n\\(B\\)", "B", "B"),
        (r"The best answer is \(A\) or \(B\).", None, "B"),
        (r"Thus \(C\) is the correct answer.", "C", "C"),
        ("The best answer is <D>", "D", "D"),
        ("The best answer is （B）。", "B", "B"),
        ("The best answer is the letter B.", "B", "B"),
    ],
)
def test_the_letter_in_an_answer(text: str, clean: str | None, published: str | None):
    assert last_stated(text, 4) == clean
    assert first_or_any(text, 4) == published


@given(st.lists(st.sampled_from([*"ABJK \n.(Iî", "answer is ", "Answer:", "answer:"]), max_size=12).map("".join))
def test_the_published_extraction_bit_for_bit(text: str):
    """Against its three expressions, tried in order."""
    expressions = (
        (r"answer is \(?([A-J])\)?", 0),
        (r".*[aA]nswer:\s*([A-J])", 0),
        (r"(\b[A-J]\b)(?!.*\b[A-J]\b)", re.DOTALL),
    )
    found = (re.search(expression, text, flags) for expression, flags in expressions)
    assert first_or_any(text, 4) == next((match[1] for match in found if match), None)


@given(st.text(alphabet="ABCDEIJ answer is*[]().:\n", max_size=80), st.integers(2, 10))
def test_a_clean_letter_is_one_of_the_questions(text: str, options: int):
    assert last_stated(text, options) in (None, *LETTERS[:options])


def test_the_guess_is_that_of_the_seed():
    for options in range(2, 11):
        random.seed(12345)
        assert guessed(options) == LETTERS[random.randint(0, options - 1)]


def test_what_is_unanswered_is_wrong_and_counted_or_guessed():
    item = item_of(MMLU(), ROW | {"answer": 3})
    texts = ("The best answer is D.", "The best answer is C.", "it is unclear")
    clean = grade(MMLU(), item, "clean", *texts)
    assert [(found.score, found.extracted) for found in clean] == [(1, "D"), (0, "C"), (0, None)]
    assert [dict(found.values) for found in clean] == [{"with_guess": value} for value in (1, 0, 1)]
    assert clean[2].detail == "unanswered: the guess would be D"
    assert [found.score for found in grade(MMLU(), item, "fusechat3", *texts)] == [1, 0, 1]


def test_the_score_is_the_mean_over_all_questions():
    rows = pl.DataFrame({"score": [1.0, 0.0, 0.0, 0.0]})
    assert MMLU().score(rows, np.ones(4)) == 25
    assert MMLU().score(rows, np.array([3.0, 1.0, 0.0, 0.0])) == 75


def test_a_few_questions_of_different_subjects_have_an_interval():
    rows = [ROW | {"subject": subject, "question": subject} for subject in ("physics", "law", "history", "logic")]
    items = MMLU().items({"mmlu": rows})
    answers = [Answer(item, 0, (text,), ("stop",), 5) for item, text in zip(items, "BBAA", strict=True)]
    found = results.interval(MMLU(), frame(answers, MMLU().grade(answers, "clean", Tools())), 200, seed=0)
    assert (found.low, found.value, found.high) == (0, 50, 100)


def test_published_rows(eval_data: Path):
    rows = [json.loads(line) for line in (eval_data / "mmlu_pro_10_per_category.jsonl").read_text().splitlines()]
    items = MMLUPro().items({"mmlu_pro": rows})
    assert len(items) == 140
    answers = [
        Answer(item, 0, (f"The best answer is {row['answer']}.",), ("stop",), 5)
        for item, row in zip(items, rows, strict=True)
    ]
    assert all(
        found.score == 1 for profile in ("clean", "fusechat3") for found in MMLUPro().grade(answers, profile, Tools())
    )
