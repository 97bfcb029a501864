"""Collectives with their gradients, for use inside a `jax.shard_map` that is manual over all mesh axes.

Gradients are written out here, not derived by JAX's tracking of replicated values (hence `check_vma=False`), so that
the code shows what each device sends.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from fusejax.distributed.sharding import mesh_axes


def gather_layer(params: Any, specs: Any, axis: str, dtype: DTypeLike, *, exchanges: bool = False) -> Any:
    """All-gathers a layer's parameters along `axis` (FSDP), where `specs` says that they are split by it.

    The backward pass is `scatter_sum`: each device gets the gradient of its own part, summed over `axis`. Both send
    `dtype`, the compute dtype. Other axes stay split.

    Args:
      exchanges: as of `scatter_sum`.
    """

    def gather(x: Array, spec: PartitionSpec) -> Array:
        split = [axis in mesh_axes(entry) for entry in spec]
        if any(split):
            return _gather(x.astype(dtype), axis, split.index(True), exchanges)
        return sum_gradient(x, axis)

    return jax.tree.map(gather, params, specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x: Array, axis: str, dimension: int, exchanges: bool) -> Array:
    return jax.lax.all_gather(x, axis, axis=dimension, tiled=True)


_gather.defvjp(
    lambda x, axis, dimension, exchanges: (_gather(x, axis, dimension, exchanges), None),
    lambda axis, dimension, exchanges, _, cotangent: (
        scatter_sum(cotangent, axis, dimension=dimension, exchanges=exchanges),
    ),
)


def scatter_sum(x: Array, axis: str, *, dimension: int, exchanges: bool) -> Array:
    """The sum of `x` over the devices along `axis`, of which each gets its own part of `dimension`.

    Args:
      exchanges: each device sends all others their parts, and adds up what it gets in float32. Otherwise a
        reduce-scatter. Both send the same number of bytes; see `fusejax.distributed.tuning`.
    """
    if not exchanges:
        return jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)
    parts = jax.lax.all_to_all(x, axis, split_axis=dimension, concat_axis=dimension, tiled=True)
    size = jax.lax.axis_size(axis)
    parts = parts.reshape(*x.shape[:dimension], size, -1, *x.shape[dimension + 1 :])
    return jnp.sum(parts, axis=dimension, dtype=jnp.float32).astype(x.dtype)


def sum_unsplit(params: Any, specs: Any, axis: str) -> Any:
    """Applies `sum_gradient` to the parameters that `axis` does not split, by `specs`; the others stay as they are."""

    def summed(x: Array, spec: PartitionSpec) -> Array:
        return x if any(axis in mesh_axes(entry) for entry in spec) else sum_gradient(x, axis)

    return jax.tree.map(summed, params, specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_gradient(x: Array, axis: str) -> Array:
    """Returns `x`, replicated along `axis` but used differently on each device; its gradient is summed over `axis`.

    Every replicated parameter that is applied to activations which differ along `axis` must go through this. Without
    it, the forward values are right, but each device has only a part of the gradient. See `network.Network`.
    """
    return x


sum_gradient.defvjp(lambda x, axis: (x, None), lambda axis, _, cotangent: (jax.lax.psum(cotangent, axis),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_parts(x: Array, axis: str) -> Array:
    """The sum over the devices along `axis`; it is replicated, as must be everything computed from it."""
    return jax.lax.psum(x, axis)


sum_parts.defvjp(lambda x, axis: (jax.lax.psum(x, axis), None), lambda axis, _, cotangent: (cotangent,))


def as_stored(x: Array, dtype: DTypeLike) -> Array:
    """Keeps XLA from converting a whole array to `dtype` before a loop whose iterations each use one part, `x`.

    If every iteration of a loop rounds its part of an array to bfloat16, XLA may hoist this out of the loop and keep a
    rounded copy of the whole array. It does not look through a bitcast to integers. The bitcast copies the part, so
    `x` is returned as it is if it needs no rounding.
    """
    if x.dtype == dtype:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), x.dtype)
