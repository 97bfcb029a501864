"""The passes over a mesh, with their own backward pass, against JAX's gradient of the decoder on one device."""

import pytest

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
