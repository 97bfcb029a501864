"""Attention, forward and backward, of the targets' layers: fused kernels against plain XLA.

    python benchmarks/attention.py v5p:2x2x2     compile for that TPU (none is needed): memory beside the operands
    python benchmarks/attention.py               run on this machine's accelerator: time of one layer as well

Rows are packed with four sequences each. Products are those of whole rows below the diagonal or within the window,
forward two and backward five a pair of a query and a key; the rate is these over the time.
"""

import argparse
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from fusejax.models.attention.dispatch import Kernel, Placement, attention, kernel_for

# Heads, key-value heads, channels a head, window, soft cap; rows and their length.
CASES = {
    "Llama-3.1-8B": ((32, 8, 128, None, None), [(4, 2048), (2, 4096)]),
    "Llama-3.2-1B": ((32, 8, 64, None, None), [(4, 2048), (2, 4096)]),
    "Qwen2.5-7B": ((28, 4, 128, None, None), [(4, 2048), (2, 4096)]),
    "Gemma-2-9B global": ((16, 8, 256, None, 50.0), [(2, 4096), (1, 8192)]),
    "Gemma-2-9B sliding": ((16, 8, 256, 4096, 50.0), [(2, 4096), (1, 8192)]),
}


def layer(query, key, value, segment_ids, cotangent, *, kernel: Kernel, window: int | None, softcap: float | None):
    tokens = Placement(jnp.arange(query.shape[1]) % (query.shape[1] // 4) * (segment_ids > 0), segment_ids)
    attend = functools.partial(
        attention,
        query_placement=tokens,
        key_placement=tokens,
        scale=query.shape[3] ** -0.5,
        window=window,
        softcap=softcap,
        precision=jax.lax.Precision.DEFAULT,
        kernel=kernel,
    )
    output, backward = jax.vjp(attend, query, key, value)
    return output, *backward(cotangent)


def pairs(length: int, window: int | None) -> int:
    return int(np.minimum(np.arange(length) + 1, length if window is None else window).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", nargs="?")
    args = parser.parse_args()
    if args.topology is None:
        device = jax.devices()[0]
    else:
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        device = topologies.get_topology_desc(args.topology, platform="tpu").devices[0]
    kernels: list[Kernel] = [kernel_for(device.platform), "xla"]
    sharding = jax.sharding.SingleDeviceSharding(device)
    print(f"{device.device_kind}; temporary memory in MB" + (", time in ms, TFLOP/s" if args.topology is None else ""))
    for name, ((heads, kv_heads, head_dim, window, softcap), batches) in CASES.items():
        for rows, length in batches:
            sizes = [(heads, head_dim), (kv_heads, head_dim), (kv_heads, head_dim), (), (heads, head_dim)]
            shapes = [
                jax.ShapeDtypeStruct((rows, length, *size), jnp.bfloat16 if size else jnp.int32, sharding=sharding)
                for size in sizes
            ]
            line = f"{name:20s} {rows} x {length}"
            for kernel in kernels:
                step = jax.jit(functools.partial(layer, kernel=kernel, window=window, softcap=softcap))
                compiled = step.lower(*shapes).compile()
                line += f" | {kernel:6s} {compiled.memory_analysis().temp_size_in_bytes / 1e6:6.0f}"
                if args.topology is None:
                    seconds = timed(compiled, shapes)
                    flops = 7 * 2 * rows * heads * head_dim * pairs(length, window)
                    line += f" {1e3 * seconds:7.2f} {flops / seconds / 1e12:5.0f}"
            print(line, flush=True)


def timed(compiled, shapes, repeats: int = 10) -> float:
    operands = [jax.random.normal(jax.random.key(0), s.shape, s.dtype) for s in shapes if s.ndim == 4]
    length = shapes[0].shape[1]
    segment_ids = jnp.broadcast_to(jnp.arange(length) // (length // 4) + 1, shapes[3].shape).astype(jnp.int32)
    operands.insert(3, segment_ids)
    jax.block_until_ready(compiled(*operands))
    start = time.perf_counter()
    for _ in range(repeats):
        result = compiled(*operands)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


if __name__ == "__main__":
    main()
