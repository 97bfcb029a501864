"""Which row of a source's distributions belongs to which place of the target's tokens: by the bytes before it.

Two tokenizers cut one answer in different places. A model predicts what comes after a prefix, so a source's
distribution is about a place of the target's where both have exactly the same bytes before them, and about no other.
Strings are never compared.
"""

import numpy as np
from jaxtyping import Int, Int64


def align(
    source_ends: Int[np.ndarray, "n_plus_1"], target_ends: Int[np.ndarray, "m_plus_1"]
) -> Int64[np.ndarray, "m_plus_1"]:
    """The source's row for each place of the target, or -1 where the source's tokens have no border.

    Place i of the target predicts its token i, from the first `target_ends[i]` bytes; the last place predicts the end
    of the turn. The last places always belong together, and no row belongs to two places.

    Tokens without bytes (a mark before the first word, say) make several places of one offset. They are paired from
    the last one back: it is the one whose next token has bytes, or ends the turn. What one side has more of goes
    without a row.

    Args:
      source_ends: bytes of the answer before each token of the source, and of all of them; never falling.
      target_ends: the same of the target.

    Raises:
      ValueError: the two end at different bytes, so they are not of the same answer.

    Example:
      >>> align(np.array([0, 4, 9, 12, 16, 21, 22]), np.array([0, 4, 9, 14, 21, 22]))
      array([ 0,  1,  2, -1,  5,  6])
    """
    if source_ends[-1] != target_ends[-1]:
        raise ValueError(f"an answer of {source_ends[-1]} bytes cannot be aligned with one of {target_ends[-1]}")
    last = np.searchsorted(source_ends, target_ends, side="right") - 1
    before_last = np.searchsorted(target_ends, target_ends, side="right") - 1 - np.arange(len(target_ends))
    rows = last - before_last
    return np.where((rows >= 0) & (source_ends[np.maximum(rows, 0)] == target_ends), rows, -1)
