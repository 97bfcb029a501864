"""The end of an optimizer step: from the sums over its microbatches to the next state.

A step has exactly `batch_size` examples in as many fixed-shape microbatches as their packed rows need. Gradients are
accumulated: losses and gradients are summed, never averaged, over microbatches (`Network.accumulate`) and divided once
by the exact count, so the result does not depend on how the examples fell into rows. Each replica of the parameters
(along `slice` and `data`) accumulates its own sums; they are added over the replicas here, once per step.

The update is computed in float32. What the state keeps in bfloat16 is then rounded stochastically (`rounding`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fusejax.training.network import Accumulator
from fusejax.training.rounding import in_float32, stored
from fusejax.training.state import TrainState


def apply(
    optimizer: optax.GradientTransformationExtraArgs, state: TrainState, accumulator: Accumulator
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """The state after the step, and the step's metrics (means over the batch)."""
    sums = jax.tree.map(jnp.sum, accumulator.sums)
    gradients = jax.tree.map(lambda x: jnp.sum(x, axis=0), accumulator.gradients)
    params = in_float32(state.params)
    updates, moments = optimizer.update(gradients, in_float32(state.optimizer), params, count=sums["count"])
    new = (optax.apply_updates(params, updates), moments)
    metrics = {**means(sums), "grad_norm": optax.tree.norm(gradients) / sums["count"]}
    return TrainState(state.step + 1, *stored(new, like=state[1:], step=state.step)), metrics


def means(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Sums divided by their count, the count left out."""
    return {name: value / sums["count"] for name, value in sums.items() if name != "count"}
