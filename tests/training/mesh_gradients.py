"""Gradients on meshes beside those of one device, each parameter's; what differs is told by name and likely cause.

A process of its own, which has eight devices: it reads what `faults_on` takes, and writes what that returns.
"""

import dataclasses
import functools
import itertools
import json
import operator
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from fusejax.config import MeshConfig
from fusejax.distributed import sharding
from fusejax.distributed.collectives import sum_unsplit
from fusejax.distributed.mesh import make_mesh
from fusejax.models.decoder import decoder as decoders
from fusejax.models.decoder.config import DecoderConfig
from fusejax.objectives.logprobs import Logprobs
from fusejax.objectives.microbatch_loss import make_loss
from fusejax.training import network as networks
from fusejax.training.network import Accumulator, Network

TOLERANCE = 1e-5
"""Of a gradient, relative to the parameter's largest."""
AXES = ("fsdp", "tensor")
DTYPES = {"param_dtype": jnp.dtype("float32"), "compute_dtype": jnp.dtype("float32")}
# Less of a compiler's work, which is most of this test's time, and the same arithmetic.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


def faults_in_process(
    hf_config: dict[str, Any],
    meshes: Sequence[dict[str, Any]],
    clm_weight: float | None = None,
    chunk_temperature: float | None = None,
) -> list[str]:
    """`faults_on`, in a process that has the devices for it."""
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.training.mesh_gradients"]
    values = {"meshes": meshes, "clm_weight": clm_weight, "chunk_temperature": chunk_temperature}
    told = json.dumps({"hf_config": hf_config, **values})
    result = subprocess.run(command, env=environment, input=told, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def faults_on(
    hf_config: dict[str, Any],
    meshes: Sequence[dict[str, Any]],
    clm_weight: float | None = None,
    chunk_temperature: float | None = None,
) -> list[str]:
    """What is wrong with the loss or any parameter's gradient on any of the meshes, a line each.

    Args:
      hf_config: of a decoder, as its `config.json` has it. Its parameters are all random: norms and biases, too.
      meshes: sizes of the axes; besides, `remat` and `exchanges` as `Network` takes them, and whether to `forget` the
        sums of gradients in attention and MLP.
      clm_weight: of explicit fusion, with soft targets of three ids; None: plain SFT.
      chunk_temperature: with chunks instead of soft targets.
    """
    config = DecoderConfig.from_hf(hf_config)
    rows, loss = batch(config.vocab_size), make_loss(None, clm_weight, chunk_temperature)
    if chunk_temperature is not None:
        rows |= chunks(rows["loss_mask"])
    elif clm_weight is not None:
        rows |= soft_targets(rows["tokens"], config.vocab_size)
    graph, shapes = decoders.abstract_decoder(config, **DTYPES)
    params = random_parameters(shapes, config.norm_offset)

    def plain(params):
        decoder = nnx.merge(graph, params)
        logits = decoder.logits(decoder(rows["tokens"], rows["positions"], rows["segment_ids"]))
        logprobs = jax.nn.log_softmax(logits[:, :-1])

        def of(ids):
            values = jnp.pad(jnp.take_along_axis(logprobs, ids[:, 1:], -1), ((0, 0), (1, 0), (0, 0)))
            return jnp.where(rows["loss_mask"][..., None], values, 0)

        soft = jnp.sum(rows["soft_weights"] * of(rows["soft_ids"]), axis=-1) if "soft_ids" in rows else None
        sums = loss(Logprobs(of(rows["tokens"][..., None])[..., 0], soft), rows)
        return sums["loss"], sums

    expected, sums = jax.jit(jax.grad(plain, has_aux=True))(params)
    faults = []
    for mesh_options in meshes:
        options = dict(mesh_options)
        summing = (lambda params, specs, axis: params) if options.pop("forget", False) else sum_unsplit
        layout = {"remat": options.pop("remat"), "exchanges": options.pop("exchanges", False)}
        where = ", ".join(f"{axis}={size}" for axis, size in options.items())
        mesh = make_mesh(MeshConfig(**{"fsdp": 1, **options}), jax.devices()[: np.prod(list(options.values()))])
        with mock.patch.object(networks, "sum_unsplit", summing):
            found = accumulated(config, mesh, params, rows, loss, sums, **layout)
        error = abs(np.asarray(found.sums["loss"]).sum() / (2 * float(sums["loss"])) - 1)
        if error > 1e-6:
            faults.append(f"the loss under {where} is off by {error:.1e}")
        specs, exacts = sharding.parameter_specs(params, mesh), padded(expected, mesh)
        for path, gradient in jax.tree_util.tree_leaves_with_path(found.gradients):
            keys = [key.key for key in path]
            exact, spec = (functools.reduce(operator.getitem, keys, tree) for tree in (exacts, specs))
            split = {axis for entry in spec for axis in sharding.mesh_axes(entry)}
            fault = explained(*per_device(gradient, np.asarray(exact), mesh), split)
            if fault:
                faults.append(f"gradient of {'.'.join(map(str, keys))} under {where} {fault}")
    return faults


def accumulated(
    config: DecoderConfig, mesh: Mesh, params: Any, rows: Any, loss: Any, sums: Any, **layout: Any
) -> Accumulator:
    """What two microbatches that are the same add up to: gradients are added to those of the one before."""
    network = Network(config, mesh, loss, **DTYPES, **layout)
    # Chunks that divide neither the vocabulary nor the tokens of a device.
    network.projection = dataclasses.replace(network.projection, chunk_vocab=20, chunk_tokens=17)
    replicas, parts = mesh.shape["data"], mesh.shape["data"] * mesh.shape["fsdp"]
    shardings = sharding.parameter_shardings(params, mesh)
    accumulator = Accumulator(
        jax.tree.map(
            lambda x, at: jax.device_put(
                np.zeros((replicas, *x.shape), np.float32), NamedSharding(mesh, sharding.with_replicas(at.spec))
            ),
            padded(params, mesh),
            shardings,
        ),
        jax.tree.map(lambda _: jax.device_put(np.zeros(parts, np.float32), sharding.batch_sharding(mesh)), sums),
    )
    params, rows = jax.device_put(padded(params, mesh), shardings), jax.device_put(rows, sharding.batch_sharding(mesh))
    # Laid out as its result, so that it is compiled once.
    layouts = jax.tree.map(lambda x: x.sharding, accumulator)
    accumulate = jax.jit(network.accumulate, out_shardings=layouts)
    for _ in range(2):
        accumulator = accumulate(params, accumulator, rows)
    return accumulator


def padded(params: Any, mesh: Mesh) -> Any:
    """Parameters with the rows of zeros that the mesh needs."""

    def pad(x: np.ndarray, on_mesh: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.pad(x, [(0, after - before) for before, after in zip(x.shape, on_mesh.shape, strict=True)])

    return jax.tree.map(pad, params, sharding.laid_out(params, mesh))


def per_device(gradient: jax.Array, exact: np.ndarray, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Half of what each device has, added up over replicas, and what that should be: [fsdp, tensor] of arrays."""
    coordinates = {device: at[1:] for at, device in np.ndenumerate(mesh.devices)}
    found, expected = (np.empty(mesh.devices.shape[2:], object) for _ in range(2))
    for shard in gradient.addressable_shards:
        _, fsdp, tensor = coordinates[shard.device]
        part = np.asarray(shard.data, np.float64)[0] / 2
        found[fsdp, tensor] = part if found[fsdp, tensor] is None else found[fsdp, tensor] + part
        expected[fsdp, tensor] = exact[shard.index[1:]]
    return found, expected


def explained(found: np.ndarray, expected: np.ndarray, split: set[str]) -> str | None:
    """What is wrong with a gradient, None if nothing is.

    Args:
      found: what each device has, [fsdp, tensor] of arrays.
      expected: what it should have.
      split: the axes over which the parameter is split.
    """
    largest = max(np.abs(each).max() for each in expected.flat)

    def error(found: np.ndarray) -> float:
        return max(np.abs(ours - exact).max() for ours, exact in zip(found.flat, expected.flat, strict=True)) / largest

    if error(found) < TOLERANCE:
        return None
    whole = [axis for axis in AXES if axis not in split and found.shape[AXES.index(axis)] > 1]
    for axes in itertools.chain.from_iterable(itertools.combinations(whole, n) for n in (1, 2)):
        numbers, names = tuple(map(AXES.index, axes)), " and ".join(f"`{axis}`" for axis in axes)
        if error(np.broadcast_to(found.sum(axis=numbers, keepdims=True), found.shape)) < TOLERANCE:
            needed = " and ".join(f"sum_gradient(..., {axis!r})" for axis in axes)
            return (
                f"is off by {error(found):.3f}: it is not the sum over {names}, though what the devices there have "
                f"sums to it. A parameter that {names} does not split, used on activations that differ along it, needs "
                f"{needed} (fusejax/distributed/collectives.py)"
            )
        if error(found / np.prod([found.shape[number] for number in numbers])) < TOLERANCE:
            return f"is off by {error(found):.3f}: it was already the sum over {names} when it was summed over it again"
    return f"is off by {error(found):.3g}"


def random_parameters(shapes: Any, norm_offset: float) -> Any:
    """Weights that keep activations of order one; norms and biases, which start trivial in a new model, are not."""
    rng = np.random.default_rng(0)

    def drawn(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.normal(size=shape.shape).astype(np.float32)
        kind = path[-1].key
        if kind == "scale":
            return np.float32(1 - norm_offset) + np.float32(0.3) * noise
        return noise * np.float32(0.5 if kind == "bias" else shape.shape[-1] ** -0.5)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def batch(vocab_size: int) -> dict[str, np.ndarray]:
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
        "tokens": rng.integers(0, vocab_size, (rows, length)).astype(np.int32),
        "positions": positions,
        "segment_ids": segment_ids,
        "loss_mask": (positions > 0) & (rng.random((rows, length)) < 0.6),
    }


def soft_targets(tokens: np.ndarray, vocab_size: int) -> dict[str, np.ndarray]:
    """Three ids at each place, of mass 1, 0.7 or 0."""
    rng = np.random.default_rng(1)
    ids = rng.permuted(np.broadcast_to(np.arange(vocab_size), (*tokens.shape, vocab_size)), axis=-1)[..., :3]
    weights = rng.dirichlet(np.ones(3), tokens.shape) * rng.choice([1, 0.7, 0], tokens.shape)[..., None]
    return {"soft_ids": ids.astype(np.int32), "soft_weights": weights.astype(np.float32)}


def chunks(loss_mask: np.ndarray) -> dict[str, np.ndarray]:
    """Chunks of neighbouring targets, about every fifth of which is in none; likely and unlikely ones."""
    rng = np.random.default_rng(1)
    ids = np.zeros(loss_mask.shape, np.int32)
    for row, place in np.argwhere(loss_mask & (rng.random(loss_mask.shape) < 0.8)):
        before = ids[row, place - 1]
        ids[row, place] = before if before and rng.random() < 0.5 else ids[row].max() + 1
    last = (ids > 0) & (ids != np.pad(ids[:, 1:], ((0, 0), (0, 1))))
    return {"chunk_ids": ids, "chunk_logprobs": np.where(last, -rng.exponential(5, ids.shape), 0).astype(np.float32)}


if __name__ == "__main__":
    print(json.dumps(faults_on(**json.load(sys.stdin))))
