"""The largest microbatch that fits, and the cheapest rematerialisation.

For each choice of rematerialisation, the programs are compiled with one and with two rows per device. HBM grows about
linearly with rows, which predicts the largest number of rows that fits; compiling that checks and corrects it. The
candidate is the smallest number that needs no more microbatches than the largest, as further rows would stay empty. Of
the candidates, one per choice, the one with the shortest estimated step wins.
"""

import dataclasses
import math
import typing
from collections.abc import Callable

from fusejax.common.cli import note
from fusejax.config import TrainConfig
from fusejax.planning.plan import HBM, Planner, tasks


@dataclasses.dataclass(frozen=True)
class Trial:
    """One combination that was compiled."""

    remat: str
    rows_per_device: int
    total: int
    """HBM on each chip, in bytes."""
    fits: bool
    step_seconds: float | None
    """Estimated for candidates only."""


@dataclasses.dataclass(frozen=True)
class Best:
    remat: str
    rows_per_device: int
    largest_rows_per_device: int
    """The most rows that fit, up to what a step needs; `rows_per_device` is less if further rows would stay empty."""
    step_seconds: float


@dataclasses.dataclass(frozen=True)
class SearchResult:
    best: Best | None
    """None: nothing fits."""
    trials: list[Trial]


def search(planner: Planner, config: TrainConfig) -> SearchResult:
    """Tries every rematerialisation; see above."""
    task = tasks(config)[-1]  # training takes more than the reference pass does
    parts = planner.rows_per_microbatch(config) // config.packing.rows_per_device
    trials: list[Trial] = []
    candidates: list[Best] = []
    for remat in typing.get_args(TrainConfig.model_fields["remat"].annotation):
        tried: dict[int, tuple[HBM, bool]] = {}

        def measure(rows: int, remat: str = remat, tried: dict[int, tuple[HBM, bool]] = tried) -> tuple[int, bool]:
            if rows not in tried:
                note(f"search: remat {remat}, rows_per_device {rows}")
                tried[rows] = planner.hbm(choose(config, remat, rows), task)
            hbm, fits = tried[rows]
            return hbm.total, fits

        largest = largest_fitting(
            measure, planner.topology.chip.hbm, most=math.ceil(planner.work.rows_per_step / parts)
        )
        seconds: dict[int, float] = {}
        if largest:
            rows = math.ceil(planner.work.rows_per_step / planner.work.microbatches(largest * parts) / parts)
            speed = planner.speed(choose(config, remat, rows), task) if measure(rows)[1] else None
            if speed:
                seconds[rows] = speed.step_seconds
                candidates.append(Best(remat, rows, largest, speed.step_seconds))
        trials += [
            Trial(remat, rows, hbm.total, fits, seconds.get(rows)) for rows, (hbm, fits) in sorted(tried.items())
        ]
    return SearchResult(min(candidates, key=lambda each: each.step_seconds, default=None), trials)


def choose(config: TrainConfig, remat: str, rows_per_device: int) -> TrainConfig:
    """The configuration with this choice."""
    packing = config.packing.model_copy(update={"rows_per_device": rows_per_device})
    return config.model_copy(update={"remat": remat, "packing": packing})


def largest_fitting(measure: Callable[[int], tuple[int, bool]], limit: int, most: int) -> int:
    """The largest number of rows from 1 to `most` that fits, 0 if none, in few measurements.

    Args:
      measure: rows -> total bytes and whether that fits; about linear in rows.
      limit: bytes that fit.

    Example:
      >>> largest_fitting(lambda rows: (10 + 3 * rows, 10 + 3 * rows <= 100), limit=100, most=64)
      30
    """
    sizes: dict[int, int] = {}
    fitting, too_large, rows = 0, most + 1, 1
    while True:
        sizes[rows], fits = measure(rows)
        if fits:
            fitting = rows
        else:
            too_large = rows
        if too_large - fitting == 1:
            return fitting
        if len(sizes) == 1:
            rows = 2
        else:
            # Extrapolates linearly from the two measurements nearest to the limit, within the bounds known so far.
            first, second = sorted(sizes, key=lambda rows: abs(sizes[rows] - limit))[:2]
            slope = (sizes[second] - sizes[first]) / (second - first)
            guess = first + (limit - sizes[first]) / slope if slope > 0 else too_large - 1
            rows = min(max(math.floor(guess), fitting + 1), too_large - 1)
