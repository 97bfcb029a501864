"""How far a score is from what other items of the same kind would have given: bootstrap over units.

A draw takes as many units as there are, with replacement, within each stratum, and weights each row by how often its
unit was drawn (Efron and Tibshirani 1993, chapter 6). Draws depend on the units and the seed alone: two models that
answered the same items get the same draws, so that what differs between them is the models.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from data_pipeline.stage_files import stable_hash

LEVEL = 0.95
_TAIL = 100 * (1 - LEVEL) / 2
Score = Callable[[Float[np.ndarray, "N"]], float]
"""The score of fixed rows, weighted."""


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval and standard error."""

    value: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Difference:
    """One model's score less another's, on the same items."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided: twice the share of draws on the other side of zero, at least one draw's."""
    items: int


def weights(rows: pl.DataFrame, draws: int, seed: int) -> Iterator[Float[np.ndarray, "N"]]:
    """How often each row counts, draw by draw.

    Args:
      rows: columns unit and stratum.
      draws: how many.
      seed: of all of them.
    """
    keys = rows.select("stratum", "unit").unique().sort("stratum", "unit")
    order = keys.with_row_index("place")
    places = rows.join(order, on=["stratum", "unit"], how="left", maintain_order="left")["place"].to_numpy()
    sizes = keys.group_by("stratum", maintain_order=True).len()["len"].to_numpy()
    random = np.random.default_rng(stable_hash(seed, "bootstrap"))
    for _ in range(draws):
        counts = [random.multinomial(size, np.full(size, 1 / size)) for size in sizes]
        yield np.concatenate(counts).astype(float)[places]


def interval(rows: pl.DataFrame, score: Score, draws: int, seed: int) -> Interval:
    """The score of all rows, and what draws make of it.

    Args:
      rows: columns unit and stratum.
      score: of these rows.
    """
    drawn = np.array([score(each) for each in weights(rows, draws, seed)])
    low, high = np.nanpercentile(drawn, [_TAIL, 100 - _TAIL])
    return Interval(score(np.ones(len(rows))), float(low), float(high), float(np.nanstd(drawn)))


def difference(
    mine: tuple[pl.DataFrame, Score], other: tuple[pl.DataFrame, Score], draws: int, seed: int
) -> Difference:
    """The paired comparison of two models.

    Args:
      mine: rows and their score.
      other: the other model's; of the same units and strata.
    """
    pairs = zip(weights(mine[0], draws, seed), weights(other[0], draws, seed), strict=True)
    drawn = np.array([mine[1](own) - other[1](theirs) for own, theirs in pairs])
    low, high = np.nanpercentile(drawn, [_TAIL, 100 - _TAIL])
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    value = mine[1](np.ones(len(mine[0]))) - other[1](np.ones(len(other[0])))
    units = mine[0].select("stratum", "unit").n_unique()
    return Difference(value, float(low), float(high), float(min(1.0, 2 * max(beyond, 1) / draws)), units)
