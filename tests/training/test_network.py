"""The passes over a mesh, with their own backward pass, against JAX's gradient of the decoder on one device.

In a process of its own, which has eight devices.
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

CONFIGS = {
    "llama": {"windows": (None,) * 2},
    "qwen": {"windows": (None,) * 2, "qkv_bias": True},
    "gemma": {
        "windows": (4, None) * 2,
        "activation": "gelu_tanh",
        "norm_offset": 1.0,
        "post_norms": True,
        "embedding_scale": 5.6,
        "attention_softcap": 50.0,
        "logits_softcap": 30.0,
        "tie_embeddings": True,
    },
}
# Sizes of the axes, what is recomputed, and whether loops are written out.
CASES = [
    ("llama", {"data": 2, "fsdp": 2, "tensor": 2}, "none", False),
    ("llama", {"fsdp": 8}, "full", False),
    ("qwen", {"data": 2, "fsdp": 2, "tensor": 2}, "dots", False),
    ("gemma", {"fsdp": 4, "tensor": 2}, "full", False),
    ("gemma", {"data": 2, "fsdp": 4}, "none", True),
]


def name(case) -> str:
    model, sizes, remat, unroll = case
    return f"{model}-{'-'.join(f'{axis}{size}' for axis, size in sizes.items())}-{remat}{'-unrolled' * unroll}"


@pytest.fixture(scope="module")
def errors():
    """Of each case: the relative error of the loss, and the largest of any parameter's gradient."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.training.test_network"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_gradients_are_those_of_one_device(case, errors):
    loss, gradient = errors[name(case)]
    assert loss < 1e-6
    assert gradient < 1e-5


def main() -> None:
    import dataclasses

    from flax import nnx

    from fusejax.config import MeshConfig
    from fusejax.distributed.mesh import make_mesh
    from fusejax.models.decoder.config import DecoderConfig
    from fusejax.models.decoder.decoder import Decoder
    from fusejax.training.network import Network
    from fusejax.training.step import Accumulator, Passes, make_loss

    rows, expected, loss = batch(), {}, make_loss(None)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "num_kv_heads": 2}
    results = {}
    for case in CASES:
        model, mesh_sizes, remat, unroll = case
        config = DecoderConfig(**sizes, head_dim=8, **CONFIGS[model])
        graph, state = nnx.split(Decoder(config, rngs=nnx.Rngs(0)), nnx.Param)
        params = nnx.to_pure_dict(state)

        def plain(params, graph=graph):
            decoder = nnx.merge(graph, params)
            logits = decoder.logits(decoder(rows["tokens"], rows["positions"], rows["segment_ids"]))
            logprobs = jax.nn.log_softmax(logits[:, :-1])
            logprobs = jnp.take_along_axis(logprobs, rows["tokens"][:, 1:, None], -1)[..., 0]
            logprobs = jnp.where(rows["loss_mask"], jnp.pad(logprobs, ((0, 0), (1, 0))), 0)
            sums = loss(logprobs, rows)
            return sums["loss"], sums

        if model not in expected:
            expected[model] = jax.jit(jax.grad(plain, has_aux=True))(params)
        gradients, sums = expected[model]
        mesh = make_mesh(MeshConfig(**mesh_sizes))
        dtypes = {"param_dtype": jnp.dtype("float32"), "compute_dtype": jnp.dtype("float32")}
        network = Network(config, mesh, **dtypes, remat=remat, unroll=unroll)
        # Chunks that divide neither the words nor the tokens of a device.
        network.projection = dataclasses.replace(network.projection, chunk_words=20, chunk_tokens=17)
        passes = Passes(network, loss, params, mesh)
        replicas, parts = mesh.shape["data"], 8 // mesh.shape["tensor"]
        accumulator = Accumulator(
            jax.tree.map(lambda x, n=replicas: jnp.zeros((n, *x.shape)), params),
            jax.tree.map(lambda x, n=parts: jnp.zeros(n), sums),
        )
        accumulate = jax.jit(passes.accumulate)
        for _ in range(2):  # gradients are added to those of the microbatch before
            accumulator = accumulate(params, accumulator, rows)
        differences = jax.tree.map(
            lambda ours, exact: float(jnp.max(jnp.abs(ours.sum(0) / 2 - exact)) / jnp.max(jnp.abs(exact))),
            accumulator.gradients,
            gradients,
        )
        total = float(accumulator.sums["loss"].sum() / 2)
        results[name(case)] = (abs(total / float(sums["loss"]) - 1), max(jax.tree.leaves(differences)))
    print(json.dumps(results))


def batch() -> dict[str, np.ndarray]:
    """Eight rows of two segments and padding."""
    rng = np.random.default_rng(0)
    rows, length = 8, 24
    segment_ids, positions = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        first = rng.integers(5, 12)
        end = rng.integers(first + 4, length)
        segment_ids[row, :first], segment_ids[row, first:end] = 1, 2
        positions[row, :first], positions[row, first:end] = np.arange(first), np.arange(end - first)
    return {
        "tokens": rng.integers(0, 96, (rows, length)).astype(np.int32),
        "positions": positions,
        "segment_ids": segment_ids,
        "loss_mask": (positions > 0) & (rng.random((rows, length)) < 0.6),
    }


if __name__ == "__main__":
    main()
