"""One optimizer step, as two compiled programs: add up a microbatch's gradients, then apply their sum.

A step has exactly `batch_size` examples in as many fixed-shape microbatches as their packed rows need. Losses and
gradients are summed, never averaged, over microbatches and divided once by the exact count, so the result does not
depend on how the examples fell into rows.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fusejax.config import PreferenceConfig
from fusejax.models.decoder import Decoder
from fusejax.objectives.logprobs import target_logprobs
from fusejax.objectives.preference import Pairs, dpo, segment_sums
from fusejax.objectives.sft import sft_loss
from fusejax.training.state import Params, TrainState

Microbatch = Mapping[str, Array]
"""`tokens, positions, segment_ids` int32 and `loss_mask` bool, all [R, L]; for pairs also `pair_ids` int32 [R, P]
(-1 where a slot is empty) and `reference_chosen, reference_rejected` float32 [R, P]."""

Sums = dict[str, Float[Array, ""]]
"""What a microbatch adds up: `loss` and `count` (tokens for sft, pairs for dpo), for pairs also the rewards."""

Loss = Callable[[Decoder, Microbatch], Sums]


class Accumulator(NamedTuple):
    gradients: Params
    """float32, summed over the microbatches so far."""
    sums: Sums


def make_loss(preference: PreferenceConfig | None, mesh: Mesh) -> Loss:
    """The summed loss of a microbatch: of pairs if there is a preference section, else of single conversations."""

    def sft_sums(decoder: Decoder, batch: Microbatch) -> Sums:
        return {
            "loss": sft_loss(token_logprobs(decoder, batch, mesh), batch["loss_mask"]),
            "count": jnp.sum(batch["loss_mask"], dtype=jnp.float32),
        }

    def preference_sums(decoder: Decoder, batch: Microbatch) -> Sums:
        assert preference is not None
        chosen, rejected = pair_logprobs(decoder, batch, mesh)
        lengths = segment_sums(
            batch["loss_mask"].astype(jnp.int32), batch["segment_ids"], 2 * batch["pair_ids"].shape[1]
        )
        pairs = Pairs(
            chosen,
            rejected,
            batch["reference_chosen"],
            batch["reference_rejected"],
            lengths[:, 0::2],
            lengths[:, 1::2],
        )
        result = dpo(
            pairs,
            beta=preference.beta,
            length_normalized=preference.length_normalized,
            label_smoothing=preference.label_smoothing,
        )
        is_pair = batch["pair_ids"] >= 0

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
        }

    return sft_sums if preference is None else preference_sums


def token_logprobs(decoder: Decoder, batch: Microbatch, mesh: Mesh) -> Float[Array, "R L"]:
    """float32 log-probabilities of the target tokens under the decoder, 0 elsewhere; rows lie split over `mesh`."""
    hidden = decoder(batch["tokens"], batch["positions"], batch["segment_ids"])
    return target_logprobs(
        hidden, decoder.head(), batch["tokens"], batch["loss_mask"], mesh=mesh, softcap=decoder.config.logits_softcap
    )


def pair_logprobs(decoder: Decoder, batch: Microbatch, mesh: Mesh) -> tuple[Float[Array, "R P"], Float[Array, "R P"]]:
    """Summed log-probabilities of the chosen and the rejected responses, by slot; 0 where a slot is empty."""
    slots = batch["pair_ids"].shape[1]
    sums = segment_sums(token_logprobs(decoder, batch, mesh), batch["segment_ids"], 2 * slots)
    return sums[:, 0::2], sums[:, 1::2]


def accumulate(loss: Loss, graph: nnx.GraphDef, params: Params, accumulator: Accumulator, batch: Microbatch):
    """The accumulator with one microbatch's gradients and sums added."""

    def summed(params: Params) -> tuple[Float[Array, ""], Sums]:
        sums = loss(nnx.merge(graph, params), batch)
        return sums["loss"], sums

    gradients, sums = jax.grad(summed, has_aux=True)(params)
    return Accumulator(
        jax.tree.map(lambda total, new: total + new.astype(jnp.float32), accumulator.gradients, gradients),
        jax.tree.map(jnp.add, accumulator.sums, sums),
    )


def apply(
    optimizer: optax.GradientTransformation, state: TrainState, accumulator: Accumulator
) -> tuple[TrainState, Accumulator, dict[str, Float[Array, ""]]]:
    """The state after the step, the accumulator back at zero, and the step's metrics (means over the batch)."""
    count = accumulator.sums["count"]
    gradients = jax.tree.map(lambda x: x / count, accumulator.gradients)
    updates, moments = optimizer.update(gradients, state.optimizer, state.params)
    metrics = {**means(accumulator.sums), "grad_norm": optax.tree.norm(gradients)}
    state = TrainState(state.step + 1, optax.apply_updates(state.params, updates), moments)
    return state, jax.tree.map(jnp.zeros_like, accumulator), metrics


def means(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Sums divided by their count, the count left out."""
    return {name: value / sums["count"] for name, value in sums.items() if name != "count"}
