"""One optimizer step, as two compiled programs: add up a microbatch's gradients, then apply their sum.

A step has exactly `batch_size` examples in as many fixed-shape microbatches as their packed rows need. Losses and
gradients are summed, never averaged, over microbatches and divided once by the exact count, so the result does not
depend on how the examples fell into rows. Replicas of the parameters (along `slice` and `data`) add up on their own,
and exchange their sums once a step.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from fusejax.config import PreferenceConfig
from fusejax.distributed.sharding import BATCH, parameter_specs, with_replicas
from fusejax.objectives.preference import Pairs, dpo, segment_sums
from fusejax.objectives.sft import sft_loss
from fusejax.training.network import Loss, Network, Rows, Sums
from fusejax.training.state import Params, TrainState

Microbatch = Mapping[str, Array]
"""`network.Rows`; for pairs with `pair_ids` int32 [R, P] (-1 where a slot is empty) and `reference_chosen,
reference_rejected` float32 [R, P]."""


class Accumulator(NamedTuple):
    gradients: Params
    """float32, summed over the microbatches so far; a leading axis has one entry for each replica of the parameters."""
    sums: dict[str, Float32[Array, "devices"]]
    """What the loss returns, summed likewise; one entry for each part that rows are split into."""


def make_loss(preference: PreferenceConfig | None) -> Loss:
    """The summed loss of rows: of pairs if there is a preference section, else of single conversations.

    It returns `loss` and `count` (tokens for sft, pairs for dpo), for pairs also the rewards.
    """

    def sft_sums(logprobs: Float[Array, "R L"], rows: Rows) -> Sums:
        return {
            "loss": sft_loss(logprobs, rows["loss_mask"]),
            "count": jnp.sum(rows["loss_mask"], dtype=jnp.float32),
        }

    def preference_sums(logprobs: Float[Array, "R L"], rows: Rows) -> Sums:
        assert preference is not None
        lengths = pair_sums(rows["loss_mask"].astype(jnp.int32), rows)
        pairs = Pairs(*pair_sums(logprobs, rows), rows["reference_chosen"], rows["reference_rejected"], *lengths)
        result = dpo(
            pairs,
            beta=preference.beta,
            length_normalized=preference.length_normalized,
            label_smoothing=preference.label_smoothing,
        )
        is_pair = rows["pair_ids"] >= 0

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


def pair_sums(values: Float[Array, "R L"], rows: Rows) -> tuple[Float[Array, "R P"], Float[Array, "R P"]]:
    """Sums over each pair's chosen and rejected response, by slot; 0 where a slot is empty."""
    sums = segment_sums(values, rows["segment_ids"], 2 * rows["pair_ids"].shape[1])
    return sums[:, 0::2], sums[:, 1::2]


class Passes:
    """A network's passes as functions of whole arrays, which lie over the mesh as `sharding.RULES` says."""

    def __init__(self, network: Network, loss: Loss, params: Params, mesh: Mesh):
        """`params` may be shapes."""
        self._network, self._loss, self._mesh = network, loss, mesh
        self._params = parameter_specs(params, mesh)
        self._accumulator = Accumulator(jax.tree.map(with_replicas, self._params), BATCH)  # type: ignore[arg-type]

    def accumulate(self, params: Params, accumulator: Accumulator, rows: Microbatch) -> Accumulator:
        """The accumulator with one microbatch's gradients and sums added."""

        def local(params: Params, accumulator: Accumulator, rows: Rows) -> Accumulator:
            own = jax.tree.map(lambda x: x[0], accumulator)
            gradients, sums = self._network.add_gradients(params, own.gradients, rows, self._loss)
            return jax.tree.map(lambda x: x[None], Accumulator(gradients, jax.tree.map(jnp.add, own.sums, sums)))

        return self._mapped(local, self._params, self._accumulator, BATCH, out=self._accumulator)(
            params, accumulator, rows
        )

    def evaluate(self, params: Params, rows: Microbatch) -> Sums:
        """The sums of the loss over a microbatch."""

        def local(params: Params, rows: Rows) -> Sums:
            return jax.tree.map(lambda x: x[None], self._loss(self._network.logprobs(params, rows), rows))

        return jax.tree.map(jnp.sum, self._mapped(local, self._params, BATCH, out=BATCH)(params, rows))

    def pair_logprobs(self, params: Params, rows: Microbatch) -> tuple[Array, Float[Array, "R P"], Float[Array, "R P"]]:
        """`pair_ids`, and the summed log-probabilities of the chosen and the rejected responses."""

        def local(params: Params, rows: Rows):
            return rows["pair_ids"], *pair_sums(self._network.logprobs(params, rows), rows)

        return self._mapped(local, self._params, BATCH, out=BATCH)(params, rows)

    def _mapped(self, function: Any, *specs: Any, out: Any) -> Any:
        return jax.shard_map(function, mesh=self._mesh, in_specs=specs, out_specs=out, check_vma=False)


def apply(
    optimizer: optax.GradientTransformationExtraArgs, state: TrainState, accumulator: Accumulator
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """The state after the step, and the step's metrics (means over the batch)."""
    sums = jax.tree.map(jnp.sum, accumulator.sums)
    gradients = jax.tree.map(lambda x: jnp.sum(x, axis=0), accumulator.gradients)
    updates, moments = optimizer.update(gradients, state.optimizer, state.params, count=sums["count"])
    metrics = {**means(sums), "grad_norm": optax.tree.norm(gradients) / sums["count"]}
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), moments), metrics


def means(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Sums divided by their count, the count left out."""
    return {name: value / sums["count"] for name, value in sums.items() if name != "count"}
