"""AlignBench: written judgments, since no published ones exist; the real prompt where it is brought."""

import ast
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_pipeline.benchmarks.benchmark import Answer, Item, Judged, Reply
from data_pipeline.benchmarks.suite.alignbench import LANGUAGE, REASONING, AlignBench, rating
from fusejax.common.cli import UserError

BENCHMARK = AlignBench()
JUDGE = {
    "prompt": "{category}的回答。\n{dimensions}最后：{{'综合得分': 打分}}\n{question}\n[{reference}]\n<{answer}>",
    "dimension_set": {"推理": ["事实", "逻辑"]},
    "definitions": {"事实": "是否准确。", "逻辑": "是否连贯。"},
    "subcategories": {"证明": "推理"},
}


def question(number: int, category: str) -> dict:
    return {
        "question_id": number,
        "category": category,
        "subcategory": "证明",
        "question": f"问{number}",
        "reference": f"答{number}",
    }


def items(judge: dict = JUDGE) -> list[Item]:
    questions = [question(n, category) for n, category in enumerate(REASONING + LANGUAGE)]
    return BENCHMARK.items({"alignbench": questions, "alignbench_judge": [judge]})


def answer(item: Item, text: str = "我的{x}") -> Answer:
    return Answer(item, 0, (text,), ("stop",), 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("好。{'事实正确性': 9, '满足用户需求': 6, '综合得分': 7}", 7.0),
        ("{'综合得分': 3} 不，{'事实正确性': 1, '综合得分': 5}。", 5.0),
        ("代码是 {x: 1}。\n{'清晰度': 8, '综合得分': 10}", 10.0),
        ("{'综合得分': 8}，公式 {x}", 8.0),
        ("'综合得分': 6.5", 6.5),
        ("{'事实正确性': 9}", None),
        ('{"综合得分": 7}', None),
        ("综合得分：7", None),
        ("{'综合得分': 0}", None),
        ("{'综合得分': 11}", None),
        ("", None),
    ],
)
def test_ratings(text: str, expected: float | None):
    """As AlignBench's own reading has it, but for ratings that are off the scale."""
    assert rating(text) == expected


def test_what_the_judge_sees():
    first = items()[0]
    (call,) = BENCHMARK.calls(answer(first))
    (turn,) = call.messages
    assert turn["content"] == (
        "逻辑推理的回答。\n1. 事实: 是否准确。\n2. 逻辑: 是否连贯。\n最后：{'综合得分': 打分}\n问0\n[答0]\n<我的{x}>"
    )


def test_the_real_prompt(eval_data: Path):
    """As the module's docstring has it made of AlignBench's own files."""
    code = ast.walk(ast.parse((eval_data / "prompts" / "alignbench_prompt.txt").read_text()))
    named = {getattr(node.targets[0], "id", ""): node.value for node in code if isinstance(node, ast.Assign)}
    judge = {
        "prompt": ast.literal_eval(named["base_prompt"]),
        "dimension_set": json.loads((eval_data / "dimension_set.json").read_text()),
        "definitions": json.loads((eval_data / "dimension_definition.json").read_text()),
        "subcategories": json.loads((eval_data / "subcategory_question_mapping.json").read_text()),
    }
    questions = [json.loads(line) for line in (eval_data / "alignbench_v1.1_first40.jsonl").read_text().splitlines()]
    found = BENCHMARK.items({"alignbench": questions, "alignbench_judge": [judge]})
    (call,) = BENCHMARK.calls(answer(found[0], "都是降B调"))
    text = call.messages[0]["content"]
    assert "由于您评估的回答类型是专业能力" in text and "1. 事实正确性: 回答中提供的信息是否准确无误" in text
    assert text.endswith("[助手的答案开始]\n都是降B调\n[助手的答案结束]\n") and "{'维度一': 打分" in text


def test_score_is_the_mean_of_two_means():
    ratings = {"逻辑推理": [2.0, 4.0], "数学计算": [5.0], **{name: [8.0] for name in LANGUAGE}, "中文理解": [2.0, None]}
    frame = pl.DataFrame(
        [{"stratum": name, "score": each} for name, some in ratings.items() for each in some],
        schema={"stratum": pl.String, "score": pl.Float64},
    )
    ones = np.ones(len(frame))
    assert BENCHMARK.score(frame, ones) == pytest.approx(((3 + 5) / 2 + (5 * 8 + 2) / 6) / 2)
    assert BENCHMARK.details(frame, ones)["中文理解"] == 2.0
    weights = np.where(frame["score"].to_numpy() == 2.0, 3.0, 1.0)
    assert BENCHMARK.score(frame, weights) == pytest.approx(((2.5 + 5) / 2 + 7) / 2)
    some = frame.filter(pl.col("stratum") == "数学计算")
    assert BENCHMARK.score(some, np.ones(1)) == 5.0
    assert np.isnan(BENCHMARK.score(frame.clear(), np.ones(0)))


def test_missing_ratings_are_asked_for_again_then_left_out():
    (call,) = BENCHMARK.calls(answer(items()[0]))
    silent = Reply("很好。", "stop")
    more = BENCHMARK.again(call, [silent])
    assert more is not None and more.messages == call.messages and more.temperature > 0
    assert BENCHMARK.again(call, [silent] * 3) is None
    good = Reply("{'综合得分': 4}", "stop")
    assert BENCHMARK.again(call, [silent, good]) is None
    assert BENCHMARK.judged(answer(items()[0]), {"rating": [silent, good]}).score == 4
    lost = BENCHMARK.judged(answer(items()[0]), {"rating": [silent] * 3})
    assert (lost.score, lost.detail) == (None, "unanswered: no rating")


def test_parameters():
    asked = {item.stratum: BENCHMARK.asked(item, "qwen", "clean").sampling.temperature for item in items()}
    assert {name for name, temperature in asked.items() if temperature == 0.7} == {"文本写作", "角色扮演", "综合问答"}
    assert set(asked.values()) == {0.7, 0.1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "{category} {nothing}"}, "alignbench_judge: prompt is no template"),
        ({"prompt": "{category} {dimensions}"}, "alignbench_judge: prompt lacks"),
        ({"subcategories": {}}, "alignbench_judge: subcategories has no '证明'"),
        ({"definitions": {"事实": "x"}}, "alignbench_judge: definitions has no '逻辑'"),
    ],
)
def test_errors_name_what_is_missing(change: dict, message: str):
    with pytest.raises(UserError, match=message):
        items({**JUDGE, **change})


def test_rows_are_checked():
    with pytest.raises(UserError, match="alignbench: row 1: no category '诗'"):
        BENCHMARK.items({"alignbench": [question(1, "诗")], "alignbench_judge": [JUDGE]})
    with pytest.raises(UserError, match="alignbench_judge: 0 rows, not one"):
        BENCHMARK.items({"alignbench": [], "alignbench_judge": []})
    assert isinstance(BENCHMARK, Judged)
