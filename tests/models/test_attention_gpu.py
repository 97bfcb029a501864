"""Attention on NVIDIA GPUs: the range of keys that a query sees, the choice of kernel, and its results where one is."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from fusejax.models.attention import gpu_attention
from fusejax.models.attention.dispatch import attention, visible
from tests.models.attention_cases import Shape, check_same, packed

ROWS = [[70, 1, 929 - 300], [1000 - 128], [500, 500]]
SHAPES = [
    Shape(heads=8, kv_heads=2, head_dim=64),
    Shape(heads=7, kv_heads=1, head_dim=128, window=100),
    Shape(heads=4, kv_heads=2, head_dim=128, softcap=50.0),
    Shape(heads=4, kv_heads=2, head_dim=256, softcap=50.0, window=300),
]


@pytest.mark.parametrize("window", [None, 1, 64])
def test_range_of_keys_is_what_a_query_sees(window):
    tokens = packed(ROWS, 1000)
    first = gpu_attention.first_visible(tokens.segment_ids, window)
    index = jnp.arange(1000)
    within = (index >= first[:, :, None]) & (index <= index[:, None])
    real = (tokens.segment_ids > 0)[:, :, None]
    assert bool((within == visible(tokens, tokens, window))[jnp.broadcast_to(real, within.shape)].all())
    assert gpu_attention.first_visible(jnp.array([[1, 1, 1, 2, 2]]), 2).tolist() == [[0, 0, 1, 3, 3]]


@pytest.mark.parametrize(
    ("capability", "head_dim", "softcap", "expected"),
    [
        ("9.0", 128, None, "mosaic_gpu"),
        ("9.0", 256, 50.0, "mosaic_gpu"),
        ("8.0", 128, None, "triton"),
        ("10.0", 128, None, "triton"),
        ("8.0", 128, 50.0, None),
        ("8.0", 256, None, None),
        ("7.5", 64, None, None),
        ("gfx942", 64, None, None),
    ],
)
def test_kernel_is_one_that_has_gradients(monkeypatch, capability, head_dim, softcap, expected):
    monkeypatch.setattr(gpu_attention, "compute_capability", lambda: capability)
    assert gpu_attention.implementation(head_dim, softcap) == expected


def _fused(shape, tokens):
    where = {"query_placement": tokens, "key_placement": tokens}
    return functools.partial(attention, **where, **shape.options, precision=jax.lax.Precision.DEFAULT, kernel="gpu")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("capability", ["8.0", "9.0"])
def test_lowers_for_gpus(monkeypatch, shape, capability):
    """Forward and backward, as far as that goes without a GPU: Mosaic and Triton compile the kernels themselves."""
    tokamax = pytest.importorskip("tokamax")
    gpu_utils = pytest.importorskip("tokamax._src.gpu_utils")
    monkeypatch.setattr(gpu_attention, "compute_capability", lambda: capability)
    monkeypatch.setattr(gpu_utils, "is_sm90", lambda device=None: capability == "9.0")
    monkeypatch.setattr(gpu_utils, "is_sm100", lambda device=None: False)
    fused = _fused(shape, packed(ROWS, 1000))

    def step(query, key, value, cotangent):
        return jax.vjp(fused, query, key, value)[1](cotangent)

    query, key = (
        jax.ShapeDtypeStruct((len(ROWS), 1000, n, shape.head_dim), jnp.bfloat16) for n in (shape.heads, shape.kv_heads)
    )
    gpu_attention.accept_program_arguments()
    with tokamax.config.cross_compile(True):
        lowered = jax.jit(step).trace(query, key, key, query).lower(lowering_platforms=("cuda",))
    expected = {"mosaic_gpu": {"mosaic_gpu_v2"}, "triton": {"__gpu"}, None: set()}
    kernels = set(re.findall(r"custom_call @(\w+)", lowered.as_text()))
    assert kernels == expected[gpu_attention.implementation(shape.head_dim, shape.softcap)]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_kernel_is_attention(shape):
    pytest.importorskip("tokamax")
    tokens = packed(ROWS, 1000)
    check_same(_fused(shape, tokens), shape, tokens, dtype=jnp.bfloat16, tolerance=0.015)
