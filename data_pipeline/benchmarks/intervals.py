"""How far a score is from what other items of the same kind would have given: bootstrap over units.

A draw takes as many units as there are, with replacement, within each stratum, and weights each row by how often its
unit was drawn (Efron and Tibshirani 1993, chapter 6). Draws depend on the units and the seed alone: two models that
answered the same items get the same draws, so that what differs between them is the models.

Draws vary as what they are drawn from does, so where that shows nothing they say nothing: few units of a stratum are
drawn with those of others, and where every answer is wrong, or every one right, the interval is the binomial one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from data_pipeline.stage_files import stable_hash

LEVEL = 0.95
_TAIL = 100 * (1 - LEVEL) / 2
FEW = 10
"""Units of a stratum, below which they are drawn together with those of other such strata: of a single one, every draw
is the same, as where a limit leaves one question of each subject."""
Score = Callable[[Float[np.ndarray, "N"]], float]
"""The score of fixed rows, weighted."""


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval and standard error; of a single unit, these are NaN."""

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
    """Two-sided: twice the share of draws on the other side of zero, at least one draw's, and at least what a test of
    signs can give with so many items."""
    items: int


def weights(rows: pl.DataFrame, draws: int, seed: int) -> Iterator[Float[np.ndarray, "N"]]:
    """How often each row counts, draw by draw.

    Args:
      rows: columns unit and stratum.
      draws: how many.
      seed: of all of them.
    """
    keys = rows.select("stratum", "unit").unique()
    few = pl.len().over("stratum") < FEW
    # Small strata are one, of a name that none has.
    keys = keys.with_columns(drawn=pl.when(few).then(pl.lit("\0")).otherwise("stratum")).sort(
        "drawn", "stratum", "unit"
    )
    order = keys.with_row_index("place")
    places = rows.join(order, on=["stratum", "unit"], how="left", maintain_order="left")["place"].to_numpy()
    sizes = keys.group_by("drawn", maintain_order=True).len()["len"].to_numpy()
    random = np.random.default_rng(stable_hash(seed, "bootstrap"))
    for _ in range(draws):
        counts = [random.multinomial(size, np.full(size, 1 / size)) for size in sizes]
        yield np.concatenate(counts).astype(float)[places]


def interval(rows: pl.DataFrame, score: Score, draws: int, seed: int, scale: float) -> Interval:
    """The score of all rows, and what draws make of it.

    Args:
      rows: columns unit, stratum and score.
      score: of these rows.
      scale: its best; the worst is 0.
    """
    value = score(np.ones(len(rows)))
    grades = rows.drop_nulls("score")
    units = grades.select("stratum", "unit").n_unique()
    end = 0.0 if value < scale / 2 else scale
    # A regression comes only close to the end.
    if grades["score"].n_unique() == 1 and abs(value - end) < scale / 100:
        # Clopper and Pearson 1934: the share at which it would still happen that so many units are all alike.
        far = scale * (1 - (_TAIL / 100) ** (1 / units))
        low, high = (0.0, far) if end == 0 else (scale - far, scale)
        return Interval(value, low, high, far / 1.96)
    if units < 2:
        return Interval(value, np.nan, np.nan, np.nan)
    drawn = np.array([score(each) for each in weights(rows, draws, seed)])
    low, high = np.nanpercentile(drawn, [_TAIL, 100 - _TAIL])
    return Interval(value, float(low), float(high), float(np.nanstd(drawn)))


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
    p = max(2 * max(beyond, 1) / draws, 2.0 ** (1 - units))
    return Difference(value, float(low), float(high), float(min(1.0, p)), units)
