"""Soft targets of a tokenised data set: for each target token a few ids with probabilities, fused from sidecars.

Of an example, the last assistant turn has distributions, at the places where a source's tokens have a border as well.
All other target tokens have none, and are trained on alone. Imports no JAX.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32, Int64

from fusejax.data.examples import Tokenized
from fusejax.data.token_bytes import Tokenizer, token_bytes
from fusejax.fusion.alignment import align
from fusejax.fusion.answers import Aligned, Answer, Part, Source, parts, shares_of_sources
from fusejax.fusion.choice import average
from fusejax.fusion.projection import Tail, project
from fusejax.fusion.sidecars import Sidecar
from fusejax.fusion.vocabulary import VocabularyMap


@dataclasses.dataclass(frozen=True)
class Rules:
    """How distributions are fused; see `fusejax.config.DistributionFusion`."""

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
    record that is none; one of another text); and as `from NAME`, of how many examples a source is the likeliest.

    Args:
      tokenized: examples of single sequences.
      tokenizer: the target's.
      end: the target's token that ends an answer.

    Raises:
      UserError: a tokenizer's bytes are not known, or a sidecar has two records for an example.
    """
    table = token_bytes(tokenizer)
    counts: Counter[str] = Counter()
    sources = [Source(sidecar, set(tokenized.ids), counts) for sidecar in sidecars]
    maps = [
        VocabularyMap.between(source.tokenizer, tokenizer, dict.fromkeys(source.end_of_turn, end)).table
        for source in sources
    ]
    ids = np.zeros((int(tokenized.target_lengths.sum()), rules.top_k), np.int32)
    weights = np.zeros(ids.shape, np.float32)
    for part in parts(tokenized, sources, table, end, counts):
        found = _fused(part, [source.name for source in sources], maps, rules)
        ids[part.targets], weights[part.targets] = found.ids, found.weights
        counts.update(found.counts)
    counts.update({"targets": len(ids), "examples": len(tokenized)})
    return dataclasses.replace(tokenized, soft_ids=ids, soft_weights=weights, fused=dict(counts))


@dataclasses.dataclass(frozen=True)
class _Fused:
    ids: Int32[np.ndarray, "P K"]
    weights: Float32[np.ndarray, "P K"]
    counts: Counter[str]


def _fused(part: Part, names: Sequence[str], maps: Sequence[Int32[np.ndarray, "_"]], rules: Rules) -> _Fused:
    """The fused distributions at all places of some answers, one after the other."""
    answers, aligned, _ = part
    shares = shares_of_sources(aligned, names, rules.choose)
    stops = list(itertools.accumulate(len(answer.tokens) for answer in answers))
    places, next_target = stops[-1], np.concatenate([answer.tokens for answer in answers])
    ids = np.zeros((len(names), places, rules.top_k), np.int32)
    probs = np.zeros(ids.shape, np.float32)
    weights, mass = np.zeros((2, len(names), places))
    for s, table in enumerate(maps):
        used = [i for i, each in enumerate(aligned[s]) if each is not None and shares[i, s] > 0]
        at, top_ids, top_logprobs, next_source = [], [], [], []
        for i in used:
            each = aligned[s][i]
            assert each is not None
            rows = _rows(each, answers[i])
            has_row = rows >= 0
            rows = rows[has_row]
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
            table,
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
    counts: Counter[str] = Counter(f"from {names[s]}" for s in shares[shares.any(axis=1)].argmax(axis=1))
    kept = total > 0
    counts.update({"places": int(kept.sum()), "without": int((~shares.any(axis=1)).sum())})
    counts["mass"] += float((weights * mass).sum())  # type: ignore[assignment]
    return _Fused(fused_ids, fused_probs.astype(np.float32), counts)


def _rows(aligned: Aligned, answer: Answer) -> Int64[np.ndarray, "r"]:
    """Row of the record for each of the target's places, or -1."""
    target = aligned.target_ends
    if answer.is_cut:  # the end that was cut off is a place of its own, which is no target
        target = np.append(target[:-1], aligned.source_ends[-1])
    return align(aligned.source_ends, target)[: len(answer.tokens)]


def _tempered(logprobs: Float32[np.ndarray, "P K"], temperature: float) -> Float32[np.ndarray, "P K"]:
    """At another temperature than 1, of the kept tokens alone: the others' share is not known there."""
    if temperature == 1:
        return logprobs
    scaled = logprobs / np.float32(temperature)
    highest = scaled.max(axis=1, keepdims=True)
    return scaled - highest - np.log(np.exp(scaled - highest).sum(axis=1, keepdims=True))
