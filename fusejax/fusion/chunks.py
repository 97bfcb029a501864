"""Chunks of a tokenised data set: runs of target tokens with the log-probability that a source gives the same bytes.

A chunk is what lies between two neighbouring byte borders that source and target have in common, and is cut nowhere
else. Both spell it with whole tokens, so each has one log-probability for it: the sum over its tokens. Nothing is
mapped between the vocabularies. Imports no JAX.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from fusejax.data.examples import Tokenized
from fusejax.data.records import AnswerDistributions
from fusejax.data.token_bytes import Tokenizer, token_bytes
from fusejax.fusion.answers import Aligned, Answer, Source, parts, shares_of_sources
from fusejax.fusion.sidecars import Sidecar


def common_chunks(
    source_ends: Int[np.ndarray, "s_plus_1"], target_ends: Int[np.ndarray, "n_plus_1"]
) -> tuple[Int64[np.ndarray, "s"], Int64[np.ndarray, "n"]]:
    """The chunk of each token of the source and of the target, from 1 in the order of the text; 0: in none.

    In none are tokens without bytes at a common border (a mark before the first word, say), and what comes after the
    last common border where one text is only the beginning of the other.

    Args:
      source_ends: bytes of the text before each token of the source, and of all of them; 0 first, never falling.
      target_ends: the same of the target.

    Example:
      >>> common_chunks(np.array([0, 4, 9, 12, 16, 21, 22]), np.array([0, 4, 9, 14, 21, 22]))
      (array([1, 2, 3, 3, 3, 4]), array([1, 2, 3, 3, 4]))
    """
    borders = np.intersect1d(source_ends, target_ends)

    def numbers(ends: Int[np.ndarray, "m_plus_1"]) -> Int64[np.ndarray, "m"]:
        starts, stops = ends[:-1], ends[1:]
        at_border = (starts == stops) & np.isin(starts, borders)
        inside = (stops <= borders[-1]) & ~at_border
        return np.where(inside, np.searchsorted(borders, starts, side="right"), 0)

    return numbers(source_ends), numbers(target_ends)


def with_chunks(
    tokenized: Tokenized, sidecars: Sequence[Sidecar], tokenizer: Tokenizer, end: int, choose: str
) -> Tokenized:
    """The same examples with `chunk_ids`, `chunk_logprobs` and `fused`.

    `fused` counts `targets` (target tokens), `places` (those in chunks), `chunks`, `examples`, those `without` any, and
    the rest, as `with_soft_targets` does.

    Args:
      tokenized: examples of single sequences.
      tokenizer: the target's.
      end: the target's token that ends an answer.
      choose: `mince`, or a source's name: an answer has the chunks of one source.

    Raises:
      UserError: a tokenizer's bytes are not known, or a sidecar has two records for an example.
    """
    counts: Counter[str] = Counter()
    table = token_bytes(tokenizer)
    sources = [Source(sidecar, set(tokenized.ids), counts) for sidecar in sidecars]
    ids = np.zeros(int(tokenized.target_lengths.sum()), np.int32)
    logprobs = np.zeros(ids.shape, np.float32)
    for answers, aligned, targets in parts(tokenized, sources, table, end, counts):
        shares = shares_of_sources(aligned, [source.name for source in sources], choose)
        found = [
            _chunks(aligned[s][i], answer, sources[s].end_of_turn) if shares[i, s] else _no_chunks(answer)
            for i, (answer, s) in enumerate(zip(answers, shares.argmax(axis=1).tolist(), strict=True))
        ]
        ids[targets] = np.concatenate([each for each, _ in found])
        logprobs[targets] = np.concatenate([each for _, each in found])
        counts.update(f"from {sources[s].name}" for s in shares[shares.any(axis=1)].argmax(axis=1))
        counts["without"] += int((~shares.any(axis=1)).sum())
        counts["chunks"] += sum(int(each.max(initial=0)) for each, _ in found)
    counts.update({"places": int(np.count_nonzero(ids)), "targets": len(ids), "examples": len(tokenized), "chunks": 0})
    return dataclasses.replace(tokenized, chunk_ids=ids, chunk_logprobs=logprobs, fused=dict(counts))


def _no_chunks(answer: Answer) -> tuple[Int32[np.ndarray, "r"], Float32[np.ndarray, "r"]]:
    return np.zeros(len(answer.tokens), np.int32), np.zeros(len(answer.tokens), np.float32)


def _chunks(
    aligned: Aligned | None, answer: Answer, end_of_turn: Collection[int]
) -> tuple[Int32[np.ndarray, "r"], Float32[np.ndarray, "r"]]:
    """The chunk of each of the answer's tokens, and at the last one of each chunk the source's log-probability."""
    assert aligned is not None
    ids, logprobs = _no_chunks(answer)
    theirs, ours = common_chunks(aligned.source_ends, aligned.target_ends)
    sums = np.bincount(theirs, aligned.record.logprobs.astype(np.float64), minlength=int(ours.max(initial=0)) + 1)
    ids[: len(ours)] = ours
    end = _end_of_turn(aligned.record, end_of_turn)
    if not answer.is_cut and np.isfinite(end):
        ids[-1] = len(sums)
        sums = np.append(sums, end)
    last = np.flatnonzero((ids > 0) & (np.append(ids[1:], 0) != ids))
    logprobs[last] = np.minimum(sums[ids[last]], 0)
    return ids, logprobs


def _end_of_turn(record: AnswerDistributions, ids: Collection[int]) -> float:
    """The source's log-probability that the turn ends, by its likeliest tokens there; -inf where none of them is it."""
    is_end = np.isin(record.top_ids[-1], list(ids))
    return float(np.logaddexp.reduce(record.top_logprobs[-1, is_end].astype(np.float64), initial=-np.inf))
