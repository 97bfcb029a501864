"""The training state, which an optimizer step updates, and its layout over the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from fusejax.distributed.sharding import parameter_shardings, replicated
from fusejax.training.network import Params


class TrainState(NamedTuple):
    step: Int[Array, ""]
    """Optimizer steps done."""
    params: Params
    optimizer: optax.OptState


def abstract_state(
    params: Params, optimizer: optax.GradientTransformation, mesh: Mesh, *, moments: DTypeLike
) -> TrainState:
    """Shapes, dtypes and shardings of the state; `params` may be shapes, too."""
    shapes = jax.eval_shape(initializer(optimizer, moments=moments), params)
    shardings = state_shardings(shapes, optimizer, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def state_shardings(state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """A `TrainState` of shardings: moments are split like their parameters, counters are replicated."""
    params = parameter_shardings(state.params, mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.optimizer,
        params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState(replicated(mesh), params, moments)  # type: ignore[arg-type]


def initializer(optimizer: optax.GradientTransformation, *, moments: DTypeLike) -> Callable[[Params], TrainState]:
    """The function from parameters to the state before the first step, with moments of a dtype of their own."""

    def init(params: Params) -> TrainState:
        # Optax gives moments the dtype of the parameters that it sees.
        seen = jax.tree.map(lambda x: x.astype(moments), params)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(seen))

    return init
