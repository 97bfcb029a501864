"""Texts that overlap: near duplicates among the prompts (MinHash), and prompts that overlap with evaluation sets
(decontamination by n-grams of words)."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

# Chinese and Japanese are written without spaces: there each character counts as a word.
_SCRIPTS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SCRIPTS}]|[^\W_{_SCRIPTS}]+")
_TOKEN = re.compile(rf"[{_SCRIPTS}]|[^\W_{_SCRIPTS}]+|[^\w\s]")
SHINGLE = 5
"""Tokens of a shingle of near duplicates."""
PERMUTATIONS = 128


def words(text: str) -> list[str]:
    """Letters and digits only, in lower case.

    >>> words("Janet’s ducks, 你好!")
    ['janet', 's', 'ducks', '你', '好']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def tokens(text: str) -> list[str]:
    """Words, and every other sign as a token of its own: `3 + 4` is not `3 - 4`."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


class EvaluationNgrams:
    """Every run of `length` words of the evaluation sets' texts, and the texts that are shorter."""

    def __init__(self, length: int):
        self._length = length
        self._runs: dict[str, str] = {}
        self._short: dict[str, str] = {}

    def add(self, name: str, texts: Iterable[str]) -> None:
        """Adds the texts of the evaluation set `name`; what an earlier set holds too is reported under that one."""
        for text in texts:
            if len(found := words(text)) >= self._length:
                for run in self._split(found):
                    self._runs.setdefault(run, name)
            elif found:
                self._short.setdefault(" ".join(tokens(text)), name)

    def find(self, text: str) -> tuple[str, str] | None:
        """The evaluation set that holds part of the text, and that part; None if none does."""
        found = words(text)
        if len(found) < self._length:
            whole = " ".join(tokens(text))
            return (self._short[whole], whole) if whole in self._short else None
        return next(((self._runs[run], run) for run in self._split(found) if run in self._runs), None)

    def _split(self, found: list[str]) -> Iterator[str]:
        return (" ".join(found[start : start + self._length]) for start in range(len(found) - self._length + 1))


class NearDuplicates:
    """Texts seen so far, to find those that resemble a new one.

    MinHash with locality-sensitive hashing proposes candidates; the Jaccard similarity of the sets of shingles (runs
    of five tokens) decides. So no text is left out because of a hash collision, and the same texts in the same order
    always give the same result. A text of fewer than five tokens is a single shingle, and resembles only equal texts.
    """

    def __init__(self, similarity: float):
        import datasketch  # slow to import

        self._minhash = datasketch.MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        # Lower than the similarity that decides, so that nearly all pairs at that similarity are proposed.
        self._index = datasketch.MinHashLSH(threshold=0.75 * similarity, num_perm=PERMUTATIONS)
        self._hash = datasketch.hashfunc.sha1_hash32
        self._similarity = similarity
        self._shingles: dict[str, np.ndarray] = {}

    def add(self, name: str, text: str) -> str | None:
        """Remembers a text under its name, unless an earlier one resembles it: then that one's name is returned."""
        found = tokens(text)
        runs = {" ".join(found[start : start + SHINGLE]) for start in range(max(1, len(found) - SHINGLE + 1))}
        shingles = np.unique(np.fromiter((self._hash(run.encode()) for run in runs), np.uint64, len(runs)))
        minhash = self._minhash.copy()
        minhash.update_batch(shingles)
        for other in sorted(self._index.query(minhash)):
            common = len(np.intersect1d(shingles, self._shingles[other], assume_unique=True))
            if common >= self._similarity * (len(shingles) + len(self._shingles[other]) - common):
                return other
        self._index.insert(name, minhash, check_duplication=False)
        self._shingles[name] = shingles.astype(np.uint32)
        return None
