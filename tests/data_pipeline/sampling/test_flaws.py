"""What makes an answer unfit to be learned from."""

import random
import string

import polars as pl
import pytest

from data_pipeline.sampling.flaws import is_looping, mark


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 4. " + "!" * 300,
        "Let us see. " + "Wait, no. " * 40 + "Wait,",
        "好" * 250,
        "Some prose, then " + "the same sentence over and over again, " * 80 + "and at last an end that looks fine.",
        "\n".join(f"def f_{i}(x): return x" for i in range(30)) + "\n" + "    pass\n" * 50,
    ],
)
def test_loops(text: str):
    assert is_looping(text)


@pytest.mark.parametrize(
    "text",
    [
        "four",
        "| a | b |\n|---|---|\n" + "\n".join(f"| {i} | {i * i} |" for i in range(300)),
        ", ".join(str(i) for i in range(1000)),
        "\n".join(f"assert add({i}, {i + 1}) == {2 * i + 1}" for i in range(200)),
        "A line:\n" + "-" * 120,
        "哈哈哈哈哈哈，" + "".join(random.Random(0).choices("天地玄黄宇宙洪荒日月盈昃辰宿列张", k=3000)),
        "".join(random.Random(0).choices(string.ascii_letters + " ", k=5000)),
    ],
)
def test_no_loops(text: str):
    assert not is_looping(text)


def test_an_answer_can_have_several_flaws_or_none():
    rows = [
        ("fine", "stop", False, False, False),
        ("cut o", "length", True, False, False),
        (" \n\u3000", "stop", False, True, False),
        ("", "length", True, True, False),
        ("again " * 100, "length", True, False, True),
        ("again " * 100, "stop", False, False, True),
        ("", "error", None, None, None),
    ]
    expected = pl.DataFrame(rows, schema=["text", "finish_reason", "truncated", "empty", "degenerate"], orient="row")
    assert mark(expected.select("text", "finish_reason")).equals(expected)
