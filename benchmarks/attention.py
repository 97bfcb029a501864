"""Attention, forward and backward, of the targets' layers: fused kernels against plain XLA.

    python -m benchmarks.attention v5p:2x2x2     compile for that TPU (none is needed): memory beside the operands
    python -m benchmarks.attention               run on this machine's accelerator: time of one layer, and errors

Rows are packed with four sequences each, or are one. The rate is that of the products of those pairs of a query and a
key that are seen, forward two and backward five a pair, over the time.

`error` is the distance of the output, or of a gradient if that is farther, from float32's of the same operands, as a
share of float32's norm. Beyond `LARGEST_ERROR` the status is 1. `cudnn` is `jax.nn.dot_product_attention` on NVIDIA
GPUs, for rows of one sequence without a soft cap, which is what it computes.
"""

import argparse
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from fusejax.models.attention.dispatch import Kernel, Placement, attention, dense_attention, kernel_for

# Heads, key-value heads, channels a head, window, soft cap; rows and their length.
CASES = {
    "Llama-3.1-8B": ((32, 8, 128, None, None), [(4, 2048), (2, 4096)]),
    "Llama-3.2-1B": ((32, 8, 64, None, None), [(4, 2048), (2, 4096)]),
    "Qwen2.5-7B": ((28, 4, 128, None, None), [(4, 2048), (2, 4096)]),
    "Gemma-2-9B global": ((16, 8, 256, None, 50.0), [(2, 4096), (1, 8192)]),
    "Gemma-2-9B sliding": ((16, 8, 256, 4096, 50.0), [(2, 4096), (1, 8192)]),
    # Narrower than the sequences of a packed row.
    "window of 512": ((32, 8, 128, 512, None), [(2, 4096), (1, 8192)]),
    "tiny": ((4, 2, 32, 40, None), [(2, 256)]),
}
LARGEST_ERROR = 0.02
"""Of bfloat16: its products' rounding errors are of 0.4 %."""
SEQUENCES = (1, 4)
"""In a row."""


def layer(query, key, value, segment_ids, cotangent, *, attend):
    starts = jax.lax.cummax(jnp.where(jnp.diff(segment_ids, axis=1, prepend=0) != 0, jnp.arange(query.shape[1]), 0), 1)
    tokens = Placement(jnp.arange(query.shape[1]) - starts, segment_ids)
    output, backward = jax.vjp(functools.partial(attend, tokens), query, key, value)
    return output, *backward(cotangent)


def ours(tokens: Placement, query, key, value, *, kernel: Kernel, window: int | None, softcap: float | None):
    return attention(
        query,
        key,
        value,
        query_placement=tokens,
        key_placement=tokens,
        scale=query.shape[3] ** -0.5,
        window=window,
        softcap=softcap,
        precision=jax.lax.Precision.DEFAULT,
        kernel=kernel,
    )


def cudnn(tokens: Placement, query, key, value, *, window: int | None):
    nearest = None if window is None else (window - 1, 0)
    options = {"is_causal": True, "local_window_size": nearest, "implementation": "cudnn"}
    return jax.nn.dot_product_attention(query, key, value, **options)


def exact(tokens: Placement, query, key, value, *, window: int | None, softcap: float | None):
    """In float32, a row at a time, for all scores are there at once."""

    def row(each):
        query, key, value, tokens = jax.tree.map(lambda x: x[None], each)
        where = {"query_placement": tokens, "key_placement": tokens}
        what = {"scale": query.shape[3] ** -0.5, "window": window, "softcap": softcap}
        highest = jax.lax.Precision.HIGHEST
        return dense_attention(query, key, value, **where, **what, precision=highest)[0]

    return jax.lax.map(row, (query, key, value, tokens))


def pairs(length: int, window: int | None, sequences: int) -> int:
    """Of a row."""
    seen = np.arange(length // sequences) + 1
    return int(sequences * np.minimum(seen, length if window is None else window).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", nargs="?")
    parser.add_argument("--cases", nargs="+", default=[name for name in CASES if name != "tiny"], choices=CASES)
    args = parser.parse_args()
    if args.topology is None:
        device = jax.devices()[0]
    else:
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        device = topologies.get_topology_desc(args.topology, platform="tpu").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    print(f"{device.device_kind}; temporary memory in MB" + (", ms, TFLOP/s, error" if args.topology is None else ""))
    wrong = []
    for name in args.cases:
        (heads, kv_heads, head_dim, window, softcap), batches = CASES[name]
        mask = {"window": window, "softcap": softcap}
        kernels: dict[str, functools.partial] = {
            kernel: functools.partial(ours, kernel=kernel, **mask) for kernel in (kernel_for(device.platform), "xla")
        }
        if device.platform == "gpu" and softcap is None:
            kernels["cudnn"] = functools.partial(cudnn, window=window)
        for rows, length in batches:
            sizes = [(heads, head_dim), (kv_heads, head_dim), (kv_heads, head_dim), (), (heads, head_dim)]
            shapes = [
                jax.ShapeDtypeStruct((rows, length, *size), jnp.bfloat16 if size else jnp.int32, sharding=sharding)
                for size in sizes
            ]
            counts = SEQUENCES if args.topology is None else (None,)
            lines = {count: f"{name:18s} {rows} x {length}" + (f" of {count}" if count else "") for count in counts}
            found = {}
            for kernel, attend in kernels.items():
                start = time.perf_counter()
                try:
                    compiled = jax.jit(functools.partial(layer, attend=attend)).lower(*shapes).compile()
                except Exception as error:  # one kernel's, for the others' sake
                    wrong.append(f"{name}, {kernel}: {type(error).__name__}: {str(error)[:500]}")
                    continue
                seconds_compiling = time.perf_counter() - start
                memory = f" | {kernel} {compiled.memory_analysis().temp_size_in_bytes / 1e6:.0f}"
                for count in counts:
                    if count is None:
                        lines[count] += memory
                    elif kernel != "cudnn" or count == 1:
                        arrays = operands(shapes, count)
                        found[kernel, count] = jax.device_get(compiled(*arrays))
                        seconds = timed(compiled, arrays)
                        flops = 7 * 2 * rows * heads * head_dim * pairs(length, window, count)
                        lines[count] += f"{memory} {1e3 * seconds:.2f} {flops / seconds / 1e12:.1f}"
                print(f"  {name}, {kernel}: compiled in {seconds_compiling:.1f} s", flush=True)
            for count in counts if args.topology is None else ():
                reference = jax.jit(functools.partial(layer, attend=functools.partial(exact, **mask)))
                arrays = [x.astype(jnp.float32) if x.ndim == 4 else x for x in operands(shapes, count)]
                expected = jax.device_get(reference(*arrays))
                for kernel in kernels:
                    if (kernel, count) in found:
                        error = max(map(distance, found[kernel, count], expected))
                        lines[count] += f" | {kernel} {error:.5f}"
                        if not error < LARGEST_ERROR:
                            wrong.append(f"{lines[count]}: {kernel} is wrong")
            print("\n".join(lines.values()), flush=True)
    if wrong:
        raise SystemExit("\n".join(wrong))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative to what is expected, in float64."""
    exact = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))


def operands(shapes, sequences: int) -> list[jax.Array]:
    keys = iter(jax.random.split(jax.random.key(0), 4))
    length = shapes[0].shape[1]
    segment_ids = jnp.arange(length) // (length // sequences) + 1
    return [
        jax.random.normal(next(keys), s.shape, s.dtype)
        if len(s.shape) == 4
        else jnp.broadcast_to(segment_ids, s.shape).astype(jnp.int32)
        for s in shapes
    ]


def timed(compiled, operands) -> float:
    """Seconds of a call: the median of three means, over up to ten calls in a tenth of a second."""

    def mean(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = compiled(*operands)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    mean(1)
    calls = int(min(10, max(1, 0.1 // mean(1))))
    return sorted(mean(calls) for _ in range(3))[1]


if __name__ == "__main__":
    main()
