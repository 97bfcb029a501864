"""A data set as tokens: every example that can be trained on, and for every other one the reason why not."""

import dataclasses
import datetime
import functools
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from transformers import PreTrainedTokenizerBase

from fusejax.common.chat_template import DEFAULT_DATE
from fusejax.common.cli import UserError
from fusejax.data.chat import CHANGES, Change, ChatError, Encoded, encode_conversations
from fusejax.data.records import (
    ANSWERS,
    AnswerDistributions,
    Kind,
    Message,
    PreferencePair,
    PreferenceTriple,
    Record,
    RecordError,
    SFTExample,
    Shards,
)

CHUNK = 512
"""Examples tokenised at once: the tokenizer spreads a chunk over all cores."""
FUSED = ("soft_ids", "soft_weights", "chunk_ids", "chunk_logprobs")
"""The arrays of `Tokenized` that explicit fusion makes."""


@dataclasses.dataclass(frozen=True)
class Rejection:
    """An example left out, and why.

    `reason` is a `ChatError`'s, or `bad_record`, `bad_weight` (not finite, or not above 0), `non_finite_score`,
    `unordered_pair` (chosen is not scored above rejected), `prompt_too_long`, `identical_pair` (a chosen answer and the
    rejected one have the same tokens, as far as they are kept); `detail` says what was found. Of triples, the pair that
    is unordered is that of the target.
    """

    id: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """The kept examples, in the order of the source: one sequence each (sft), or one for each of its `ANSWERS`."""

    kind: Kind
    tokens: Int32[np.ndarray, "T"]
    """All sequences, one after the other."""
    loss_mask: Bool[np.ndarray, "T"]
    """True where a token is a target; never for the first of a sequence, which nothing predicts."""
    offsets: Int64[np.ndarray, "offsets"]
    """One more than sequences: sequence s is `tokens[offsets[s]:offsets[s + 1]]`."""
    ids: list[str]
    """Of the kept examples."""
    rejected: list[Rejection]
    """In the order of the source, too."""
    changes: dict[str, list[str]]
    """What happened to kept examples (a key of `fusejax.data.chat.CHANGES`) -> their ids."""
    weights: Float32[np.ndarray, "N"] | None = None
    """Of the kept examples in the loss; None where no record has one, and all are 1."""
    soft_ids: Int32[np.ndarray, "S K"] | None = None
    """Explicit fusion: for each target token, ids that a source holds possible in its place, ..."""
    soft_weights: Float32[np.ndarray, "S K"] | None = None
    """... and their probabilities; all 0 where there is no distribution. No id stands twice in a row."""
    chunk_ids: Int32[np.ndarray, "S"] | None = None
    """Approximate likelihood matching: for each target token its chunk, from 1 in each example; 0 for none, ..."""
    chunk_logprobs: Float32[np.ndarray, "S"] | None = None
    """... and at the last token of each chunk a source's log-probability of the whole chunk; 0 elsewhere."""
    fused: dict[str, float] | None = None
    """How they came about: counts, as `fusejax.fusion.soft_targets` or `fusejax.fusion.chunks` says."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sequences_per_example(self) -> int:
        return len(ANSWERS[self.kind]) or 1

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, "N"]:
        """Tokens of each example, in all of its sequences."""
        return np.diff(self.offsets).reshape(-1, self.sequences_per_example).sum(1)

    @functools.cached_property
    def target_counts(self) -> Int64[np.ndarray, "sequences"]:
        """Target tokens of each sequence."""
        # One sequence at a time: `np.add.reduceat` or `np.cumsum` would first convert every token to 8 bytes.
        spans = itertools.pairwise(self.offsets.tolist())
        counts = [np.count_nonzero(self.loss_mask[start:stop]) for start, stop in spans]
        return np.array(counts, np.int64)

    @functools.cached_property
    def target_lengths(self) -> Int64[np.ndarray, "N"]:
        """Target tokens of each example, in all of its sequences."""
        return self.target_counts.reshape(-1, self.sequences_per_example).sum(1)

    @functools.cached_property
    def shared_lengths(self) -> Int64[np.ndarray, "N"]:
        """Tokens that all sequences of each example begin with, the prompt at least; 0 for single sequences."""
        if self.sequences_per_example == 1:
            return np.zeros(len(self), np.int64)
        return np.array([self._shared_length(i) for i in range(len(self))], np.int64)

    def _shared_length(self, example: int) -> int:
        each = self.sequences_per_example
        first, *others = (self.sequence(each * example + i)[0] for i in range(each))
        return min(_common(first, other) for other in others)

    @functools.cached_property
    def computed_lengths(self) -> Int64[np.ndarray, "N"]:
        """Tokens of each example where those that all of its sequences begin with are computed once."""
        return self.lengths - (self.sequences_per_example - 1) * self.shared_lengths

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that is trained on: it changes with the records, the tokenizer, its template and the limits."""
        digest = hashlib.sha256(self.kind.encode())
        fused = [getattr(self, name) for name in FUSED if getattr(self, name) is not None]
        for array in (self.tokens, self.loss_mask, self.offsets, *fused):
            digest.update(np.ascontiguousarray(array).data)
        if self.weights is not None:
            digest.update(self.weights.data)
        return digest.hexdigest()

    def weighted(self) -> "Tokenized":
        """The same with weights, if need be of 1."""
        return self if self.weights is not None else dataclasses.replace(self, weights=np.ones(len(self), np.float32))

    def sequence(self, index: int) -> tuple[Int32[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Tokens and loss mask of sequence `index`; example i has the sequences from `i * sequences_per_example` on."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.loss_mask[span]

    @functools.cached_property
    def _target_starts(self) -> Int64[np.ndarray, "sequences_plus_1"]:
        """The first of each example's target tokens among all, where examples are single sequences."""
        return np.cumsum([0, *self.target_lengths])

    def soft_targets(self, index: int) -> tuple[Int32[np.ndarray, "n K"], Float32[np.ndarray, "n K"]]:
        """The rows of `soft_ids` and `soft_weights` for the target tokens of sequence `index`."""
        assert self.soft_ids is not None and self.soft_weights is not None
        span = slice(self._target_starts[index], self._target_starts[index + 1])
        return self.soft_ids[span], self.soft_weights[span]

    def chunks(self, index: int) -> tuple[Int32[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
        """`chunk_ids` and `chunk_logprobs` of the target tokens of sequence `index`."""
        assert self.chunk_ids is not None and self.chunk_logprobs is not None
        span = slice(self._target_starts[index], self._target_starts[index + 1])
        return self.chunk_ids[span], self.chunk_logprobs[span]

    def summary(self) -> str:
        """One line: how many examples are kept, changed and rejected, with reasons."""
        reasons = Counter(rejection.reason for rejection in self.rejected)
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        rejected = f"{len(self.rejected):,} rejected" + (f" ({why})" if why else "")
        changed = "".join(f"{len(ids):,} {change}, " for change, ids in self.changes.items())
        return f"{len(self):,} examples, {self.lengths.sum():,} tokens; {changed}{rejected}"


def _common(one: Int32[np.ndarray, "n"], other: Int32[np.ndarray, "m"]) -> int:
    """Tokens that both begin with."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def parts(records: range, count: int) -> list[range]:
    """The records in `count` parts, one behind the other, as even as can be; of few records, some parts are empty.

    >>> parts(range(10, 15), 2), parts(range(1), 3)
    ([range(10, 12), range(12, 15)], [range(0, 0), range(0, 0), range(0, 1)])
    """
    bounds = [len(records) * i // count for i in range(count + 1)]
    return [records[start:stop] for start, stop in itertools.pairwise(bounds)]


def joined(tokenized: Sequence[Tokenized]) -> Tokenized:
    """The whole of consecutive parts, as if it had been tokenised at once."""
    lengths = [np.diff(each.offsets) for each in tokenized]
    return Tokenized(
        kind=tokenized[0].kind,
        tokens=np.concatenate([each.tokens for each in tokenized]),
        loss_mask=np.concatenate([each.loss_mask for each in tokenized]),
        offsets=np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64),
        ids=[name for each in tokenized for name in each.ids],
        rejected=[rejection for each in tokenized for rejection in each.rejected],
        weights=_joined_weights(tokenized),
        changes=_without_empty(
            {change: [name for each in tokenized for name in each.changes.get(change, [])] for change in CHANGES}
        ),
        **_joined_fused(tokenized),
    )


def _joined_fused(tokenized: Sequence[Tokenized]) -> dict[str, Any]:
    """What explicit fusion has made of all parts, which all have the same of it or nothing."""
    found = [name for name in FUSED if getattr(tokenized[0], name) is not None]
    if not found:
        return {}
    fused = [each.fused or {} for each in tokenized]
    return {
        **{name: np.concatenate([getattr(each, name) for each in tokenized]) for name in found},
        "fused": {
            # Of the whole sidecar, so each part has found the same.
            name: (max if name == "unreadable" else sum)(each.get(name, 0) for each in fused)
            for name in dict.fromkeys(itertools.chain(*fused))
        },
    }


def tokenize(
    source: Shards,
    tokenizer: PreTrainedTokenizerBase,
    *,
    records: range | None = None,
    max_length: int,
    max_prompt_length: int | None = None,
    stop_ids: Collection[int] = (),
    date: datetime.date = DEFAULT_DATE,
    drop_unordered_pairs: bool = False,
) -> Tokenized:
    """Tokenises a data set, or a part of it, with the tokenizer's own chat template.

    Args:
      source: the examples.
      tokenizer: from `fusejax.data.chat.load_tokenizer`.
      records: indices of the examples, without a gap; by default all.
      max_length: tokens per sequence; a longer one is cut at the end, and counted.
      max_prompt_length: tokens before the first target; an example with more is rejected. Default `max_length - 1`.
      stop_ids: tokens that stop generation, as of `fusejax.data.chat.encode_conversation`.
      date: today's, as far as the template is told.
      drop_unordered_pairs: reject pairs whose chosen response is not scored above the rejected one, and triples whose
        target's is not.
    """
    prompt_limit = max_length - 1 if max_prompt_length is None else max_prompt_length
    ids: list[str] = []
    sequences: list[Encoded] = []
    rejected: list[Rejection] = []
    changes: dict[str, list[str]] = {change: [] for change in CHANGES}
    weights: list[float | None] = []
    indices = range(len(source)) if records is None else records
    for start in range(0, len(indices), CHUNK):
        read = [_read(source, index, ordered=drop_unordered_pairs) for index in indices[start : start + CHUNK]]
        chunk = [record for record in read if not isinstance(record, Rejection)]
        conversations = [turns for record in chunk for turns in _conversations(record)]
        first = [_first_target(record) for record in chunk for _ in _conversations(record)]
        encoded = iter(encode_conversations(tokenizer, conversations, first=first, stop_ids=stop_ids, date=date))
        for record in read:
            if isinstance(record, Rejection):
                rejected.append(record)
                continue
            whole = [next(encoded) for _ in _conversations(record)]
            fitted = _fit(record, whole, max_length, prompt_limit)
            if isinstance(fitted, Rejection):
                rejected.append(fitted)
                continue
            ids.append(record.id)
            weights.append(_weight(record))
            sequences.extend(fitted)
            found = frozenset[Change]().union(*(sequence.changes for sequence in fitted))
            for change in found | ({"unordered"} if _is_unordered(record) else frozenset()):
                changes[change].append(record.id)
    return Tokenized(
        kind=source.kind,
        tokens=np.concatenate([np.empty(0, np.int32), *(sequence.tokens for sequence in sequences)]),
        loss_mask=np.concatenate([np.empty(0, bool), *(sequence.loss_mask for sequence in sequences)]),
        offsets=np.cumsum([0, *(len(sequence.tokens) for sequence in sequences)], dtype=np.int64),
        ids=ids,
        rejected=rejected,
        changes=_without_empty(changes),
        weights=None
        if all(weight is None for weight in weights)
        else np.array([1.0 if weight is None else weight for weight in weights], np.float32),
    )


def check_any_kept(tokenized: Tokenized, name: str) -> None:
    """Raises `UserError` where all examples of the data `name` are rejected."""
    rejected = tokenized.rejected
    if not tokenized.ids:
        raise UserError(f"data {name}: all {len(rejected)} examples are rejected, as {_commonest(rejected)}")


def _joined_weights(tokenized: Sequence[Tokenized]) -> Float32[np.ndarray, "N"] | None:
    if all(each.weights is None for each in tokenized):
        return None
    return np.concatenate([each.weighted().weights for each in tokenized])


def _without_empty(changes: dict[str, list[str]]) -> dict[str, list[str]]:
    return {change: names for change, names in changes.items() if names}


def _read(source: Shards, index: int, *, ordered: bool) -> Record | Rejection:
    try:
        record = source[index]
    except RecordError as error:
        return Rejection(f"#{index}", "bad_record", str(error))
    assert not isinstance(record, AnswerDistributions), "of shards of another kind than a task trains on"
    weight = _weight(record)
    if weight is not None and not (math.isfinite(weight) and weight > 0):
        return Rejection(record.id, "bad_weight", f"weight is {weight}")
    scores = _scores(record)
    for name, score in scores.items():
        if score is not None and not math.isfinite(score):
            return Rejection(record.id, "non_finite_score", f"{name} is {score}")
    if ordered and _is_unordered(record):
        *_, (name, score), (rejected_name, rejected_score) = scores.items()
        return Rejection(record.id, "unordered_pair", f"{name} {score} is not above {rejected_name} {rejected_score}")
    return record


def _weight(record: Record) -> float | None:
    return None if isinstance(record, PreferenceTriple) else record.weight


def _scores(record: Record) -> dict[str, float | None]:
    """The scores of its answers, in the order of `ANSWERS`."""
    if isinstance(record, PreferencePair):
        return {"chosen_score": record.chosen_score, "rejected_score": record.rejected_score}
    if isinstance(record, PreferenceTriple):
        names = ("source_score", "target_score", "rejected_score")
        return {name: getattr(record, name) for name in names}
    return {}


def _is_unordered(record: Record) -> bool:
    """Whether scores say that the chosen answer, the target's of triples, is not better than the rejected one."""
    *_, chosen, rejected = (None, None, *_scores(record).values())
    return chosen is not None and rejected is not None and chosen <= rejected


def _conversations(record: Record) -> list[list[Message]]:
    if isinstance(record, SFTExample):
        return [record.messages]
    return [record.prompt + getattr(record, answer) for answer in _answers(record)]


def _answers(record: PreferencePair | PreferenceTriple) -> tuple[str, ...]:
    return ANSWERS["dpo" if isinstance(record, PreferencePair) else "wrpo"]


def _first_target(record: Record) -> int:
    """The first turn that can be a target: of pairs and triples, all the assistant says after the prompt."""
    return 0 if isinstance(record, SFTExample) else len(record.prompt)


def _fit(
    record: Record, whole: list[Encoded | ChatError], max_length: int, prompt_limit: int
) -> list[Encoded] | Rejection:
    """The sequences of one example within the limits, or why they cannot be used."""
    sequences = []
    for encoded in whole:
        if isinstance(encoded, ChatError):
            return Rejection(record.id, encoded.reason, encoded.detail)
        tokens, loss_mask, changes = encoded
        prompt_length = int(loss_mask.argmax())
        if prompt_length > prompt_limit:
            return Rejection(record.id, "prompt_too_long", f"{prompt_length} tokens, at most {prompt_limit}")
        loss_mask[0] = False
        if loss_mask[max_length:].any():
            changes = changes | {"cut"}
        # Copies, so that the whole of a long conversation is not kept alive by its beginning.
        sequences.append(Encoded(tokens[:max_length].copy(), loss_mask[:max_length].copy(), changes))
    if not isinstance(record, SFTExample):
        *chosen, rejected = sequences
        for name, sequence in zip(_answers(record), chosen, strict=False):
            if np.array_equal(sequence.tokens, rejected.tokens):
                cut = " when cut" if "cut" in sequence.changes | rejected.changes else ""
                return Rejection(record.id, "identical_pair", f"{name} and rejected are the same{cut}")
    return sequences


def _commonest(rejected: list[Rejection]) -> str:
    (reason, count), *_ = Counter(rejection.reason for rejection in rejected).most_common(1)
    example = next(rejection for rejection in rejected if rejection.reason == reason)
    return f"{reason} ({count}), for example {example.id!r}: {example.detail}"
