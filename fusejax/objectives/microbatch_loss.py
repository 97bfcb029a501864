"""The loss of a task, as sums over the rows of a microbatch."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from fusejax.data.batch import Microbatch
from fusejax.data.records import ANSWERS
from fusejax.objectives.alm import alm_losses, binary_cross_entropy, ends_chunk
from fusejax.objectives.fusion import fusion_losses, teacher_entropy
from fusejax.objectives.logprobs import Logprobs
from fusejax.objectives.losses import PairLoss
from fusejax.objectives.preference import Pairs, mean_logprobs, segment_sums
from fusejax.objectives.sft import sft_loss

Sums = dict[str, Float32[Array, ""]]
Loss = Callable[[Logprobs, Microbatch], Sums]
"""From log-probabilities of the target tokens (0 elsewhere) to sums over a microbatch; `loss` is differentiated."""


def make_loss(
    preference: PairLoss | None, clm_weight: float | None = None, chunk_temperature: float | None = None
) -> Loss:
    """The preference loss if there is a section `preference`; else with `clm_weight` explicit fusion's, else SFT's.

    With `chunk_temperature` the fusion is of chunks, by approximate likelihood matching, else of distributions.
    """
    if preference is not None:
        return functools.partial(preference_sums, preference)
    if clm_weight is None:
        return sft_sums
    if chunk_temperature is None:
        return functools.partial(fusion_sums, clm_weight)
    return functools.partial(alm_sums, clm_weight, chunk_temperature)


def sft_sums(logprobs: Logprobs, microbatch: Microbatch) -> Sums:
    """`loss`, and `count`, the number of target tokens; with weights, each token counts by that of its example."""
    weights = _token_weights(microbatch)
    if weights is not None:
        return {"loss": sft_loss(weights * logprobs.target, weights > 0), "count": jnp.sum(weights)}
    mask = microbatch["loss_mask"]
    return {"loss": sft_loss(logprobs.target, mask), "count": jnp.sum(mask, dtype=jnp.float32)}


def fusion_sums(clm_weight: float, logprobs: Logprobs, microbatch: Microbatch) -> Sums:
    """As `sft_sums`; and of what the loss is made: `clm`, `fusion_ce`, the `teacher_entropy` below which that cannot
    fall, and `fused`, the number of target tokens with a distribution. Without any, it is plain SFT: an evaluation."""
    if logprobs.soft is None:
        return sft_sums(logprobs, microbatch)
    probabilities, total = microbatch["soft_weights"], _total(microbatch)
    return {
        **sft_sums(logprobs, microbatch),
        "loss": total(fusion_losses(logprobs.target, logprobs.soft, probabilities, clm_weight)),
        "clm": total(-logprobs.target),
        "fusion_ce": total(-logprobs.soft),
        "teacher_entropy": total(teacher_entropy(probabilities)),
        "fused": total(jnp.any(probabilities > 0, axis=-1).astype(jnp.float32)),
    }


def alm_sums(clm_weight: float, temperature: float, logprobs: Logprobs, microbatch: Microbatch) -> Sums:
    """As `sft_sums`; and of what the loss is made: `clm`, `alm`, the `teacher_entropy` below which that cannot fall,
    `fused`, the number of target tokens in chunks, and the number of `chunks`. Without any, it is plain SFT: an
    evaluation.

    The loss of a token in a chunk is `clm_weight` times its cross entropy. The chunk's, times what is left to 1, is
    added once, not for each of its tokens: it is the matter of all of them, and grows with their number.
    """
    if "chunk_ids" not in microbatch:
        return sft_sums(logprobs, microbatch)
    ids, source, total = microbatch["chunk_ids"], microbatch["chunk_logprobs"], _total(microbatch)
    clm, alm = -logprobs.target, alm_losses(logprobs.target, ids, source, temperature)
    last = ends_chunk(ids)
    entropy = jnp.where(last, temperature * binary_cross_entropy(source, source, temperature), 0.0)
    return {
        **sft_sums(logprobs, microbatch),
        "loss": total(jnp.where(ids > 0, clm_weight, 1.0) * clm + (1.0 - clm_weight) * alm),
        "clm": total(clm),
        "alm": total(alm),
        "teacher_entropy": total(entropy),
        "fused": total((ids > 0).astype(jnp.float32)),
        "chunks": total(last.astype(jnp.float32)),
    }


def _total(microbatch: Microbatch) -> Callable[[Float[Array, "R L"]], Float[Array, ""]]:
    """The sum over target tokens, each counting by the weight of its example."""
    mask, weights = microbatch["loss_mask"], _token_weights(microbatch)

    def total(values: Float[Array, "R L"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(mask, values if weights is None else weights * values, 0.0))

    return total


def _token_weights(microbatch: Microbatch) -> Float[Array, "R L"] | None:
    """The weight of each target token's example, 0 for other tokens; None where examples have no weights."""
    if "weights" not in microbatch:
        return None
    # Segment 0 is padding, and has no weight.
    by_segment = jnp.pad(microbatch["weights"], ((0, 0), (1, 0)))
    weights = jnp.take_along_axis(by_segment, microbatch["segment_ids"], axis=1)
    return jnp.where(microbatch["loss_mask"], weights, 0.0)


def preference_sums(loss: PairLoss, logprobs: Logprobs, microbatch: Microbatch) -> Sums:
    """Sums over pairs or triples, weighted if they have weights: `loss`, `count` (of them), metrics of the rewards."""
    pairs = _pairs(loss, logprobs.target, microbatch)
    result = loss(pairs)
    losses, metrics = result.losses, dict(result.metrics)
    if loss.sft_weight:
        metrics["sft_loss"] = _chosen_loss(loss, pairs)
        losses = losses + loss.sft_weight * metrics["sft_loss"]
    is_pair = microbatch["pair_ids"] >= 0

    def total(values: Float[Array, "R P"]) -> Float[Array, ""]:
        if "weights" in microbatch:
            values = values * microbatch["weights"]
        return jnp.sum(jnp.where(is_pair, values, 0.0))

    margin = result.chosen_rewards - result.rejected_rewards
    return {
        "loss": total(losses),
        "count": total(jnp.ones_like(margin)),
        "reward_accuracy": total((margin > 0).astype(jnp.float32)),
        "reward_margin": total(margin),
        "chosen_reward": total(result.chosen_rewards),
        "rejected_reward": total(result.rejected_rewards),
        **{name: total(values) for name, values in metrics.items()},
    }


def _chosen_loss(loss: PairLoss, pairs: Pairs) -> Float[Array, "R P"]:
    """Mean negative log-likelihood of the tokens of what is chosen, per example.

    That is the first term of RPO, Pang et al. 2024 (arXiv:2404.19733), and TRL's `sft` loss of a batch of one pair.
    """
    chosen = mean_logprobs(pairs.chosen_logprobs, pairs.chosen_lengths)
    if pairs.source_logprobs is not None and pairs.source_lengths is not None:
        share = loss.source_share(pairs)
        chosen = share * mean_logprobs(pairs.source_logprobs, pairs.source_lengths) + (1 - share) * chosen
    return -chosen


def _pairs(loss: PairLoss, logprobs: Float[Array, "R L"], microbatch: Microbatch) -> Pairs:
    """What the loss is given."""
    answers = len(ANSWERS[loss.kind])
    *source, chosen, rejected = answer_sums(logprobs, microbatch, answers)
    lengths = answer_sums(microbatch["loss_mask"].astype(jnp.int32), microbatch, answers)
    *source_lengths, chosen_lengths, rejected_lengths = lengths
    references = microbatch.get("reference_chosen"), microbatch.get("reference_rejected")
    pairs = Pairs(chosen, rejected, chosen_lengths, rejected_lengths, *references)
    if source:
        pairs = pairs._replace(
            source_logprobs=source[0],
            source_lengths=source_lengths[0],
            reference_source_logprobs=microbatch.get("reference_source"),
        )
    if loss.fused_reference is not None:
        bounds = [
            tuple(microbatch[f"reference_{side}_{end}"] for end in ("low", "high")) for side in ("chosen", "rejected")
        ]
        pairs = pairs._replace(chosen_bounds=bounds[0], rejected_bounds=bounds[1])
    if loss.needs_progress:
        pairs = pairs._replace(progress=jnp.broadcast_to(microbatch["progress"], chosen.shape))
    return pairs


def answer_sums(
    values: Float[Array, "R L"] | Int[Array, "R L"], microbatch: Microbatch, answers: int
) -> tuple[Float[Array, "R P"] | Int[Array, "R P"], ...]:
    """Sums over each example's first response, over its second, ...; 0 where a slot for an example is empty."""
    sums = segment_sums(values, microbatch["segment_ids"], answers * microbatch["pair_ids"].shape[1])
    return tuple(sums[:, i::answers] for i in range(answers))
