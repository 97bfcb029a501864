"""The last assistant turn of each example beside the sources' records of it, and which source it learns from.

An answer has the same bytes for all, in other tokens. Of an example, the last assistant turn is what sidecars are
about; all other target tokens are trained on alone. Imports no JAX.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from fusejax.common.cli import UserError
from fusejax.data.examples import Tokenized
from fusejax.data.records import AnswerDistributions, RecordError
from fusejax.data.token_bytes import token_bytes
from fusejax.fusion.choice import avg_ce, bits_per_byte, min_ce
from fusejax.fusion.sidecars import Sidecar

PART = 256
"""Examples whose records are in memory at once, as a sidecar has them."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The last assistant turn as the target has it."""

    tokens: Int32[np.ndarray, "r"]
    """Its target tokens; with the one that ends it, unless it was cut."""
    spelled: bytes
    """What they spell."""
    before: Int64[np.ndarray, "n_plus_1"]
    """Bytes of `spelled` before each token that is of the text, and all of them."""
    is_last: bool
    """False where it may be an earlier turn, because the example was cut."""

    @property
    def is_cut(self) -> bool:
        return len(self.before) > len(self.tokens)

    @classmethod
    def last(cls, tokenized: Tokenized, index: int, table: Sequence[bytes | None], end: int, *, cut: bool) -> "Answer":
        tokens, mask = tokenized.sequence(index)
        targets = np.flatnonzero(mask)
        gaps = np.flatnonzero(np.diff(targets) > 1)
        run = tokens[targets[gaps[-1] + 1 if len(gaps) else 0 :]]
        # Other tokens than `end` may end a turn where the target's files name several.
        text = run[:-1] if len(run) and (run[-1] == end or table[run[-1]] is None) else run
        pieces = [table[token] or b"" for token in text.tolist()]
        # Of an example that was cut, only a single run up to the cut is sure to be the answer that a record is about.
        is_last = not cut or (len(gaps) == 0 and bool(mask[-1]))
        return cls(run, b"".join(pieces), np.cumsum([0, *map(len, pieces)], dtype=np.int64), is_last)


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A source's record of an answer, beside the target's tokens.

    Both are measured on the text that they have in common, without white space around it.
    """

    record: AnswerDistributions
    source_ends: Int64[np.ndarray, "s_plus_1"]
    """Bytes of the text before each of the record's tokens, and all of them."""
    target_ends: Int64[np.ndarray, "n_plus_1"]
    """The same of the target's tokens of the text. Of an answer that was cut, the last is less."""
    bits: float
    """Cross-entropy of the answer under the source, in bits per byte."""
    nats: float
    """The same in nats per token of the target."""


class Source:
    """A sidecar, ready to be read beside the target's tokens.

    Args:
      sidecar: to read.
      wanted: ids of the examples.
      counts: of them `unreadable` is counted here.

    Raises:
      UserError: the tokenizer's bytes are not known, or two records are of one example.
    """

    def __init__(self, sidecar: Sidecar, wanted: set[str], counts: Counter[str]):
        self.name, self.end_of_turn = sidecar.source, sidecar.end_of_turn
        self.tokenizer = sidecar.tokenizer()
        self._table = token_bytes(self.tokenizer)
        self._records, self._indices = sidecar.shards, dict[str, int]()
        for index in range(len(sidecar.shards)):
            try:
                name = sidecar.shards[index].id
            except RecordError:
                counts["unreadable"] += 1
                continue
            if name in self._indices:
                raise UserError(f"fusion.sidecars {sidecar.shards.name}: two records have the id {name!r}")
            if name in wanted:
                self._indices[name] = index

    def aligned(self, names: Sequence[str], answers: Sequence[Answer], counts: Counter[str]) -> list[Aligned | None]:
        """The record of each answer, None where there is none; those that are of `other` texts are counted."""
        found: list[Aligned | None] = []
        for name, answer in zip(names, answers, strict=True):
            index = self._indices.get(name)
            record = None if index is None or not answer.is_last else self._records[index]
            if not isinstance(record, AnswerDistributions):
                found.append(None)
                continue
            found.append(self._align(record, answer))
            counts["other"] += found[-1] is None
        return found

    def _align(self, record: AnswerDistributions, answer: Answer) -> Aligned | None:
        """None where the two do not spell the same, but for white space around it, and a text that was cut."""
        spelled = b"".join(self._table[token] or b"" for token in record.tokens.tolist())
        text, theirs = _stripped(spelled), _stripped(answer.spelled)
        extra = len(spelled) - int(record.ends[-1])  # SentencePiece's space before a text
        if not text or extra not in (0, 1):
            return None
        start, first = spelled.index(text), answer.spelled.rindex(theirs)
        begin = first + len(theirs) - len(text)  # a template may write something before an answer
        if begin < 0 or answer.spelled[begin : begin + len(text)] != text:
            begin = first
            if not answer.is_cut or not text.startswith(answer.spelled[begin:]):
                return None
        # White space that only one of the two has takes no room, so that what both have keeps its places.
        before = _same(spelled[extra:start][::-1], answer.spelled[:begin][::-1])
        after = _same(spelled[start + len(text) :], answer.spelled[begin + len(text) :])
        size = before + len(text) + after
        source = np.clip(record.ends + extra - (start - before), 0, size)
        target = np.clip(answer.before - (begin - before), 0, size)
        total = float(record.logprobs.sum(dtype=np.float64))
        bits = float(bits_per_byte(np.array([total]), record.ends[-1:])[0])
        nats = bits * math.log(2) * float(target[-1]) / len(answer.tokens)
        return Aligned(record, source.astype(np.int64), target, bits, nats)


def _stripped(spelled: bytes) -> bytes:
    """Without the white space that a template's `trim` cuts off, which is Unicode's; tokens may cut a character."""
    return spelled.decode(errors="surrogateescape").strip().encode(errors="surrogateescape")


def _same(a: bytes, b: bytes) -> int:
    """How many bytes both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Part(NamedTuple):
    """Some of the examples' answers, one after the other."""

    answers: list[Answer]
    aligned: list[list[Aligned | None]]
    """By source, their records of these answers."""
    targets: Int64[np.ndarray, "P"]
    """Where the answers' tokens are among all target tokens of the data set."""


def parts(
    tokenized: Tokenized, sources: Sequence[Source], table: Sequence[bytes | None], end: int, counts: Counter[str]
) -> Iterator[Part]:
    """All answers with all records of them.

    Args:
      table: of `token_bytes`, of the target.
      end: the target's token that ends an answer.
      counts: as of `Source.aligned`.
    """
    ends, cut = np.cumsum(tokenized.target_lengths), set(tokenized.changes.get("cut", ()))
    for start in range(0, len(tokenized), PART):
        answers = [
            Answer.last(tokenized, index, table, end, cut=tokenized.ids[index] in cut)
            for index in range(len(tokenized))[start : start + PART]
        ]
        names = tokenized.ids[start : start + PART]
        aligned = [source.aligned(names, answers, counts) for source in sources]
        last = zip(ends[start:], answers, strict=False)
        yield Part(answers, aligned, np.concatenate([np.arange(stop - len(each.tokens), stop) for stop, each in last]))


def shares_of_sources(
    aligned: Sequence[Sequence[Aligned | None]], names: Sequence[str], choose: str
) -> Float64[np.ndarray, "N S"] | Bool[np.ndarray, "N S"]:
    """How much each answer takes from each source: rows add up to 1, or are 0 where there is no source.

    Args:
      aligned: by source, the records of the answers.
      names: of the sources.
      choose: `mince`, `avgce`, or a source's name.
    """

    def of(field: str) -> np.ndarray:
        return np.array(
            [[math.inf if each is None else getattr(each, field) for each in source] for source in aligned]
        ).T

    bits = of("bits")
    has_one = np.isfinite(bits).any(axis=1)
    if choose == "avgce":
        shares = np.zeros(bits.shape)
        shares[has_one] = avg_ce(of("nats")[has_one])
        return shares
    if choose != "mince":
        return np.isfinite(bits) & (np.array(names) == choose)
    return (np.arange(len(names)) == min_ce(bits)[:, None]) & has_one[:, None]


def describe(fused: Mapping[str, float]) -> str:
    """One line of the counts of `with_soft_targets` or `with_chunks`.

    Example:
      >>> describe({"targets": 8, "places": 4, "mass": 3.8, "examples": 2, "without": 1, "from a": 1})
      '50.0% of target tokens have a distribution, of mass 0.950; chosen: a 1; without any: 1 of 2 examples'
      >>> describe({"targets": 8, "places": 6, "chunks": 4, "examples": 2, "without": 1, "from a": 1})
      '75.0% of target tokens are in chunks, of 1.50 tokens each; chosen: a 1; without any: 1 of 2 examples'
    """
    chosen = ", ".join(f"{name[5:]} {count:,}" for name, count in fused.items() if name.startswith("from "))
    places, what, mean = fused.get("places", 0), "have a distribution", ""
    if "chunks" in fused:
        what, mean = "are in chunks", f", of {places / max(fused['chunks'], 1):.2f} tokens each"
    elif places:
        mean = f", of mass {fused['mass'] / places:.3f}"
    kept = f"{mean}; chosen: {chosen}" if places else ""
    why = "".join(f"; {fused[name]:,} records {text}" for name, text in _WHY.items() if fused.get(name))
    return (
        f"{places / max(fused['targets'], 1):.1%} of target tokens {what}{kept}; "
        f"without any: {fused.get('without', 0):,} of {fused['examples']:,} examples{why}"
    )


_WHY = {"unreadable": "are unreadable", "other": "are of another text than the target reads"}
