"""Soft targets of a tokenised data set: for each target token a few ids with probabilities, fused from sidecars.

Of an example, the last assistant turn has distributions, at the places where a source's tokens have a border as well.
All other target tokens have none, and are trained on alone. Imports no JAX.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int32, Int64

from fusejax.common.cli import UserError
from fusejax.data.examples import Tokenized
from fusejax.data.records import AnswerDistributions, RecordError
from fusejax.data.token_bytes import Tokenizer, token_bytes
from fusejax.fusion.alignment import align
from fusejax.fusion.choice import average, avg_ce, bits_per_byte, min_ce
from fusejax.fusion.projection import Tail, project
from fusejax.fusion.sidecars import Sidecar
from fusejax.fusion.vocabulary import VocabularyMap

CHUNK = 256
"""Examples whose distributions are in memory at once, as a sidecar has them."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """How distributions are fused; see `fusejax.config.FusionConfig`."""

    choose: str
    top_k: int
    tail: Tail
    temperature: float


def with_soft_targets(
    tokenized: Tokenized, sidecars: Sequence[Sidecar], tokenizer: Tokenizer, end: int, rules: Rules
) -> Tokenized:
    """The same examples with `soft_ids`, `soft_weights` and `fused`.

    `fused` counts `targets` (target tokens), `places` (those with a distribution), `mass` (the sum of the source's
    probability that they hold), `examples`, and those `without` any distribution, `unreadable` and `other` ones (a
    record that is none; one of another text); and by the source's name, how many examples have it as the likeliest.

    Args:
      tokenized: examples of single sequences.
      tokenizer: the target's.
      end: the target's token that ends an answer.

    Raises:
      UserError: a tokenizer's bytes are not known, or a sidecar has two records for an example.
    """
    table = token_bytes(tokenizer)
    counts: Counter[str] = Counter()
    sources = [_Source(sidecar, tokenizer, end, set(tokenized.ids), counts) for sidecar in sidecars]
    ids = np.zeros((int(tokenized.target_lengths.sum()), rules.top_k), np.int32)
    weights = np.zeros(ids.shape, np.float32)
    ends, cut = np.cumsum(tokenized.target_lengths), set(tokenized.changes.get("cut", ()))
    for start in range(0, len(tokenized), CHUNK):
        answers = [
            _Answer.last(tokenized, index, table, end, cut=tokenized.ids[index] in cut)
            for index in range(len(tokenized))[start : start + CHUNK]
        ]
        names_here = tokenized.ids[start : start + CHUNK]
        found = _fused(answers, [source.aligned(names_here, answers, counts) for source in sources], sources, rules)
        last = zip(ends[start:], answers, strict=False)
        rows = np.concatenate([np.arange(stop - len(answer.tokens), stop) for stop, answer in last])
        ids[rows], weights[rows] = found.ids, found.weights
        counts.update(found.counts)
    counts.update({"targets": len(ids), "examples": len(tokenized)})
    return dataclasses.replace(tokenized, soft_ids=ids, soft_weights=weights, fused=dict(counts))


def describe(fused: Mapping[str, float]) -> str:
    """One line of the counts.

    Example:
      >>> describe({"targets": 8, "places": 4, "mass": 3.8, "examples": 2, "without": 1, "a": 1})
      '50.0% of target tokens have a distribution, of mass 0.950; chosen: a 1; without any: 1 of 2 examples'
    """
    about = ("targets", "places", "mass", "examples", "without", "unreadable", "other")
    chosen = ", ".join(f"{name} {count:,}" for name, count in fused.items() if name not in about)
    places = fused.get("places", 0)
    kept = f", of mass {fused['mass'] / places:.3f}; chosen: {chosen}" if places else ""
    why = "".join(f"; {fused[name]:,} records {text}" for name, text in _WHY.items() if fused.get(name))
    return (
        f"{places / max(fused['targets'], 1):.1%} of target tokens have a distribution{kept}; "
        f"without any: {fused.get('without', 0):,} of {fused['examples']:,} examples{why}"
    )


_WHY = {"unreadable": "are unreadable", "other": "are of another text than the target reads"}


@dataclasses.dataclass(frozen=True)
class _Answer:
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
    def last(cls, tokenized: Tokenized, index: int, table: Sequence[bytes | None], end: int, *, cut: bool) -> "_Answer":
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
class _Aligned:
    """A source's record of an answer, beside the target's tokens."""

    record: AnswerDistributions
    rows: Int64[np.ndarray, "r"]
    """Row of the record for each of the target's places, or -1."""
    bits: float
    """Cross-entropy of the answer under the source, in bits per byte."""
    nats: float
    """The same in nats per token of the target."""


class _Source:
    """A sidecar, ready to be read beside the target's tokens."""

    def __init__(self, sidecar: Sidecar, target: Tokenizer, end: int, wanted: set[str], counts: Counter[str]):
        tokenizer = sidecar.tokenizer()
        self.name = sidecar.source
        self._table = token_bytes(tokenizer)
        self.map = VocabularyMap.between(tokenizer, target, dict.fromkeys(sidecar.end_of_turn, end)).table
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

    def aligned(self, names: Sequence[str], answers: Sequence[_Answer], counts: Counter[str]) -> list[_Aligned | None]:
        found: list[_Aligned | None] = []
        for name, answer in zip(names, answers, strict=True):
            index = self._indices.get(name)
            record = None if index is None or not answer.is_last else self._records[index]
            if not isinstance(record, AnswerDistributions):
                found.append(None)
                continue
            found.append(self._align(record, answer))
            counts["other"] += found[-1] is None
        return found

    def _align(self, record: AnswerDistributions, answer: _Answer) -> _Aligned | None:
        """None where the two do not spell the same, but for white space around it, and a text that was cut."""
        spelled = b"".join(self._table[token] or b"" for token in record.tokens.tolist())
        text = spelled.strip()
        if not text or len(spelled) - record.ends[-1] not in (0, 1):  # 1: SentencePiece's space before a text
            return None
        begin = len(answer.spelled.rstrip()) - len(text)  # a template may write something before an answer
        if begin < 0 or answer.spelled[begin : begin + len(text)] != text:
            begin = len(answer.spelled) - len(answer.spelled.lstrip())
            if not answer.is_cut or not text.startswith(answer.spelled[begin:]):
                return None
        size = len(text)
        source = np.clip(record.ends + (len(spelled) - record.ends[-1]) - spelled.index(text), 0, size)
        target = np.clip(answer.before - begin, 0, size)
        if answer.is_cut:  # the end that was cut off is a place of its own, which is no target
            target[-1] = size
        rows = align(source, target)[: len(answer.tokens)]
        total = float(record.logprobs.sum(dtype=np.float64))
        bits = float(bits_per_byte(np.array([total]), np.array([size]))[0])
        covered = target[len(answer.tokens) - 1] if answer.is_cut else size
        return _Aligned(record, rows, bits, bits * math.log(2) * float(covered) / len(answer.tokens))


@dataclasses.dataclass(frozen=True)
class _Fused:
    ids: Int32[np.ndarray, "P K"]
    weights: Float32[np.ndarray, "P K"]
    counts: Counter[str]


def _fused(
    answers: Sequence[_Answer], aligned: Sequence[Sequence[_Aligned | None]], sources: Sequence[_Source], rules: Rules
) -> _Fused:
    """The fused distributions at all places of some answers, one after the other."""
    shares = _shares(aligned, [source.name for source in sources], rules.choose)
    stops = list(itertools.accumulate(len(answer.tokens) for answer in answers))
    places, next_target = stops[-1], np.concatenate([answer.tokens for answer in answers])
    ids = np.zeros((len(sources), places, rules.top_k), np.int32)
    probs = np.zeros(ids.shape, np.float32)
    weights, mass = np.zeros((2, len(sources), places))
    for s, source in enumerate(sources):
        used = [i for i, each in enumerate(aligned[s]) if each is not None and shares[i, s] > 0]
        at, top_ids, top_logprobs, next_source = [], [], [], []
        for i in used:
            each = aligned[s][i]
            assert each is not None
            has_row = each.rows >= 0
            rows = each.rows[has_row]
            at.append(stops[i] - len(answers[i].tokens) + np.flatnonzero(has_row))
            top_ids.append(each.record.top_ids[rows].astype(np.int64))
            top_logprobs.append(each.record.top_logprobs[rows].astype(np.float32))
            next_source.append(np.append(each.record.tokens, -1)[rows])
            weights[s, at[-1]] = shares[i, s]
        if not used:
            continue
        where = np.concatenate(at)
        logprobs = _tempered(np.concatenate(top_logprobs), rules.temperature)
        ids[s, where], probs[s, where], mass[s, where] = project(
            np.concatenate(top_ids),
            logprobs,
            np.concatenate(next_source),
            next_target[where],
            source.map,
            rules.top_k,
            rules.tail,
        )
    weights = np.where(mass > 0, weights, 0)
    total = weights.sum(axis=0)
    weights /= np.where(total > 0, total, 1)
    fused_ids, fused_probs = average(ids, probs, weights, rules.top_k)
    if rules.tail == "renormalize":
        sums = fused_probs.sum(axis=1, keepdims=True)
        fused_probs = fused_probs / np.where(sums > 0, sums, 1)
    counts: Counter[str] = Counter(sources[s].name for s in shares[shares.any(axis=1)].argmax(axis=1))
    kept = total > 0
    counts.update({"places": int(kept.sum()), "without": int((~shares.any(axis=1)).sum())})
    counts["mass"] += float((weights * mass).sum())  # type: ignore[assignment]
    return _Fused(fused_ids, fused_probs.astype(np.float32), counts)


def _shares(aligned: Sequence[Sequence[_Aligned | None]], names: Sequence[str], choose: str) -> np.ndarray:
    """How much each answer takes from each source, [N, S]: rows add up to 1, or are 0 where there is no source."""

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


def _tempered(logprobs: Float32[np.ndarray, "P K"], temperature: float) -> Float32[np.ndarray, "P K"]:
    """At another temperature than 1, of the kept tokens alone: the others' share is not known there."""
    if temperature == 1:
        return logprobs
    scaled = logprobs / np.float32(temperature)
    highest = scaled.max(axis=1, keepdims=True)
    return scaled - highest - np.log(np.exp(scaled - highest).sum(axis=1, keepdims=True))
