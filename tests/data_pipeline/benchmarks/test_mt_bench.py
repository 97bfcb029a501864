"""MT-Bench: recorded judgments read as they were, and the prompts that lead to them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_pipeline.benchmarks.benchmark import Answer, Grade, Item, Judged, Reply
from data_pipeline.benchmarks.suite.mt_bench import MTBench, rating
from fusejax.common.cli import UserError

BENCHMARK = MTBench()
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write {x}.", "Again."]},
    {"question_id": 111, "category": "math", "turns": ["What is 2 + 2?", "And twice?"]},
    {"question_id": 131, "category": "extraction", "turns": ["Find it.", "And this."]},
]
REFERENCES = [{"question_id": 111, "choices": [{"index": 0, "turns": ["It is 4.", "It is 8."]}]}]


def items() -> list[Item]:
    return BENCHMARK.items({"mt_bench": QUESTIONS, "mt_bench_references": REFERENCES})


def answer(item: Item) -> Answer:
    return Answer(item, 0, ("one {answer}", "two"), ("stop", "stop"), 3)


def judged(*texts: str) -> Grade:
    replies = {f"turn {n}": [Reply(text, "stop")] for n, text in enumerate(texts, 1)}
    return BENCHMARK.judged(answer(items()[0]), replies)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_recorded_judgments(eval_data: Path):
    """Of all of them, each turn's last counts: errors were asked again there, and left in the file."""
    judgments = read(eval_data / "mtbench_gpt4_judgments.jsonl")
    assert len(judgments) == 170
    assert all((rating(row["judgment"]) or -1) == row["score"] for row in judgments)
    said: dict[int, dict[str, list[Reply]]] = {}
    for row in judgments:
        if row["score"] != -1:
            said.setdefault(row["question_id"], {})[f"turn {row['turn']}"] = [Reply(row["judgment"], "stop")]
    grades = [BENCHMARK.judged(answer(items()[0]), replies) for replies in said.values()]
    frame = pl.DataFrame([grade.values for grade in grades])
    ones = np.ones(80)
    assert BENCHMARK.score(frame, ones) == 7.76875
    assert BENCHMARK.details(frame, ones) == {"turn 1": 8.275, "turn 2": 7.2625}


def test_the_judges_prompts(eval_data: Path):
    published = {row["name"]: row for row in read(eval_data / "mtbench_judge_prompts.jsonl")}
    for item in items():
        kind = "single-math-v1" if item.fields["category"] == "math" else "single-v1"
        turns, references = item.fields["turns"], item.fields.get("reference", [None, None])
        for call, which in zip(BENCHMARK.calls(answer(item)), (kind, f"{kind}-multi-turn"), strict=True):
            user = published[which]["prompt_template"].format(
                question=turns[0],
                question_1=turns[0],
                question_2=turns[1],
                answer="one {answer}",
                answer_1="one {answer}",
                answer_2="two",
                ref_answer_1=references[0],
                ref_answer_2=references[1],
            )
            assert [turn["content"] for turn in call.messages] == [published[which]["system_prompt"], user]


def test_real_questions(eval_data: Path):
    references = read(eval_data / "mtbench_reference_gpt-4-0125-preview.jsonl")
    found = BENCHMARK.items({"mt_bench": read(eval_data / "mtbench_question.jsonl"), "mt_bench_references": references})
    assert (len(found), sum("reference" in item.fields for item in found)) == (80, 30)


def test_the_second_turn_holds_the_first():
    item = items()[0]
    assert [turn["content"] for turn in BENCHMARK.prompt(item, "qwen", "clean", ()).messages] == ["Write {x}."]
    second = BENCHMARK.prompt(item, "qwen", "clean", ("A poem.",)).messages
    assert [(turn["role"], turn["content"]) for turn in second] == [
        ("user", "Write {x}."),
        ("assistant", "A poem."),
        ("user", "Again."),
    ]
    assert BENCHMARK.prompt(item, "llama", "fusechat3", ()).bos_again
    assert not BENCHMARK.prompt(item, "gemma", "fusechat3", ()).bos_again


def test_temperatures():
    assert [BENCHMARK.asked(item, "llama", "clean").sampling.temperature for item in items()] == [0.7, 0, 0]


def test_what_the_judge_sees():
    writing, math, _ = (BENCHMARK.calls(answer(item)) for item in items())
    assert "Reference" not in writing[0].messages[1]["content"] + writing[1].messages[1]["content"]
    assert "two" not in writing[0].messages[1]["content"]
    assert "It is 4." in math[0].messages[1]["content"] and "It is 8." not in math[0].messages[1]["content"]
    assert "It is 8." in math[1].messages[1]["content"]
    assert [call.name for call in math] == ["turn 1", "turn 2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rating: [[8]]", 8.0),
        ("[[7.5]] and later [[3]]", 7.5),
        ("Rating: [6]", 6.0),
        ("See [2]. Rating: [[9]]", 9.0),
        ("$ERROR$", None),
        ("[[0]]", None),
        ("[[N/A]]", None),
    ],
)
def test_ratings(text: str, expected: float | None):
    assert rating(text) == expected


def test_missing_ratings_are_asked_for_again_then_counted():
    call = BENCHMARK.calls(answer(items()[0]))[0]
    silent = Reply("$ERROR$", "stop")
    more = BENCHMARK.again(call, [silent])
    assert more is not None and more.messages == call.messages and more.temperature > 0
    assert BENCHMARK.again(call, [silent] * 3) is None
    assert BENCHMARK.again(call, [silent, Reply("[[3]]", "stop")]) is None
    half = judged("$ERROR$", "[[6]]")
    assert (half.score, half.extracted, half.values) == (6.0, "none, 6", {"turn_1": None, "turn_2": 6.0})
    assert half.detail == "unanswered: no rating of turn 1"
    none = judged("", "")
    assert none.score is None
    frame = pl.DataFrame([grade.values for grade in (half, none, judged("[[2]]", "[[1]]"))])
    assert BENCHMARK.score(frame, np.ones(3)) == 3.0
    assert BENCHMARK.score(frame, np.array([0.0, 1.0, 2.0])) == 1.5


def test_errors_name_what_is_missing():
    with pytest.raises(UserError, match="mt_bench_references: no answer to question 111"):
        BENCHMARK.items({"mt_bench": QUESTIONS, "mt_bench_references": []})
    with pytest.raises(UserError, match="mt_bench: row 1: no list of 2 texts in turns"):
        BENCHMARK.items({"mt_bench": [{**QUESTIONS[0], "turns": ["One."]}], "mt_bench_references": []})
    assert isinstance(BENCHMARK, Judged)
