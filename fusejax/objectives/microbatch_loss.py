"""The loss of a task, as sums over the rows of a microbatch."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from fusejax.data.batch import Microbatch
from fusejax.data.records import ANSWERS
from fusejax.objectives.fusion import fusion_losses, teacher_entropy
from fusejax.objectives.logprobs import Logprobs
from fusejax.objectives.losses import PairLoss
from fusejax.objectives.preference import Pairs, segment_sums
from fusejax.objectives.sft import sft_loss

Sums = dict[str, Float32[Array, ""]]
Loss = Callable[[Logprobs, Microbatch], Sums]
"""From log-probabilities of the target tokens (0 elsewhere) to sums over a microbatch; `loss` is differentiated."""


def make_loss(preference: PairLoss | None, clm_weight: float | None = None) -> Loss:
    """The preference loss if there is a section `preference`; else with `clm_weight` explicit fusion's, else SFT's."""
    if preference is not None:
        return functools.partial(preference_sums, preference)
    return sft_sums if clm_weight is None else functools.partial(fusion_sums, clm_weight)


def sft_sums(logprobs: Logprobs, microbatch: Microbatch) -> Sums:
    """`loss`, and `count`, the number of target tokens."""
    mask = microbatch["loss_mask"]
    return {"loss": sft_loss(logprobs.target, mask), "count": jnp.sum(mask, dtype=jnp.float32)}


def fusion_sums(clm_weight: float, logprobs: Logprobs, microbatch: Microbatch) -> Sums:
    """As `sft_sums`; and of what the loss is made: `clm`, `fusion_ce`, the `teacher_entropy` below which that cannot
    fall, and `fused`, the number of target tokens with a distribution. Without any, it is plain SFT: an evaluation."""
    if logprobs.soft is None:
        return sft_sums(logprobs, microbatch)
    mask, weights = microbatch["loss_mask"], microbatch["soft_weights"]

    def total(values: Float[Array, "R L"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(mask, values, 0.0))

    return {
        "loss": total(fusion_losses(logprobs.target, logprobs.soft, weights, clm_weight)),
        "count": jnp.sum(mask, dtype=jnp.float32),
        "clm": sft_loss(logprobs.target, mask),
        "fusion_ce": -total(logprobs.soft),
        "teacher_entropy": total(teacher_entropy(weights)),
        "fused": total(jnp.any(weights > 0, axis=-1).astype(jnp.float32)),
    }


def preference_sums(loss: PairLoss, logprobs: Logprobs, microbatch: Microbatch) -> Sums:
    """Sums over pairs or triples: `loss`, `count` (of them), and metrics of the rewards."""
    result = loss(_pairs(loss, logprobs.target, microbatch))
    is_pair = microbatch["pair_ids"] >= 0

    def total(values: Float[Array, "R P"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(is_pair, values, 0.0))

    margin = result.chosen_rewards - result.rejected_rewards
    return {
        "loss": total(result.losses),
        "count": total(jnp.ones_like(margin)),
        "reward_accuracy": total((margin > 0).astype(jnp.float32)),
        "reward_margin": total(margin),
        "chosen_reward": total(result.chosen_rewards),
        "rejected_reward": total(result.rejected_rewards),
        **{name: total(values) for name, values in result.metrics.items()},
    }


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
    if loss.needs_progress:
        pairs = pairs._replace(progress=jnp.broadcast_to(microbatch["progress"], chosen.shape))
    return pairs


def answer_sums(
    values: Float[Array, "R L"] | Int[Array, "R L"], microbatch: Microbatch, answers: int
) -> tuple[Float[Array, "R P"] | Int[Array, "R P"], ...]:
    """Sums over each example's first response, over its second, ...; 0 where a slot for an example is empty."""
    sums = segment_sums(values, microbatch["segment_ids"], answers * microbatch["pair_ids"].shape[1])
    return tuple(sums[:, i::answers] for i in range(answers))
