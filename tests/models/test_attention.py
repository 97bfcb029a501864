"""Attention by blocks and on TPUs gives what all scores at once give; it compiles for every TPU within its memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from fusejax.models.attention import block_attention, splash
from fusejax.models.attention.dispatch import Placement, attention, dense_attention, kernel_for
from fusejax.planning.topology import parse_topology
from tests.models.attention_cases import Shape, arrays, check_same, packed

ROWS = [[70, 1, 257], [384 - 20], [5, 300, 79]]


@pytest.fixture
def interpreted(monkeypatch):
    """The TPU kernel runs on the CPU, in small blocks, so that short rows have many."""
    monkeypatch.setattr(splash, "BLOCK", 128)
    monkeypatch.setattr(splash, "splash_attention", functools.partial(splash.splash_attention, interpret=True))


def test_kernel_follows_the_platform_compiled_for():
    assert [kernel_for(name) for name in ("tpu", "gpu", "cuda", "cpu", "rocm")] == [
        "splash",
        "gpu",
        "gpu",
        "xla",
        "xla",
    ]


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [
        (Shape(heads=4, kv_heads=2, head_dim=64), jnp.float32, 1e-5),
        (Shape(heads=3, kv_heads=1, head_dim=128, window=100), jnp.float32, 1e-5),
        (Shape(heads=2, kv_heads=2, head_dim=16, window=1, softcap=50.0), jnp.float32, 1e-5),
        (Shape(heads=4, kv_heads=2, head_dim=256, window=130, softcap=50.0), jnp.float32, 1e-5),
        (Shape(heads=4, kv_heads=2, head_dim=64), jnp.bfloat16, 0.015),
    ],
    ids=str,
)
@pytest.mark.parametrize(("length", "rows"), [(384, ROWS), (300, [[100, 200], [300]]), (1, [[1], []])])
def test_blocks_are_attention(shape, dtype, tolerance, length, rows):
    tokens = packed(rows, length)
    options = {**shape.options, "precision": jax.lax.Precision.HIGHEST}
    blocks = functools.partial(attention, query_placement=tokens, key_placement=tokens, **options)
    assert "while" in str(jax.make_jaxpr(blocks)(*arrays(shape, *tokens.segment_ids.shape)[:3]))
    check_same(blocks, shape, tokens, dtype=dtype, tolerance=tolerance)


def test_blocks_that_nothing_sees_are_not_computed():
    """NaN in a sequence would spoil all others of its row, if zero times NaN were added."""
    tokens = packed([[64, 64, 128]], 256)
    query, key, value = (jnp.ones((1, 256, 1, 16)).at[:, 64:128].set(jnp.nan) for _ in range(3))
    options = {"scale": 0.25, "window": None, "softcap": None, "precision": jax.lax.Precision.HIGHEST}
    found = attention(query, key, value, query_placement=tokens, key_placement=tokens, **options)
    assert block_attention.BLOCK == 64
    np.testing.assert_array_equal(np.isnan(found[0, :, 0, 0]), (np.arange(256) >= 64) & (np.arange(256) < 128))


@pytest.mark.parametrize(
    "shape",
    [
        Shape(heads=4, kv_heads=2, head_dim=64),
        Shape(heads=3, kv_heads=1, head_dim=128, window=100),
        Shape(heads=1, kv_heads=1, head_dim=128, window=1),
        Shape(heads=2, kv_heads=1, head_dim=256, softcap=50.0, window=130),
    ],
    ids=str,
)
def test_splash_is_attention_in_float32(interpreted, shape):
    tokens = packed(ROWS, 384)
    fused = functools.partial(splash.splash_attention, segment_ids=tokens.segment_ids, **shape.options)
    check_same(fused, shape, tokens, dtype=jnp.float32, tolerance=1e-5)


@pytest.mark.parametrize("length", [1, 300, 1024])
def test_splash_is_attention_in_bfloat16_at_every_length(interpreted, length):
    """Rows that are no whole blocks, and rows long enough that blocks of keys are fetched in pairs."""
    shape = Shape(heads=2, kv_heads=1, head_dim=128, window=200)
    tokens = packed([[length // 3, length - length // 3], [length]], length)
    where = {"query_placement": tokens, "key_placement": tokens}
    fused = functools.partial(attention, **where, **shape.options, precision=jax.lax.Precision.DEFAULT, kernel="splash")
    empty = [jnp.zeros((2, length, heads, 128), jnp.bfloat16) for heads in (2, 1, 1)]
    assert "pallas_call" in str(jax.make_jaxpr(fused)(*empty))
    check_same(fused, shape, tokens, dtype=jnp.bfloat16, tolerance=0.015)


def test_fused_kernels_leave_decoding_and_float32_to_xla():
    tokens = packed([[8]], 8)
    last = Placement(*(array[:, -1:] for array in tokens))
    for dtype, queries in ((jnp.bfloat16, last), (jnp.float32, tokens)):
        rows = [jnp.ones((1, where.segment_ids.shape[1], 2, 64), dtype) for where in (queries, tokens, tokens)]
        for kernel in ("splash", "gpu"):
            traced = jax.make_jaxpr(functools.partial(_attend, kernel=kernel, shape=Shape(2, 2, 64)))(
                *rows, queries, tokens
            )
            assert "pallas_call" not in str(traced)


def _attend(query, key, value, query_placement, key_placement, *, kernel, shape):
    return attention(
        query,
        key,
        value,
        query_placement=query_placement,
        key_placement=key_placement,
        **shape.options,
        precision=jax.lax.Precision.DEFAULT,
        kernel=kernel,
    )


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 255), max_size=12), padding=st.integers(0, 200), window=st.sampled_from([None, 40]))
def test_splash_is_attention_for_any_packing(cuts, padding, window):
    bounds = sorted({0, *(cut for cut in cuts if cut < 256 - padding), 256 - padding})
    tokens = packed([np.diff(bounds).tolist()], 256)
    rng = np.random.default_rng(len(cuts))
    query, key, value = (jnp.asarray(rng.standard_normal((1, 256, n, 64)), jnp.float32) for n in (2, 1, 1))
    actual, expected = _both(query, key, value, tokens, window)
    real = np.asarray(tokens.segment_ids) > 0
    np.testing.assert_allclose(np.asarray(actual)[real], np.asarray(expected)[real], atol=2e-6)


@functools.partial(jax.jit, static_argnames="window")
def _both(query, key, value, tokens, window):
    options = {"scale": 0.125, "window": window, "softcap": None}
    where = {"query_placement": tokens, "key_placement": tokens, "precision": jax.lax.Precision.HIGHEST}
    fused = splash.splash_attention(query, key, value, tokens.segment_ids, **options, interpret=True)
    return fused, dense_attention(query, key, value, **where, **options)


# Without a TPU, its programs cannot be read back from the cache that the tests share.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.parametrize(
    ("topology", "shape", "rows", "length"),
    [
        pytest.param("v4-16", Shape(16, 8, 256, window=2048, softcap=50.0), 2, 4096, id="Gemma-2-9B on v4"),
        pytest.param("v5e-16", Shape(16, 8, 256, window=2048, softcap=50.0), 2, 4096, id="Gemma-2-9B on v5e"),
        pytest.param("v5e-16", Shape(32, 8, 64), 2, 2048, id="Llama-3.2-1B on v5e"),
        pytest.param("v5p-16", Shape(32, 8, 128), 4, 2048, id="Llama-3.1-8B on v5p"),
        pytest.param("v6e-16", Shape(28, 4, 128), 2, 4096, id="Qwen2.5-7B on v6e"),
        pytest.param("tpu7x-8", Shape(16, 8, 256, window=2048, softcap=50.0), 2, 4096, id="Gemma-2-9B on TPU7x"),
    ],
)
def test_splash_compiles_for_tpus_without_whole_scores(topology, shape, rows, length):
    """As in training: under `shard_map`, in a scan's rematerialised body, with the gradient."""
    pytest.importorskip("libtpu")
    devices = parse_topology(topology).devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    over_rows = PartitionSpec("data")

    def loss(query, key, value, segment_ids):
        tokens = Placement(segment_ids, segment_ids)
        policy = jax.checkpoint_policies.save_only_these_names(splash.RESIDUALS)
        attend = functools.partial(_attend, kernel="splash", shape=shape)
        attend = jax.checkpoint(attend, policy=policy, prevent_cse=False)
        end, _ = jax.lax.scan(lambda x, _: (attend(x, key, value, tokens, tokens), None), query, length=2)
        return end.astype(jnp.float32).sum()

    gradients = jax.shard_map(
        jax.grad(loss, argnums=(0, 1, 2)), mesh=mesh, in_specs=over_rows, out_specs=over_rows, check_vma=False
    )

    def array(*per_row: int, dtype=jnp.bfloat16):
        sharding = NamedSharding(mesh, over_rows)
        return jax.ShapeDtypeStruct((rows * len(devices), length, *per_row), dtype, sharding=sharding)

    keys = array(shape.kv_heads, shape.head_dim)
    operands = (array(shape.heads, shape.head_dim), keys, keys, array(dtype=jnp.int32))
    compiled = jax.jit(gradients).lower(*operands).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * rows * shape.heads * length**2
    # The forward kernel runs once, as its residuals are saved.
    kernels = re.findall(r"%splash_mha_(fwd|dkv)\w*[.\d]* = ", compiled.as_text())
    assert sorted(kernels) == ["dkv", "fwd"]
