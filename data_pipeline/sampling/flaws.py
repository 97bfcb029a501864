"""Flaws that show without judging an answer's content, such as loops; an answer with one is never trained on."""

import zlib

import polars as pl

from data_pipeline.sampling.reasoning import THOUGHT_ONLY

FLAWS = ("truncated", "empty", "degenerate")
"""Boolean columns: cut at the limit or in its thought, blank, caught in a loop. An answer can have several."""
LOOP_LENGTH = 200
"""Characters at the end of a text that count as a loop when they repeat with a short period."""
LOOP_REPEATS = 8
WINDOW = 1000
"""Characters of a window whose compression is measured, wherever in the text."""
WINDOW_RATIO = 10
"""Prose is compressed 2 times in such windows, programs 3 times, a sentence that repeats 15 times and more."""


def mark(answers: pl.DataFrame) -> pl.DataFrame:
    """The table with one more column for each of `FLAWS`; null where no answer was made.

    Args:
      answers: with the columns `text` and `finish_reason`, and perhaps `reasoning`, from which the text is cut off.
    """
    looping = [is_looping(text) for text in answers["text"]]
    cut = pl.col("finish_reason") == "length"
    marks: dict[str, pl.Expr | pl.Series] = {
        "truncated": cut | THOUGHT_ONLY if "reasoning" in answers.columns else cut,
        "empty": pl.col("text").str.strip_chars() == "",
        "degenerate": pl.Series(looping, dtype=pl.Boolean),
    }
    made = pl.col("finish_reason") != "error"
    return answers.with_columns(pl.when(made).then(marks[name]).alias(name) for name in FLAWS)


def is_looping(text: str) -> bool:
    """Whether the text ends in a loop, or holds a long one.

    >>> is_looping("Let me think. " + "I am sure. " * 20)
    True
    >>> is_looping("Let me think. " + "I am sure. " * 5)
    False
    """
    tail = text.rstrip()[-LOOP_LENGTH:]
    if len(tail) == LOOP_LENGTH and period(tail) * LOOP_REPEATS <= LOOP_LENGTH:
        return True
    # Half-overlapping, so that a loop of 1.5 windows fills one.
    return any(
        _ratio(text[start : start + WINDOW]) > WINDOW_RATIO for start in range(0, len(text) - WINDOW + 1, WINDOW // 2)
    )


def period(text: str) -> int:
    """The smallest p such that each character equals the one p before it; the length where there is none.

    >>> period("abcabcab"), period("abcd")
    (3, 4)
    """
    # The length less the longest proper border, by the failure function of Knuth, Morris and Pratt.
    border = [0] * len(text)
    for end in range(1, len(text)):
        length = border[end - 1]
        while length and text[end] != text[length]:
            length = border[length - 1]
        border[end] = length + (text[end] == text[length])
    return len(text) - border[-1] if text else 0


def _ratio(text: str) -> float:
    data = text.encode(errors="replace")
    return len(data) / len(zlib.compress(data))
