"""Grades to results: what `results.json` holds, and what table and page show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from data_pipeline.benchmarks import intervals, published
from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.benchmarks.intervals import Difference, Interval

TRUNCATED = 0.02
"""Share of cut answers above which the table warns."""


@dataclass(frozen=True)
class Beside:
    """A published number beside one of ours."""

    model: str
    value: float
    difference: tuple[float, float, float] | None
    """Ours less the published one, with the ends of its interval; None between two judges, or where ours is none."""


@dataclass(frozen=True)
class Result:
    """One model in one benchmark."""

    model: str
    benchmark: str
    title: str
    scale: float
    score: Interval
    items: int
    answers: int
    tokens: float
    """Mean tokens of an answer."""
    counts: dict[str, int]
    """errors, truncated, unanswered, unknown, ungraded: how many answers."""
    judge: str | None
    data_sha256: str
    settings_sha256: str
    details: dict[str, float] = field(default_factory=dict)
    """Further scores of the benchmark's own, by name."""
    held: int | None = None
    """Items that the training prompts held; None where none were named."""
    without_held: Interval | None = None
    """The score without them; None where nothing is left, or nothing was held."""
    caveats: list[str] = field(default_factory=list)
    """Why it is not of the same thing as the published number."""
    beside: Beside | None = None


@dataclass(frozen=True)
class Pair:
    """One model against another, in one benchmark."""

    benchmark: str
    model: str
    other: str
    difference: Difference


def counts(rows: pl.DataFrame) -> dict[str, int]:
    """How many answers are not what they should be.

    Args:
      rows: a graded table.
    """
    reasons = rows["finish_reasons"].to_list()
    detail = rows["detail"].fill_null("")
    return {
        "errors": sum("error" in each for each in reasons),
        "truncated": sum("length" in each for each in reasons),
        "unanswered": int(detail.str.starts_with("unanswered").sum()),
        "unknown": int(detail.str.starts_with("unknown").sum()),
        "ungraded": rows["score"].null_count(),
    }


def scorer(benchmark: Benchmark, rows: pl.DataFrame) -> intervals.Score:
    """The benchmark's score of these rows, by weights."""
    if prepare := getattr(benchmark, "prepare", None):
        return prepare(rows)
    return lambda weights: benchmark.score(rows, weights)


def interval(benchmark: Benchmark, rows: pl.DataFrame, draws: int, seed: int) -> Interval:
    return intervals.interval(rows, scorer(benchmark, rows), draws, seed, benchmark.scale)


def pair(benchmark: Benchmark, mine: pl.DataFrame, other: pl.DataFrame, draws: int, seed: int) -> Difference | None:
    """The paired comparison, on the items of which both have grades; None if there are none."""
    common = set.intersection(*(set(rows.drop_nulls("score")["id"]) for rows in (mine, other)))
    mine, other = (rows.filter(pl.col("id").is_in(common)) for rows in (mine, other))
    if mine.is_empty():
        return None
    return intervals.difference((mine, scorer(benchmark, mine)), (other, scorer(benchmark, other)), draws, seed)


def beside(
    benchmark: Benchmark, score: Interval, items: int, name: str | None, judged: bool, same: bool
) -> Beside | None:
    """The published number with the difference; None where nothing is published.

    The difference's interval has the sampling error of both numbers, as if they were of different items: of a share of
    right answers, the published one's is binomial; of a judge's scores, it is taken to be ours.

    Args:
      name: of the published model.
      judged: whether a judge graded.
      same: whether that is the judge of the published numbers.
    """
    value = published.number(name, benchmark.published) if name and benchmark.published else None
    if name is None or value is None:
        return None
    if (judged and not same) or np.isnan(score.value):
        return Beside(name, value, None)
    asked = published.ITEMS.get(benchmark.name) or items
    theirs = score.error if judged else published.sampling_error(value, benchmark.scale, asked)
    half = 1.96 * float(np.hypot(score.error, theirs))
    return Beside(name, value, (score.value - value, score.value - value - half, score.value - value + half))


def as_json(results: list[Result], pairs: list[Pair], about: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` holds.

    Args:
      results: of all models and benchmarks.
      pairs: of models that are compared.
      about: what they have in common: profile, versions, models.
    """
    models: dict[str, dict[str, Any]] = {}
    for result in results:
        entry: dict[str, Any] = {
            "value": _plain(result.score.value),
            "low": _plain(result.score.low),
            "high": _plain(result.score.high),
            "items": result.items,
            "answers": result.answers,
            "tokens": round(result.tokens, 2),
            **result.counts,
            **{name: _plain(value) for name, value in result.details.items()},
            "judge": result.judge,
            "data_sha256": result.data_sha256,
            "settings_sha256": result.settings_sha256,
            "differs_from_published": result.caveats,
            "published": None if result.beside is None else {result.beside.model: result.beside.value},
        }
        if result.beside is not None and result.beside.difference is not None:
            less = zip(("value", "low", "high"), result.beside.difference, strict=True)
            entry["less_published"] = {name: _plain(value) for name, value in less}
        if result.held is not None:
            entry["held_by_training"] = result.held
            entry["without_held"] = None if result.without_held is None else _plain(result.without_held.value)
        models.setdefault(result.model, {})[result.benchmark] = entry
    compared: dict[str, dict[str, dict[str, Any]]] = {}
    for each in pairs:
        found = each.difference
        compared.setdefault(each.model, {}).setdefault(each.other, {})[each.benchmark] = {
            "difference": _plain(found.value),
            "low": _plain(found.low),
            "high": _plain(found.high),
            "p": found.p,
            "units": found.items,
        }
    return {**about, "models": models, "against": compared}


def _plain(value: float) -> float | None:
    """A number that JSON has, without digits that other machines would not give."""
    return None if np.isnan(value) else round(value, 6)
