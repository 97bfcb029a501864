"""The chunked projection against the dense computation, in value and gradient."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejax.objectives.logprobs import target_logprobs


def dense_logprobs(hidden, head, tokens, loss_mask, softcap):
    logits = jnp.einsum("bld,vd->blv", hidden[:, :-1], head)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.where(loss_mask, jnp.pad(logprobs, ((0, 0), (1, 0))), 0.0)


def case(seed, rows, length, width=16, vocabulary=37, share=0.5):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, length, width)).astype(np.float32)
    head = rng.normal(size=(vocabulary, width)).astype(np.float32)
    tokens = rng.integers(0, vocabulary, (rows, length))
    mask = rng.random((rows, length)) < share
    mask[:, 0] = False
    return hidden, head, tokens, mask


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 3),
    length=st.integers(2, 20),
    chunk_tokens=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    softcap=st.sampled_from([None, 3.0]),
)
def test_values_and_gradients_equal_the_dense_computation(seed, rows, length, chunk_tokens, share, softcap):
    hidden, head, tokens, mask = case(seed, rows, length, share=share)
    weights = np.random.default_rng(seed + 1).normal(size=tokens.shape).astype(np.float32)

    def total(function, hidden, head):
        logprobs = function(hidden, head)
        return jnp.sum(logprobs * weights), logprobs

    def chunked(hidden, head):
        return target_logprobs(hidden, head, tokens, mask, softcap=softcap, chunk_tokens=chunk_tokens)

    def dense(hidden, head):
        return dense_logprobs(hidden, head, tokens, mask, softcap)

    (_, ours), our_grads = jax.value_and_grad(lambda *a: total(chunked, *a), argnums=(0, 1), has_aux=True)(hidden, head)
    (_, theirs), their_grads = jax.value_and_grad(lambda *a: total(dense, *a), argnums=(0, 1), has_aux=True)(
        hidden, head
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for our_grad, their_grad in zip(our_grads, their_grads, strict=True):
        np.testing.assert_allclose(our_grad, their_grad, rtol=1e-4, atol=1e-5)


def test_tied_head_receives_both_gradients():
    """With a tied head the embedding's gradient is the sum of the way in and the way out."""
    _, head, tokens, mask = case(0, 2, 12)

    def loss(function, embedding):
        return jnp.sum(function(jnp.tanh(embedding[tokens]), embedding, tokens, mask))

    ours = jax.grad(lambda e: loss(lambda *a: target_logprobs(*a, chunk_tokens=4), e))(head)
    theirs = jax.grad(lambda e: loss(lambda *a: dense_logprobs(*a, None), e))(head)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16_accumulates_in_float32():
    hidden, head, tokens, mask = case(1, 2, 64, width=256)
    half = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    ours = target_logprobs(*half, tokens, mask)
    exact = dense_logprobs(*(jnp.asarray(x, jnp.float32) for x in half), tokens, mask, None)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, atol=1e-3)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_full_logits_never_exist(gradient):
    """Neither the forward nor the backward program holds an array of all tokens by all words."""
    rows, length, vocabulary = 2, 512, 4096
    hidden, head, tokens, mask = case(2, rows, length, vocabulary=vocabulary)

    def loss(hidden, head):
        return jnp.sum(target_logprobs(hidden, head, tokens, mask, chunk_tokens=64))

    function = jax.grad(loss, argnums=(0, 1)) if gradient else loss
    memory = jax.jit(function).lower(hidden, head).compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows * length * vocabulary * 4 / 2


def test_devices_add_up_the_gradient_of_the_head_once():
    """On four devices, in a process of its own: the loop has no reduction of [V, D]; results are those of one."""
    script = textwrap.dedent("""
        import re
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from fusejax.config import MeshConfig
        from fusejax.distributed.mesh import make_mesh, one_device_mesh
        from fusejax.objectives.logprobs import target_logprobs
        from tests.objectives.test_logprobs import case

        hidden, head, tokens, mask = case(3, rows=8, length=24, vocabulary=48)
        weights = np.random.default_rng(4).normal(size=tokens.shape).astype(np.float32)

        def compiled(mesh):
            def total(hidden, head):
                logprobs = target_logprobs(hidden, head, tokens, mask, mesh=mesh, softcap=5.0, chunk_tokens=4)
                return jnp.sum(logprobs * weights), logprobs

            rows, words = (NamedSharding(mesh, PartitionSpec(*s)) for s in ((("data", "fsdp"),), ("tensor", "fsdp")))
            layout = {"in_shardings": (rows, words), "out_shardings": ((None, rows), (rows, words))}
            gradient = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
            return jax.jit(gradient, **layout).lower(hidden, head).compile()

        one = one_device_mesh()
        assert one.size == 1 and len(jax.devices()) == 4
        expected = jax.tree.leaves(compiled(one)(hidden, head))
        for sizes in ({"fsdp": 4}, {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}):
            program = compiled(make_mesh(MeshConfig(**sizes)))
            for ours, theirs in zip(jax.tree.leaves(program(hidden, head)), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
            text = program.as_text()
            bodies = set(re.findall(r"body=%?([\\w.-]+)", text))
            loops = [part for part in text.split("\\n\\n") if part.lstrip().lstrip("%").split(" ")[0] in bodies]
            assert len(loops) == len(bodies) >= 2, (len(loops), bodies)
            words = 48 // sizes.get("tensor", 1)
            reductions = re.findall(rf"= f32\\[{words},\\d+\\]\\S* (?:all-reduce|reduce-scatter)", "".join(loops))
            assert not reductions, (sizes, reductions)
            if "tensor" not in sizes:
                assert not re.search(r"all-reduce|all-gather", "".join(loops)), sizes
    """)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
