"""What the compiled programs compute again, and what they hold beside their arguments."""

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusejax.config import OptimizerConfig, TrainConfig
from fusejax.data.examples import Tokenized
from fusejax.data.loader import assemble
from fusejax.data.records import ANSWERS
from fusejax.distributed.mesh import make_mesh
from fusejax.models.decoder.config import DecoderConfig
from fusejax.planning.topology import parse_topology
from fusejax.training.programs import Programs
from fusejax.training.reference import Reference

MODEL = DecoderConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_heads=2,
    num_kv_heads=2,
    head_dim=128,
    windows=(None, None),
)


def programs(devices=None, model=MODEL, num_steps: int | None = 2, **settings) -> Programs:
    values = {
        "task": "sft",
        "model": "none",
        "data": {"train": "none"},
        "output_dir": "none",
        "batch_size": 8,
        "max_length": 512,
        "optimizer": OptimizerConfig(learning_rate=1e-4),
    }
    config = TrainConfig.model_validate(values | settings)
    return Programs(config, model, make_mesh(config.mesh, devices), num_steps=num_steps)


@pytest.mark.parametrize(
    ("kind", "packing"),
    [
        ("sft", {}),
        ("dpo", {}),
        ("dpo", {"row_length": 768, "attention_length": 1024}),
        ("wrpo", {}),
        ("wrpo", {"row_length": 768, "attention_length": 1536}),
    ],
)
def test_microbatches_are_what_programs_are_compiled_for(kind, packing):
    """Names, shapes and dtypes of what the loader makes, and of what the run adds."""
    settings = {"task": "sft"} if kind == "sft" else {"task": "preference", "preference": {"loss": kind}}
    made = programs(**settings, packing=packing | {"rows_per_device": 3})
    length, each = 12, len(ANSWERS[kind]) or 1
    offsets = np.arange(0, (2 * each + 1) * length, length, dtype=np.int64)
    tokens = np.arange(offsets[-1], dtype=np.int32)
    data = Tokenized(kind, tokens, tokens % length > 5, offsets, ["a", "b"], [], {})
    lengths = (packing["row_length"], packing["attention_length"]) if packing else (512 * each,)
    fed = assemble(data, [[1], [0], []], *lengths)
    assert described(fed) == described(made.reference_microbatch)
    if each > 1:
        fed |= Reference.empty(2, each).at(fed["pair_ids"])
    if kind == "wrpo":
        fed["progress"] = np.zeros((3, 1), np.float32)
    assert described(fed) == described(made.microbatch)


def described(arrays) -> dict:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def products_of_attention(jaxpr) -> int:
    """Products with a batch axis, which is that of the heads; in loops, too."""
    here = [e for e in jaxpr.eqns if e.primitive.name == "dot_general" and e.params["dimension_numbers"][1][0]]
    return len(here) + sum(
        products_of_attention(sub) for e in jaxpr.eqns for sub in jax.core.jaxprs_in_params(e.params)
    )


def test_attention_is_computed_again_only_with_everything_in_plain_xla():
    found = {}
    for remat in ("none", "dots", "full"):
        made = programs(remat=remat, dtype={"compute": "float32"})
        traced = made.accumulate.trace(made.params, *made.accumulator, made.microbatch)
        found[remat] = products_of_attention(traced.jaxpr.jaxpr)
    # Two products forward, five backward.
    assert found == {"none": 7, "dots": 7, "full": 9}


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(("remat", "forward"), [("none", 1), ("dots", 1), ("full", 2)])
def test_attention_is_computed_again_only_with_everything_on_tpus(remat, forward):
    made = programs(parse_topology("v5e-4").devices(), remat=remat)
    compiled = made.accumulate.lower(made.params, *made.accumulator, made.microbatch).compile()
    kernels = re.findall(r"%splash_mha_(fwd|dkv)\w*[.\d]* = ", compiled.as_text())
    assert sorted(kernels) == ["dkv"] + ["fwd"] * forward


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_layers_after_the_last_whole_block_are_computed_again_too():
    """They are in no loop, and the compiler would merge what is computed twice: five layers, but three in the text."""
    model = dataclasses.replace(MODEL, windows=(128, None, 128, None, 128))
    made = programs(parse_topology("v5e-4").devices(), model, remat="full")
    compiled = made.accumulate.lower(made.params, *made.accumulator, made.microbatch).compile()
    kernels = re.findall(r"%splash_mha_(fwd|dkv)\w*[.\d]* = ", compiled.as_text())
    assert sorted(kernels) == ["dkv"] * 3 + ["fwd"] * 6


def products_of_tokens(jaxpr, tokens: int) -> int:
    """Products of so many tokens with parameters; in loops, too."""
    here = [e for e in jaxpr.eqns if e.primitive.name == "dot_general" and e.invars[0].aval.shape[:1] == (tokens,)]
    return len(here) + sum(
        products_of_tokens(sub, tokens) for e in jaxpr.eqns for sub in jax.core.jaxprs_in_params(e.params)
    )


def test_what_pairs_share_is_computed_once():
    """Seven products a layer forward, as many for the inputs' gradients, which go over computed tokens alone."""
    packing = {"row_length": 640, "attention_length": 1024, "rows_per_device": 3}
    made = programs(task="dpo", preference={"beta": 1}, packing=packing, dtype={"compute": "float32"}, remat="dots")
    traced = made.accumulate.trace(made.params, *made.accumulator, made.microbatch).jaxpr.jaxpr
    assert products_of_tokens(traced, 3 * 640) >= 14
    assert products_of_tokens(traced, 3 * 1024) == 0


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_tpus_share_what_pairs_begin_with():
    """The kernels go over the slots, products over computed tokens."""
    flops = {}
    for row_length in (1536, 2048):
        packing = {"row_length": row_length, "attention_length": 2048}
        devices = parse_topology("v5e-1").devices()
        made = programs(devices, task="dpo", preference={"beta": 1}, packing=packing, remat="dots")
        compiled = made.accumulate.lower(made.params, *made.accumulator, made.microbatch).compile()
        assert re.search(r"%splash_mha_fwd\S* = .*bf16\[2,2048,128\].* custom-call\(", compiled.as_text())
        flops[row_length] = compiled.cost_analysis()["flops"]
    assert flops[1536] < 0.9 * flops[2048]


def test_the_update_holds_nothing_twice():
    made = programs()
    smallest_matrix = 4 * MODEL.hidden_size * MODEL.num_heads * MODEL.head_dim
    update = made.apply.lower(made.state, made.accumulator).compile().memory_analysis()
    assert update.temp_size_in_bytes < smallest_matrix
    zeroed = made.zeroed.lower(*made.accumulator).compile().memory_analysis()
    assert zeroed.temp_size_in_bytes < smallest_matrix
    assert zeroed.alias_size_in_bytes == sum(x.size * 4 for x in jax.tree.leaves(made.accumulator.gradients))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_all_in_bfloat16_takes_ten_bytes_a_parameter():
    """And on TPUs every device makes its own random bits: none asks another for any."""
    half = {"dtype": {"params": "bfloat16"}, "optimizer": OptimizerConfig(learning_rate=1e-4, moments="bfloat16")}
    made = programs(parse_topology("v5e-4").devices(), **half)
    parameters = sum(x.size for x in jax.tree.leaves(made.params))
    arrays = jax.tree.leaves((made.state, made.accumulator.gradients))
    assert sum(x.size * x.dtype.itemsize for x in arrays) == pytest.approx(10 * parameters, rel=1e-4)
    update = made.apply.lower(made.state, made.accumulator).compile()
    assert not re.search(r"all-gather\(|all-to-all\(|collective-permute\(", update.as_text())


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_vocabulary_that_tensor_does_not_divide_is_planned():
    model = dataclasses.replace(MODEL, vocab_size=1025)
    made = programs(parse_topology("v5e-4").devices(), model, mesh={"fsdp": 2, "tensor": 2})
    rows = {x.shape[0] for x in jax.tree.leaves((made.params["embedder"], made.params["lm_head"]))}
    assert rows == {1026}
    made.evaluate.lower(made.params, made.microbatch).compile()


def test_zeros_are_zeros():
    made = programs()
    ones = jax.tree.map(lambda x: jax.device_put(jnp.ones(x.shape, x.dtype), x.sharding), made.accumulator)
    assert not any(jnp.any(x) for x in jax.tree.leaves(made.zeroed(*ones)))
