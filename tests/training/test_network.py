"""The passes over a mesh, with their own backward pass, against JAX's gradient of the decoder on one device."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from fusejax.distributed.collectives import gather_layer
from fusejax.training import network as networks
from tests.models import tiny_checkpoints as tiny
from tests.training.mesh_gradients import faults_in_process

# Every family on each of these: the sizes of the axes, and what is recomputed.
MESHES = [
    {"fsdp": 2, "remat": "full"},
    {"tensor": 2, "remat": "none"},
    {"data": 2, "fsdp": 2, "tensor": 2, "remat": "dots"},
]
# As deep as two of its blocks need, and a layer of a third.
LAYERS = {"gemma2": 4, "gemma3": 7}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gradients_of_every_parameter_are_those_of_one_device(family):
    faults = faults_in_process(hf_config(family), MESHES)
    assert not faults, "\n".join(faults)


def test_many_parts_and_sums_by_exchange():
    faults = faults_in_process(
        hf_config("gemma3"),
        [{"data": 2, "fsdp": 4, "remat": "none", "exchanges": True}, {"fsdp": 8, "remat": "full"}],
    )
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("family", ["llama-untied", "gemma2"])  # the head apart; tied to the embedding, and capped
def test_vocabularies_that_tensor_does_not_divide(family):
    """The rows that are added get no gradient, and change no other."""
    meshes = [{"tensor": 2, "remat": "none"}, {"fsdp": 2, "tensor": 2, "remat": "none"}]
    faults = faults_in_process(hf_config(family) | {"vocab_size": 97}, meshes)
    assert not faults, "\n".join(faults)


def test_a_forgotten_sum_is_named():
    """A norm of heads is on every device, and used on some of the heads: its gradient is a sum over `tensor`."""
    faults = faults_in_process(hf_config("qwen3"), [{"tensor": 2, "remat": "none", "forget": True}])
    assert len(faults) == 2
    for fault, name in zip(sorted(faults), ("key_norm", "query_norm"), strict=True):
        assert fault.startswith(f"gradient of blocks.0.attention.{name}.scale under tensor=2 is off by ")
        assert "not the sum over `tensor`" in fault
        assert "sum_gradient(..., 'tensor')" in fault


def hf_config(family: str) -> dict:
    return tiny.reference(family, num_hidden_layers=LAYERS.get(family, 2)).config.to_dict()


@pytest.mark.parametrize("exchanges", [False, True])
def test_nothing_keeps_gathered_parameters_for_the_backward_pass(exchanges):
    """They would be the whole model on every device; `none` keeps all else."""
    kept = []

    def layer(weight, x):
        specs = {"weight": PartitionSpec("fsdp")}
        whole = gather_layer({"weight": weight}, specs, "fsdp", jnp.float32, exchanges=exchanges)["weight"]
        return jnp.tanh(x @ whole.T)

    def gradient(weight, x):
        y, vjp = jax.vjp(jax.checkpoint(layer, policy=networks._POLICIES["none"]), weight, x)
        kept.extend(residual.shape for residual in jax.tree.leaves(vjp))
        return vjp(y)[0]

    mesh = AbstractMesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("fsdp")
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False)
    jax.eval_shape(mapped, jax.ShapeDtypeStruct((64, 8), jnp.float32), jax.ShapeDtypeStruct((12, 8), jnp.float32))
    assert (3, 64) in kept  # a product
    assert (64, 8) not in kept
