"""Which of the source's lists a target place gets, and as which ids: the rules of the three systems.

A list is what the source says *after* a token, so the one of source place j is about place j + 1. The same holds of
target places here, other than in `fusejax.fusion.alignment`.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from fusejax.fusion.parity import System, Vocabulary
from fusejax.fusion.parity.dtw import warp
from fusejax.fusion.parity.statistics import Counts

Logits = dict[int, float]
"""Target id -> logit."""
_Weighted = list[tuple[int, float]]


def aligned_logits(
    system: System,
    source: Vocabulary,
    source_ids: Sequence[int],
    target: Vocabulary,
    target_ids: Sequence[int],
    top_ids: Integer[np.ndarray, "n K"],
    logits: Float[np.ndarray, "n K"],
    table: Sequence[int],
    counts: Counts | None = None,
) -> list[Logits]:
    """The source's logits after each target token.

    Args:
      top_ids: the source's likeliest tokens after each of its tokens.
      table: source id -> target id: of `min_edit_map` for `fusellm`, of `statistics_map` for FuseChat.
      counts: of `count_pairs`, for `fusechat1`.
    """

    def mapped(token: int) -> int:
        if system == "fusellm":
            return table[token]
        return target.ids.get(source.exchanged(token, target), table[token])

    rule = {"fusellm": _fusellm, "fusechat1": _fusechat1, "fusechat2": _fusechat2}[system]
    found = []
    for place, members in enumerate(warp(system, source, source_ids, target, target_ids).members):
        taken = rule(source, [source_ids[j] for j in members], target, target_ids[place], place, table, counts or {})
        if taken is None:
            following = min(place + 1, len(target_ids) - 1)
            found.append({target_ids[following if system == "fusechat2" else place]: 1.0})
            continue
        merged: Logits = {}
        for member, weight in taken:
            for token, logit in zip(top_ids[members[member]].tolist(), logits[members[member]].tolist(), strict=True):
                number = mapped(token)
                if number not in merged:
                    merged[number] = logit * weight
                elif len(taken) > 1:
                    merged[number] = max(merged[number], logit * weight)
        found.append(merged)
    return found


def softmax(logits: Logits) -> dict[int, float]:
    """Probabilities of a list: what is outside it has none."""
    highest = max(logits.values())
    powers = {token: math.exp(logit - highest) for token, logit in logits.items()}
    total = sum(powers.values())
    return {token: power / total for token, power in powers.items()}


def _fusellm(source, members, target, token, place, table, counts) -> _Weighted | None:
    """A single source token that is spelled alike, or is mapped to the target's token."""
    if len(members) > 1:
        return None
    name, wanted = source.exchanged(members[0], target), target.names[token]
    if place == 0 and source.marker == "Ġ" and wanted.startswith(target.marker) and not name.startswith(target.marker):
        name = target.marker + name
    return [(0, 1.0)] if name == wanted or target.names[table[members[0]]] == wanted else None


def _fusechat1(source, members, target, token, place, table, counts) -> _Weighted | None:
    """A source token that contains the target's; several that spell it, weighted by their counts."""
    wanted, names = target.names[token], [source.exchanged(member, target) for member in members]
    if len(names) == 1:
        return [(0, 1.0)] if wanted in names[0] else None
    if wanted != target.marker:
        for fitting in ([wanted == name for name in names], [wanted in name for name in names]):
            if any(fitting):
                return [(fitting.index(True), 1.0)]
    spelling = _spelling(wanted, names)
    if not spelling:
        return None
    seen = np.array([counts.get((token, members[i]), 0) for i in spelling], float)
    weights = np.exp(seen - seen.max())
    return list(zip(spelling, (weights / weights.sum()).tolist(), strict=True))


def _fusechat2(source, members, target, token, place, table, counts) -> _Weighted | None:
    """The first source token that ends as the target's does, or the reverse.

    The public code has a case for several that spell the target's token, too: the last of these ends as it does.
    """
    if len(members) == 1:
        wanted, names = target.names[token], [source.exchanged(members[0], target)]
    else:
        wanted, names = target.plain(token), [source.plain(member) for member in members]
    fitting = [wanted.endswith(name) or name.endswith(wanted) for name in names]
    return [(fitting.index(True), 1.0)] if any(fitting) else None


def _spelling(wanted: str, names: Sequence[str]) -> list[int]:
    """The members that, taken in order wherever they fit, spell the whole token; none where they do not."""
    found = []
    for i, name in enumerate(names):
        if wanted.startswith(name):
            found.append(i)
            wanted = wanted[len(name) :]
    return [] if wanted else found
