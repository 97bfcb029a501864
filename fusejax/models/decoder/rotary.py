"""Rotary position embedding: angles in float32 whatever the compute dtype, since positions reach beyond 2^16."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fusejax.models.decoder.config import DecoderConfig

Rotation = tuple[Float[Array, "B L 1 half"], Float[Array, "B L 1 half"]]


def frequencies(config: DecoderConfig) -> np.ndarray:
    """Radians per position for each pair of channels, float32 [head_dim / 2].

    Scaling after Llama 3.1 (transformers, `_compute_llama3_parameters`): with n the length of pretraining, wavelengths
    above n / low_freq_factor are multiplied by `factor`, those below n / high_freq_factor are kept, and between the two
    the frequency is interpolated.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    inverse = np.float32(1.0) / np.float32(config.rope_theta) ** exponents
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    waves = scaling.original_length * inverse / (2 * np.pi)  # how many fit into the length of pretraining
    kept = (waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0, 1).astype(np.float32)
    return kept * inverse + (1 - kept) * inverse / np.float32(scaling.factor)


def rotation(config: DecoderConfig, positions: Int[Array, "B L"]) -> Rotation:
    """Cosines and sines of every position's angles, float32, with an axis to broadcast over heads."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B L N H"], by: Rotation) -> Float[Array, "B L N H"]:
    """Rotates channel `i` with channel `i + H / 2` (the half-split pairing of Hugging Face checkpoints)."""
    cos, sin = by
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
