"""The table of shardings: every parameter has its place, and one that has none is named."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from fusejax.common.cli import UserError
from fusejax.distributed.mesh import AXES
from fusejax.distributed.sharding import laid_out, parameter_sharding
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.decoder import abstract_decoder
from fusejax.models.huggingface.names import parameters
from tests.models import tiny_checkpoints as tiny


def mesh(fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((1, 1, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_parameter_is_split_over_all_devices_but_norms(family):
    """In sizes that eight devices divide; biases are split over `tensor` alone."""
    sizes = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = DecoderConfig.from_hf(tiny.reference(family, **sizes).config.to_dict())
    for parameter in parameters(config):
        sharding = parameter_sharding(parameter.path, parameter.shape, mesh(fsdp=4, tensor=2))
        parts = math.prod(parameter.shape) // math.prod(sharding.shard_shape(parameter.shape))
        expected = 1 if parameter.path.endswith("scale") else 2 if parameter.path.endswith("bias") else 8
        assert parts == expected, parameter.path


def test_the_table_of_names_has_the_decoders_own_shapes():
    config = DecoderConfig.from_hf(tiny.reference("qwen2").config.to_dict())
    _, shapes = abstract_decoder(config, param_dtype=jnp.dtype(jnp.float32), compute_dtype=jnp.dtype(jnp.float32))
    named = {".".join(str(key.key) for key in path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
    assert named == {parameter.path: parameter.shape for parameter in parameters(config)}


def test_what_does_not_divide_is_named_with_its_axes():
    name, shape = "blocks.0.mlp.gate.weight", (4, 92, 32)
    parameter_sharding(name, shape, mesh(fsdp=4, tensor=1))
    with pytest.raises(
        UserError, match=rf"^mesh\.tensor=2 x mesh\.fsdp=4 does not divide {name}, shape \(4, 92, 32\), along size 92$"
    ):
        parameter_sharding(name, shape, mesh(fsdp=4, tensor=2))
    with pytest.raises(UserError, match=r"^mesh\.fsdp=3 does not divide blocks\.0\.mlp\.down\.weight"):
        parameter_sharding("blocks.0.mlp.down.weight", (4, 32, 92), mesh(fsdp=3, tensor=1))


def test_vocabularies_are_padded_where_tensor_does_not_divide_them():
    shapes = {"embedder": {"embedding": jax.ShapeDtypeStruct((128_257, 32), jnp.bfloat16)}}
    for tensor, rows in ((1, 128_257), (2, 128_258), (4, 128_260)):
        found = laid_out(shapes, mesh(fsdp=8, tensor=tensor))["embedder"]["embedding"]
        assert (found.shape, found.dtype, found.sharding.spec) == (
            (rows, 32),
            jnp.bfloat16,
            PartitionSpec("tensor", "fsdp"),
        )
    with pytest.raises(UserError, match=r"^mesh\.fsdp=3 does not divide embedder\.embedding, .* along size 32$"):
        laid_out(shapes, mesh(fsdp=3, tensor=2))


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(KeyError, match=r"no sharding rule matches the parameter blocks\.0\.mlp\.router\.weight"):
        parameter_sharding("blocks.0.mlp.router.weight", (4, 8, 8), mesh(fsdp=1, tensor=1))
    with pytest.raises(KeyError, match=r"does not fit the parameter final_norm\.scale"):
        parameter_sharding("final_norm.scale", (4, 8), mesh(fsdp=1, tensor=1))
