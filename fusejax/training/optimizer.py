"""The optimizer and its learning-rate schedule, from the configuration."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fusejax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of optimizer step 0, 1, ..., `num_steps - 1`.

    Warm-up rises linearly over `warmup_ratio` of all steps, rounded up; its first step is already above zero, and the
    step after it has the full rate. The decay would reach zero at step `num_steps`, one after the last.
    """
    peak = config.learning_rate
    warmup_steps = -int(-config.warmup_ratio * num_steps // 1)
    decay_steps = max(1, num_steps - warmup_steps)
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
        "linear": optax.linear_schedule(peak, 0.0, decay_steps),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformationExtraArgs:
    """AdamW with decoupled weight decay on the mean of summed gradients, clipped by its norm (see `clipped_mean`).

    It is `optax.adamw` but for the choice of what decays. Optax's own would be stored in checkpoints.
    """
    return optax.chain(
        clipped_mean(config.max_grad_norm),
        optax.chain(
            optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
            weight_decay(config.weight_decay, vectors=config.weight_decay_on == "all"),
            optax.scale_by_learning_rate(make_schedule(config, num_steps)),
        ),
    )


def weight_decay(rate: float, *, vectors: bool) -> optax.GradientTransformation:
    """Adds `rate` times the parameter to its update; to those of norms and biases only if `vectors`."""

    def decayed(path: Any, update: Array, param: Array) -> Array:
        return update + rate * param if vectors or path[-1].key not in ("scale", "bias") else update

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(decayed, updates, params) if rate else updates, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clipped_mean(max_norm: float | None) -> optax.GradientTransformationExtraArgs:
    """Divides summed gradients by `count`, an extra argument of `update`, and clips the mean by its global norm.

    Both are one factor, so that no second copy of the gradients is materialised. None: the mean is not clipped.
    """

    def update(sums: Any, state: Any, params: Any = None, *, count: Float[Array, ""], **_: Any) -> tuple[Any, Any]:
        limit = 1.0 if max_norm is None else jnp.minimum(1.0, max_norm / (optax.tree.norm(sums) / count))
        factor = limit / count
        return jax.tree.map(lambda x: x * factor, sums), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
