"""Stochastic rounding: right on average, the same everywhere, and small changes add up."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusejax.config import OptimizerConfig
from fusejax.training.network import Accumulator
from fusejax.training.optimizer import make_optimizer
from fusejax.training.rounding import stochastically_rounded, stored
from fusejax.training.state import initializer
from fusejax.training.step import apply

EVERY = jnp.arange(2**16, dtype=jnp.uint16)
"""All that 16 random bits can be."""


@pytest.mark.parametrize("x", [1 + 1 / 512, -0.0217, 3.14159, 1e-30, -1e-41, 6.1e-39, 255.99, 1.9999999, -7e33])
def test_the_mean_is_exact_and_only_neighbours_occur(x):
    x = np.float32(x)
    found = np.asarray(stochastically_rounded(jnp.full(EVERY.shape, x), EVERY)).astype(np.float64)
    assert found.mean() == np.float64(x)
    low, high = sorted({found.min(), found.max()})
    assert set(found) == {low, high} and low < x < high
    assert np.float32(jnp.nextafter(jnp.bfloat16(low), jnp.bfloat16(high))) == high or abs(x) < 1e-37


@pytest.mark.parametrize("x", [0.0, -0.0, 1.0, -2.5, 2**-133, np.inf, -np.inf, np.nan, -np.nan])
def test_what_bfloat16_has_stays(x):
    found = np.asarray(stochastically_rounded(jnp.full(EVERY.shape, jnp.float32(x)), EVERY)).astype(np.float32)
    np.testing.assert_array_equal(found, np.float32(x))
    if not np.isnan(x):
        np.testing.assert_array_equal(np.signbit(found), np.signbit(np.float32(x)))


def test_any_nan_stays_one():
    """Also one whose low bits would carry into the sign."""
    x = jax.lax.bitcast_convert_type(jnp.full(EVERY.shape, 0x7FFFFFFF, jnp.uint32), jnp.float32)
    assert bool(jnp.isnan(stochastically_rounded(x, EVERY)).all())


def test_steps_and_arrays_are_rounded_independently():
    x = jnp.full((64, 64), 1 + 1 / 256)
    tree, like = {"a": x, "b": x, "c": x}, {"a": jnp.bfloat16(0), "b": jnp.bfloat16(0), "c": jnp.float32(0)}
    one, other = stored(tree, like, jnp.int32(1)), stored(tree, like, jnp.int32(2))
    assert one["c"] is x
    ups = [np.asarray(each > 1) for each in (one["a"], one["b"], other["a"], other["b"])]
    for index, up in enumerate(ups):
        assert abs(up.mean() - 0.5) < 0.04  # five standard deviations
        for before in ups[:index]:
            assert abs((up == before).mean() - 0.5) < 0.04


def test_the_bits_do_not_depend_on_devices():
    script = textwrap.dedent("""
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from fusejax.config import MeshConfig
        from fusejax.distributed.mesh import make_mesh
        from fusejax.training.rounding import stored

        tree = {name: np.random.default_rng(0).normal(size=(4, 16, 24)).astype(np.float32) for name in "ab"}
        like = {name: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for name, x in tree.items()}
        found = []
        for sizes in ({"fsdp": 1}, {"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}):
            mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:np.prod(list(sizes.values()))])
            sharding = NamedSharding(mesh, P(None, ("tensor", "fsdp"), None))
            put = jax.device_put(tree, sharding)
            program = jax.jit(lambda tree, step: stored(tree, like, step), out_shardings=sharding)
            found.append(jax.device_get(program(put, jnp.int32(7))))
        for other in found[1:]:
            for name, x in found[0].items():
                np.testing.assert_array_equal(x.view(np.uint16), other[name].view(np.uint16))
        assert not np.array_equal(found[0]["a"], found[0]["b"])
    """)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def trained(steps: int, params: str, moments: str, learning_rate: float):
    """A matrix after steps with the same gradient, and the optimizer's moments."""
    config = OptimizerConfig(learning_rate=learning_rate, schedule="constant", warmup_ratio=0, max_grad_norm=1e9)
    optimizer = make_optimizer(config, steps)
    start = jax.random.uniform(jax.random.key(1), (128, 128), minval=0.015, maxval=0.03).astype(params)
    gradient = jax.random.normal(jax.random.key(2), (1, 128, 128))
    state = initializer(optimizer, moments=jnp.dtype(moments))({"w": start})

    def step(state, _):
        return apply(optimizer, state, Accumulator({"w": gradient}, {"count": jnp.ones(1)}))[0], None

    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, length=steps))(state)
    adam = state.optimizer[1][0]
    return start.astype(jnp.float32), gradient[0], state.params["w"], adam.mu["w"], adam.nu["w"]


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_updates_below_the_resolution_add_up(moments):
    """Weights of 0.02 lie 1.2e-4 apart; each step moves them by 5e-7."""
    start, gradient, end, *_ = trained(400, "bfloat16", moments, learning_rate=5e-7)
    assert end.dtype == jnp.bfloat16
    assert float(jnp.mean(end != start)) > 0.5
    moved = -jnp.sign(gradient) * (end.astype(jnp.float32) - start)
    # The mean of 16,384 weights, each within about one spacing: known to 1 %.
    assert float(jnp.mean(moved)) == pytest.approx(400 * 5e-7, rel=0.04)


def test_second_moments_in_bfloat16_move():
    """A step changes them by at most 0.1 %, less than a fourth of their resolution."""
    exact = trained(600, "float32", "float32", learning_rate=1e-6)
    found = trained(600, "float32", "bfloat16", learning_rate=1e-6)
    for ours, theirs in zip(found[3:], exact[3:], strict=True):
        assert (ours.dtype, theirs.dtype) == (jnp.bfloat16, jnp.float32)
        ratio = np.asarray(ours, np.float32) / np.asarray(theirs)
        assert ratio.mean() == pytest.approx(1, abs=0.005)
        assert ratio.std() < 0.05
