"""The published numbers, and what may be compared with them."""

import pytest

from data_pipeline.benchmarks import published

ROWS = (
    "alpacaeval2_lc", "arena_hard", "mt_bench", "alignbench", "gsm8k", "math", "amc23", "livebench_0831", "mmlu_pro",
    "mmlu_redux", "gpqa_diamond", "humaneval", "mbpp", "livecodebench_2408_2411",
)  # fmt: skip


def test_averages_are_the_plain_means_of_the_rows():
    """Which shows that no number was mistyped; the 1B models have thirteen rows."""
    assert len(published.MODELS) == 16
    for model, rows in published.NUMBERS.items():
        found = [rows[row] for row in (*ROWS, "mmlu") if row in rows]
        assert len(found) == (13 if "1B" in model else 14), model
        assert sum(found) / len(found) == pytest.approx(rows["average"], abs=0.06), model  # rounded twice


def test_what_is_not_of_the_same_thing():
    same = published.caveats("arena_hard", "fusechat3", "gpt-4-1106-preview", 500)
    assert same == []
    other = published.caveats("arena_hard", "clean", "Qwen2.5-72B-Instruct", 8)
    assert [each.split(" ")[0] for each in other] == ["judged", "of", "asked"]
    assert published.caveats("mmlu_redux", "fusechat3", None, 5000) == [published.UNKNOWN["mmlu_redux"]]


def test_the_error_of_a_share():
    assert published.sampling_error(64.0, 100.0, 144) == pytest.approx(4.0)
    assert published.sampling_error(100.0, 100.0, 40) == 0.0
