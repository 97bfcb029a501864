"""Approximate likelihood matching: the worked number, its least value, its scale, log-probabilities at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusejax.objectives.alm import alm_losses, binary_cross_entropy

EDGES = [1e-7, 0.0, -1e-6, -1e-3, -0.7, -70.0, -1e3]
"""The first is what rounding may make of 0."""


def exact(source, student, temperature):
    """In float64, and the derivative by `student`."""
    a, b = (np.minimum(np.float64(each), 0) / temperature - 1e-6 for each in (source, student))
    loss = -(np.exp(a) * b - np.expm1(a) * np.log(-np.expm1(b)))
    return loss, -(np.exp(a) - np.exp(b)) / -np.expm1(b) / temperature


def test_a_worked_number():
    """ "utilization": the source's 0.8, 0.9 and 0.95, the student's tokens -0.5 and -0.2."""
    source = round(np.log([0.8, 0.9, 0.95]).sum(), 6)
    assert source == -0.379797
    loss = binary_cross_entropy(jnp.float32(source), jnp.float32(-0.5 - 0.2), 100.0)
    assert float(loss) == pytest.approx(0.02580132, abs=1e-8)
    ids, logprobs = jnp.array([[0, 2, 2]]), jnp.array([[0, 0, source]], jnp.float32)
    losses = alm_losses(jnp.array([[-9.0, -0.5, -0.2]]), ids, logprobs, 100.0)
    np.testing.assert_allclose(losses, [[0, 0, 2.580132]], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_the_edges(temperature):
    """Losses and gradients, in float32."""
    source, student = (jnp.array(each.ravel(), jnp.float32) for each in np.meshgrid(EDGES, EDGES))
    loss, gradient = jax.vmap(jax.value_and_grad(binary_cross_entropy, argnums=1), (0, 0, None))(
        source, student, temperature
    )
    expected, slope = exact(source, student, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-12)
    inner = np.asarray(student) < 0  # above 0 nothing is to be gained, and at 0 there are two slopes
    np.testing.assert_allclose(gradient[inner], slope[inner], rtol=1e-4, atol=1e-6 / temperature)
    assert np.isfinite(gradient).all()


def test_least_where_both_are_equal():
    values = jnp.array([-1e-3, -0.38, -5.0, -80.0])
    loss, gradient = jax.vmap(jax.value_and_grad(binary_cross_entropy, argnums=1), (0, 0, None))(values, values, 100.0)
    p = np.exp(np.asarray(values, np.float64) / 100 - 1e-6)
    np.testing.assert_allclose(loss, -(p * np.log(p) + (1 - p) * np.log1p(-p)), rtol=1e-4)
    assert np.abs(gradient).max() < 1e-8
    for other in (0.9, 1.1):
        assert (binary_cross_entropy(values, other * values, 100.0) > loss).all()


@pytest.mark.parametrize("temperature", [1.0, 10.0, 100.0])
def test_a_certain_source_makes_it_the_likelihood_of_the_tokens(temperature):
    """At any temperature, and the gradient of each token's log-probability is -1."""
    ids, target = jnp.array([[0, 1, 1, 2, 0]]), jnp.array([[-9.0, -0.5, -0.2, -1.5, -9.0]])

    def total(target):
        return jnp.sum(alm_losses(target, ids, jnp.zeros((1, 5)), temperature))

    loss, gradient = jax.value_and_grad(total)(target)
    assert float(loss) == pytest.approx(2.2, rel=2e-3)
    np.testing.assert_allclose(gradient, [[0, -1, -1, -1, 0]], atol=2e-3)
