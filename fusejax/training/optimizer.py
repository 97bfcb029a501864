"""The optimizer and its learning-rate schedule, from the configuration."""

import optax

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


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW (decoupled weight decay)."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            make_schedule(config, num_steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )
