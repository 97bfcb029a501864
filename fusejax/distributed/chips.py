"""Published peaks of accelerators, by the name that JAX gives a device (`jax.Device.device_kind`)."""

from collections.abc import Sequence
from typing import Any

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Peak of dense bfloat16 matrix products, in FLOP/s per device.

From Google Cloud's pages of each TPU (docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; JAX sees a TPU7x chip as
two devices) and NVIDIA's data sheets of the A100, H100 SXM and H200 SXM, without sparsity.
"""


def peak_hbm_bytes(devices: Sequence[Any]) -> int | None:
    """The most memory that any of these `jax.Device`s has had in use since the process began; None if none can tell."""
    stats = [device.memory_stats() or {} for device in devices]
    found = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    return max(found, default=None)
