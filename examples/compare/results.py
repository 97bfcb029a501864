"""The comparison as figures: means over seeds, and differences between methods on the same seed.

A seed draws everything anew: weights, tasks, data, samples. So ± is the standard error over seeds, `s / sqrt(n)`; that
of a difference is taken of the seeds' differences. One seed has none.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import scipy.stats

from examples.compare.methods import METHODS, PUBLISHED

Results = Sequence[Mapping[str, Mapping[str, Any]]]
"""Of each seed, what it has in `results.json`."""


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error.

    Example:
      >>> mean([1.0, 2.0, 6.0])[0]
      3.0
    """
    middle, n = math.fsum(values) / len(values), len(values)
    if n == 1:
        return middle, None
    return middle, math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1) / n)


def accuracy(results: Results, method: str, domain: str = "average") -> tuple[float, float | None]:
    """In percent."""
    return mean([100 * seed[method]["accuracy"][domain] for seed in results])


def gain(results: Results, method: str, over: str) -> tuple[float, float | None]:
    """In percent points of the average over domains."""

    def average(seed: Mapping[str, Any], name: str) -> float:
        return 100 * seed[name]["accuracy"]["average"]

    return mean([average(seed, method) - average(seed, over) for seed in results])


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The header, and a line for each method."""
    domains = [name for name in results[0]["base"]["accuracy"] if name != "average"]
    header = ["", "average, %", *(f"{name}, %" for name in domains), "over SFT", "over DPO"]
    header += ["thousand tokens trained on", "s of steps", "s of other data"]
    rows = []
    for name, method in METHODS.items():
        cost = [mean([seed[name]["cost"][key] for seed in results])[0] for key in ("tokens", "seconds", "data_seconds")]
        rows.append(
            [
                method.label,
                told(accuracy(results, name)),
                *(f"{accuracy(results, name, domain)[0]:.1f}" for domain in domains),
                *(told(gain(results, name, over), "+") if name != over else "" for over in ("sft", "dpo")),
                f"{cost[0] / 1000:.0f}",
                *(f"{value:.1f}" for value in cost[1:]),
            ]
        )
    return header, rows


def told(value: tuple[float, float | None], sign: str = "") -> str:
    """
    >>> told((4.04, 1.26), "+"), told((-4.0, None), "+"), told((50.0, 0.123)), told((-0.02, 0.1), "+")
    ('+4.0 ± 1.3', '-4.0', '50.0 ± 0.1', '+0.0 ± 0.1')
    """
    text = f"{round(value[0], 1) + 0.0:{sign}.1f}"  # + 0.0: no negative zero
    return text if value[1] is None else f"{text} ± {value[1]:.1f}"


def order(results: Results) -> list[str]:
    """Whether the published order shows, a sentence for each two that follow one another in it.

    A difference counts where 0 is outside of its 95 % interval: Student's, with one degree of freedom less than seeds.
    """
    sentences, times = [], scipy.stats.t.ppf(0.975, max(1, len(results) - 1))
    for worse, better in itertools.pairwise(PUBLISHED):
        found = gain(results, better, worse)
        difference, error = found
        pair = f"{METHODS[worse].label} < {METHODS[better].label}"
        if error is None:
            verdict = "says nothing from one seed"
        elif difference > times * error:
            verdict = "shows"
        elif difference < -times * error:
            verdict = "is the other way round"
        else:
            verdict = "cannot be told"
        sentences.append(f"{pair} {verdict}: {told(found, '+')} points")
    return sentences


def text(results: Results) -> str:
    """The table for a terminal, and the sentences below it."""
    header, rows = table(results)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for first, *others in (header, *rows):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join([*lines, "", *order(results)])
