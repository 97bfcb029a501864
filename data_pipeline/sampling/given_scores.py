"""Rewards and verdicts that come with given answers: from the values in a data set to columns for the stage `score`.

    given_reward, given_reward_problem      float; text
    given_verdict, given_verdict_problem    text; text

An answer without a valid one is kept, and the problem says why. Which of several values is meant, nothing tells: copies
of one answer with different rewards leave it without any.
"""

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from data_pipeline.config import GivenConfig
from fusejax.common.cli import UserError

SCHEMA = pl.Schema(
    {
        "given_reward": pl.Float64(),
        "given_reward_problem": pl.String(),
        "given_verdict": pl.String(),
        "given_verdict_problem": pl.String(),
    }
)
"""All columns; a table has those of the scores that its entry names."""
_VERDICTS: dict[bool | str, str] = {
    True: "correct",
    False: "wrong",
    # As CSV files have them.
    "true": "correct",
    "True": "correct",
    "false": "wrong",
    "False": "wrong",
    **{name: name for name in ("correct", "wrong", "unknown")},
}


def columns(given: GivenConfig) -> dict[str, str]:
    """reward, verdict -> the data set's column, for those that the entry names."""
    return {name: column for name in ("reward", "verdict") if (column := getattr(given, name)) is not None}


def read(given: GivenConfig, answers: Sequence[Sequence[Sequence[Any]]]) -> list[pl.Series]:
    """The columns of the scores that the entry names: one row per answer.

    Args:
      given: the entry.
      answers: of each answer, the values in `columns` of each row that holds it.

    Raises:
      UserError: a column holds no valid value at all.
    """
    series: list[pl.Series] = []
    for place, (name, column) in enumerate(columns(given).items()):
        of_values = _reward if name == "reward" else _verdict
        found = [of_values([row[place] for row in rows]) for rows in answers]
        if all(problem for _, problem in found):
            expected = "finite number" if name == "reward" else "correct, wrong, unknown, true or false"
            raise UserError(f"given: {given.path}: column {column!r}: no {expected} in any answer's row: {found[0][1]}")
        for key, values in zip((f"given_{name}", f"given_{name}_problem"), zip(*found, strict=True), strict=True):
            series.append(pl.Series(key, values, dtype=SCHEMA[key]))
    return series


def _reward(values: list[Any]) -> tuple[float | None, str | None]:
    """The one reward in the rows of an answer, or the reason why there is none.

    >>> _reward([0.5, None]), _reward(["0.5"]), _reward([0.5, 0.7]), _reward(["good"])
    ((0.5, None), (0.5, None), (None, 'several_rewards: 0.5, 0.7'), (None, "bad_reward: 'good'"))
    """
    found = set()
    for value in values:
        if value is None:
            continue
        value = _of_text(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            return None, f"bad_reward: {value!r:.100}"
        found.add(float(value))
    if len(found) > 1:
        return None, f"several_rewards: {', '.join(map(str, sorted(found)))}"
    return (found.pop(), None) if found else (None, "missing_reward")


def _of_text(value: Any) -> Any:
    """The number that a text is, as in CSV files; anything else unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # An integer beyond the largest float.
        return False


def _verdict(values: list[Any]) -> tuple[str, str | None]:
    """The one verdict in the rows of an answer; unknown, with the reason, where there is none.

    >>> _verdict([True]), _verdict([None]), _verdict(["wrong", True])
    (('correct', None), ('unknown', 'missing_verdict'), ('unknown', 'several_verdicts: correct, wrong'))
    """
    found = set()
    for value in values:
        if value is None:
            continue
        if not isinstance(value, bool | str) or value not in _VERDICTS:
            return "unknown", f"bad_verdict: {value!r:.100}"
        found.add(_VERDICTS[value])
    if len(found) > 1:
        return "unknown", f"several_verdicts: {', '.join(sorted(found))}"
    return (found.pop(), None) if found else ("unknown", "missing_verdict")
