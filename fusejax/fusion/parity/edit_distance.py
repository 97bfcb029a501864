"""Levenshtein's distance of one word to many at once."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16


class Words:
    """Words as a table of characters, [longest, N], so that all are worked on together."""

    def __init__(self, words: Sequence[str]):
        self.lengths = np.array([len(word) for word in words], np.int64)
        table = np.array([*words, ""])
        self.characters = np.ascontiguousarray(table.view(np.uint32).reshape(len(table), -1)[:-1].T)


def edit_distances(word: str, words: Words) -> Int16[np.ndarray, "N"]:
    """How many characters must be put in, taken out or exchanged to make each of the words of `word`.

    Wagner and Fischer (1974), a row of its table for each character of `word`. What a row's entries take from each
    other, one more for each step along it, is a running minimum.

    Example:
      >>> edit_distances("ut", Words(["get", "util", "ut", ""]))
      array([2, 2, 0, 2], dtype=int16)
    """
    longest, count = words.characters.shape
    steps = np.arange(longest + 1, dtype=np.int16)[:, None]
    row = np.repeat(steps, count, axis=1)
    for position, character in enumerate(word, 1):
        new = np.empty_like(row)
        new[0] = position
        np.minimum(row[1:] + 1, row[:-1] + (words.characters != ord(character)), out=new[1:])
        new -= steps
        np.minimum.accumulate(new, axis=0, out=new)
        row = new + steps
    return row[words.lengths, np.arange(count)]
