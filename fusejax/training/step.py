"""The end of an optimizer step: from the sums over its microbatches to the next state.

A step has exactly `batch_size` examples in as many fixed-shape microbatches as their packed rows need. Gradients are
accumulated: losses and gradients are summed, never averaged, over microbatches (`Network.accumulate`) and divided once
by the exact count, so the result does not depend on how the examples fell into rows. Each replica of the parameters
(along `slice` and `data`) accumulates its own sums; they are added over the replicas here, once per step.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fusejax.training.network import Accumulator
from fusejax.training.state import TrainState


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
