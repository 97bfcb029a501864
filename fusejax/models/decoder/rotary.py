"""Rotary position embedding: angles in float32 whatever the compute dtype, since positions reach beyond 2^16."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fusejax.models.decoder.config import DecoderConfig, LinearScaling

Rotation = tuple[Float[Array, "B L 1 half"], Float[Array, "B L 1 half"]]


def frequencies(config: DecoderConfig, window: int | None = None) -> np.ndarray:
    """Radians per position for each pair of channels, float32 [head_dim / 2].

    Scaling after Llama 3.1 (transformers, `_compute_llama3_parameters`): with n the length of pretraining, wavelengths
    above n / low_freq_factor are multiplied by `factor`, those below n / high_freq_factor are kept, and between the two
    the frequency is interpolated.

    Args:
      window: of the layer.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    if window is not None and config.local_rope_theta is not None:
        return np.float32(1.0) / np.float32(config.local_rope_theta) ** exponents
    inverse = np.float32(1.0) / np.float32(config.rope_theta) ** exponents
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    if isinstance(scaling, LinearScaling):
        return inverse / np.float32(scaling.factor)
    waves = scaling.original_length * inverse / (2 * np.pi)  # how many fit into the length of pretraining
    kept = (waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0, 1).astype(np.float32)
    return kept * inverse + (1 - kept) * inverse / np.float32(scaling.factor)


def rotations(config: DecoderConfig, positions: Int[Array, "B L"]) -> list[Rotation]:
    """For each layer of the pattern, cosines and sines of every position's angles.

    They are float32, with an axis to broadcast over heads. Layers that have the same share the same arrays.
    """

    def rotation(window: int | None) -> Rotation:
        angles = positions[..., None, None].astype(jnp.float32) * frequencies(config, window)
        return jnp.cos(angles), jnp.sin(angles)

    if config.local_rope_theta is None:
        return [rotation(None)] * len(config.pattern)
    kinds = {window: rotation(window) for window in config.pattern}
    return [kinds[window] for window in config.pattern]


def rotate(x: Float[Array, "B L N H"], by: Rotation) -> Float[Array, "B L N H"]:
    """Rotates channel `i` with channel `i + H / 2` (the half-split pairing of Hugging Face checkpoints)."""
    cos, sin = by
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
