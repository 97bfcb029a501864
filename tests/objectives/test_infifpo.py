"""InfiFPO: the loss, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusejax.objectives.losses.dpo import DPO
from fusejax.objectives.losses.infifpo import InfiFPO
from fusejax.objectives.preference import Pairs
from fusejax.training.likelihoods import fuse

CHOSEN = np.array([[-0.25, -0.40, -0.20]])
REJECTED = np.array([[-0.70, -0.50, -0.65]])
REFERENCE = np.array([-0.32]), np.array([-0.58])
LENGTHS = jnp.array([10]), jnp.array([20])
POLICY = jnp.array([-3.0]), jnp.array([-12.0])  # -.30 and -.60 a token
LOSS = InfiFPO(sources=("s",))


def pairs(fusion="max_margin", chosen=CHOSEN, rejected=REJECTED):
    chosen, rejected = (
        tuple(map(jnp.asarray, fuse(values, own, fusion, chosen=best)))
        for values, own, best in ((chosen, REFERENCE[0], True), (rejected, REFERENCE[1], False))
    )
    own = (jnp.asarray(REFERENCE[0] * LENGTHS[0]), jnp.asarray(REFERENCE[1] * LENGTHS[1]))
    return Pairs(*POLICY, *LENGTHS, *own, chosen_bounds=chosen, rejected_bounds=rejected)


@pytest.mark.parametrize(("fusion", "loss"), [("max_margin", 0.97407698), ("mean", 0.80733713)])
def test_worked_numbers(fusion, loss):
    np.testing.assert_allclose(LOSS(pairs(fusion)).losses, [loss], rtol=1e-5)


@pytest.mark.parametrize("fusion", ["max_margin", "mean", "confidence"])
def test_sources_that_say_nothing_or_what_the_start_says_give_length_normalised_dpo(fusion):
    dpo = DPO(beta=2.5, length_normalized=True)(pairs())
    np.testing.assert_allclose(dpo.losses, [0.64439666], rtol=1e-5)
    same = [np.repeat(own[:, None], 3, axis=1) for own in REFERENCE]
    for values in (same, [np.full((1, 2), np.nan)] * 2):
        found = LOSS(pairs(fusion, *values))
        for ours, theirs in zip(found[:3], dpo[:3], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_confidence_weights_by_the_values_before_clipping():
    weights = 1 / np.array([0.25, 0.40, 0.20])
    expected = weights @ [-0.25, -0.32, -0.20] / weights.sum()
    low, high = fuse(CHOSEN, REFERENCE[0], "confidence", chosen=True)
    np.testing.assert_allclose([low, high], [[expected]] * 2, rtol=1e-4)


def test_the_bounds_suffice_for_the_farthest_source():
    rng = np.random.default_rng(0)
    sources, reference, policy = -rng.random((200, 5)), -rng.random(200), -rng.random(200)
    clipped = np.maximum(sources, reference[:, None])
    farthest = clipped[np.arange(200), np.abs(clipped - policy[:, None]).argmax(1)]
    ones, zeros = jnp.ones(200, int), jnp.zeros(200)
    bounds = tuple(map(jnp.asarray, fuse(sources, reference, "max_margin", chosen=True)))
    given = Pairs(jnp.asarray(policy), zeros, ones, ones, chosen_bounds=bounds, rejected_bounds=(zeros, zeros))
    np.testing.assert_allclose(LOSS(given).losses, np.log1p(np.exp(-2.5 * (policy - farthest))), rtol=1e-4)


def test_no_gradient_flows_through_the_sources():
    def loss(policy, bounds):
        return LOSS(pairs()._replace(chosen_logprobs=policy, chosen_bounds=bounds)).losses.sum()

    chosen, sources = jax.grad(loss, (0, 1))(POLICY[0], pairs().chosen_bounds)
    np.testing.assert_allclose(chosen, [-2.5 / (1 + np.exp(-0.5)) / 10], rtol=1e-5)
    assert not np.any(sources)
