"""The GPU, the versions of what uses it, and how fast it multiplies, against which a training step can be held."""

import importlib.metadata
import platform
import time

import jax
import jax.numpy as jnp

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tokamax", "numpy", "torch", "transformers")


def main() -> None:
    print(f"Python {platform.python_version()}")
    for package in PACKAGES:
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(package, "is not installed")
    device = jax.devices()[0]
    print(device.device_kind, getattr(device, "compute_capability", ""), device.memory_stats())
    size = 8192 if device.platform == "gpu" else 256
    left, right = (jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16) for seed in (0, 1))
    product = jax.jit(jnp.matmul)
    product(left, right).block_until_ready()
    start = time.perf_counter()
    for _ in range(20):
        result = product(left, right)
    result.block_until_ready()
    seconds = (time.perf_counter() - start) / 20
    print(f"a product of {size} x {size} in bfloat16: {2 * size**3 / seconds / 1e12:.1f} TFLOP/s")


if __name__ == "__main__":
    main()
