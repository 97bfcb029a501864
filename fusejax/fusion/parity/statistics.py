"""FuseChat's map by statistics ("MS"): which tokens were aligned with which, over a whole corpus."""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fusejax.fusion.parity import System, Vocabulary
from fusejax.fusion.parity.edit_distance import Words, edit_distances

Counts = Mapping[tuple[int, int], int]
"""(target id, source id) -> how often they were aligned. The public code keeps all pairs, most of them 0."""


def count_pairs(texts: Iterable[tuple[Sequence[int], Sequence[int], Sequence[Sequence[int]]]]) -> Counts:
    """Counts over texts, of each its source ids, its target ids and `Warped.members`.

    A target token that is aligned with several equal source tokens counts once, as in the public code.
    """
    counts: collections.Counter[tuple[int, int]] = collections.Counter()
    for source_ids, target_ids, members in texts:
        for token, places in zip(target_ids, members, strict=True):
            counts.update((token, other) for other in {source_ids[place] for place in places})
    return counts


def distance(system: System, source: Vocabulary, token: int, target: Vocabulary, other: int) -> float:
    """Edit distance without markers, a tenth of it where one contains the other."""
    ours, theirs = source.plain(token), target.plain(other)
    if system == "fusechat2" and not (ours and theirs):
        ours, theirs = source.exchanged(token, target), target.names[other]
    return int(edit_distances(ours, Words([theirs]))[0]) * (0.1 if ours in theirs or theirs in ours else 1)


def statistics_map(
    system: System,
    counts: Counts,
    source: Vocabulary,
    target: Vocabulary,
    special: Mapping[int, int],
    unknown: int,
) -> list[int]:
    """Source id -> target id: the least `distance * sigmoid(count)` among tokens that it was aligned with.

    The sigmoid rises, so of equally distant tokens the *rarest* wins; over counts of about 10 it is 1.

    Args:
      special: source id -> target id of the first and last token of texts.
      unknown: target id of tokens that were never seen.
    """

    def cost(token: int, other: int) -> float:
        return distance(system, source, token, target, other) / (1 + math.exp(-counts[other, token]))

    return _best(counts, len(source.names), cost, special, unknown)


def most_frequent_map(
    system: System,
    counts: Counts,
    source: Vocabulary,
    target: Vocabulary,
    special: Mapping[int, int],
    unknown: int,
) -> list[int]:
    """What such a map should be: the token that it was aligned with most often, the least distant of equal ones."""

    def cost(token: int, other: int) -> tuple[int, float]:
        return -counts[other, token], distance(system, source, token, target, other)

    return _best(counts, len(source.names), cost, special, unknown)


def _best(
    counts: Counts, size: int, cost: Callable[[int, int], Any], special: Mapping[int, int], unknown: int
) -> list[int]:
    """For each source token the target token of least cost among those of the counts, the first of equal ones."""
    table = [unknown] * size
    for token, pairs in itertools.groupby(sorted((token, other) for other, token in counts), key=lambda pair: pair[0]):
        table[token] = min((other for _, other in pairs), key=functools.partial(cost, token))
    for token, other in special.items():
        table[token] = other
    return table
