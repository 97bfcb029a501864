"""MinED: each token of the source is the token of the target that is spelled most alike."""

import numpy as np

from fusejax.fusion.parity import Vocabulary
from fusejax.fusion.parity.edit_distance import Words, edit_distances


def min_edit_map(source: Vocabulary, target: Vocabulary) -> list[int]:
    """Source id -> target id: the same string, markers exchanged, or else the least edit distance in the vocabulary.

    Of equally distant tokens the first. Tokens that differ in length by more than the least distance so far are not
    looked at: their distance is at least that difference.
    """
    lengths = np.array([len(name) for name in target.names])
    groups = {}
    for length in np.unique(lengths).tolist():
        members = np.flatnonzero(lengths == length)
        groups[length] = members, Words([target.names[i] for i in members.tolist()])
    table = []
    for token in range(len(source.names)):
        name = source.exchanged(token, target)
        if name in target.ids:
            table.append(target.ids[name])
            continue
        best: tuple[int, int] | None = None
        for length in sorted(groups, key=lambda length: abs(length - len(name))):
            if best is not None and abs(length - len(name)) > best[0]:
                break
            members, words = groups[length]
            found = edit_distances(name, words)
            nearest = int(found.argmin())
            candidate = int(found[nearest]), int(members[nearest])
            best = candidate if best is None else min(best, candidate)
        assert best is not None, "an empty vocabulary"
        table.append(best[1])
    return table
