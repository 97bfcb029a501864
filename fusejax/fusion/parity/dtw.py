"""Tokens aligned by dynamic time warping over edit distances: many to many, in order, by strings."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from fusejax.fusion.parity import System, Vocabulary
from fusejax.fusion.parity.edit_distance import Words, edit_distances

Ties = Literal["source", "target"]
"""Which token is gone back by where both ways, and not the diagonal, are the cheapest."""
TIES: dict[System, Ties] = {"fusellm": "source", "fusechat1": "source", "fusechat2": "target"}


class Warped(NamedTuple):
    total: float
    """Cost of the whole path."""
    table: Float64[np.ndarray, "n m"]
    """Least cost of reaching each pair."""
    members: list[list[int]]
    """Source places of each target place, rising; at least one."""


def dtw(costs: Float[np.ndarray, "n m"], ties: Ties) -> Warped:
    """The cheapest path from the first pair of tokens to the last.

    `D(i,j) = c(i,j) + min(D(i-1,j), D(i,j-1), D(i-1,j-1))`, all pairs of one anti-diagonal at once. Back from the end:
    the diagonal where nothing is cheaper, then as `ties` says.

    Example:
      >>> dtw(np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]), "source").members
      [[0, 1], [2]]
    """
    n, m = costs.shape
    # A border of infinity around the table; the anti-diagonal of i + j = d is the slice d + i m of the flat table.
    padded = np.full((n + 1, m + 1), np.inf)
    padded[0, 0] = 0
    flat, flat_costs = padded.ravel(), np.zeros_like(padded)
    flat_costs[1:, 1:] = costs
    flat_costs = flat_costs.ravel()
    for d in range(2, n + m + 1):
        first, last = max(1, d - m), min(n, d - 1)
        at = np.arange(first, last + 1) * m + d
        flat[at] = flat_costs[at] + np.minimum(np.minimum(flat[at - m - 1], flat[at - 1]), flat[at - m - 2])
    members: list[list[int]] = [[] for _ in range(m)]
    i, j = n, m
    while True:
        members[j - 1].append(i - 1)
        if (i, j) == (1, 1):
            break
        ways = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        if ties == "target":
            ways[1:] = ways[:0:-1]
        i, j = min(ways, key=lambda way: padded[way])  # the first of the cheapest
    table = padded[1:, 1:].copy()
    return Warped(float(table[-1, -1]), table, [each[::-1] for each in members])


def token_costs(
    system: System, source: Vocabulary, source_ids: Sequence[int], target: Vocabulary, target_ids: Sequence[int]
) -> Float64[np.ndarray, "n m"]:
    """Edit distances without markers, of each pair of different tokens once.

    `fusechat1` takes a tenth where one contains the other; `fusechat2` compares with markers where nothing else is
    left of one.
    """
    ours, our_places = np.unique(np.asarray(source_ids), return_inverse=True)
    theirs, their_places = np.unique(np.asarray(target_ids), return_inverse=True)
    plain = [target.plain(token) for token in theirs.tolist()]
    words, marked = Words(plain), Words([target.names[token] for token in theirs.tolist()])
    table = np.empty((len(ours), len(theirs)))
    for row, token in zip(table, ours.tolist(), strict=True):
        name = source.plain(token)
        row[:] = edit_distances(name, words)
        if system == "fusechat1":
            row *= [0.1 if name in other or other in name else 1 for other in plain]
        elif system == "fusechat2":
            unmarked = np.array([bool(name) and bool(other) for other in plain])
            row[:] = np.where(unmarked, row, edit_distances(source.exchanged(token, target), marked))
    return table[our_places][:, their_places]


def warp(
    system: System, source: Vocabulary, source_ids: Sequence[int], target: Vocabulary, target_ids: Sequence[int]
) -> Warped:
    """Source and target tokens of one text, aligned as a system does."""
    return dtw(token_costs(system, source, source_ids, target, target_ids), TIES[system])
