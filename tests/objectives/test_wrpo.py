"""WRPO against worked numbers, against DPO where its share is 0 or 1, and in a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusejax.objectives.losses.dpo import DPO
from fusejax.objectives.losses.wrpo import WRPO
from fusejax.objectives.preference import Pairs
from fusejax.training.loop import train
from tests.tiny_runs import run_config

# Of the source's response, the target's and the rejected one.
LOGPROBS, REFERENCE, LENGTHS = (-210.0, -120.0, -150.0), (-230.0, -118.0, -140.0), (140, 80, 100)


def triples(logprobs, reference, lengths, progress=None):
    source, target, rejected = logprobs
    reference_source, *references = reference
    source_lengths, *others = lengths
    return Pairs(target, rejected, *others, *references, source, source_lengths, reference_source, progress)


def example(progress):
    arrays = [[jnp.array([x]) for x in values] for values in (LOGPROBS, REFERENCE, LENGTHS)]
    return triples(*arrays, progress=jnp.array([progress], jnp.float32))


@pytest.mark.parametrize(
    ("step", "alpha", "margin", "loss"),
    [
        (0, 0.0, 0.08, 0.65394697),
        (100, 0.02, 0.0844, 0.65183734),
        (250, 0.05, 0.0910, 0.64868195),
        (500, 0.1, 0.102, 0.64344712),
    ],
)
def test_worked_example(step, alpha, margin, loss):
    found = WRPO(beta=0.01, alpha=0.1)(example(step / 500))
    assert found.losses[0] == pytest.approx(loss, abs=1e-7)
    assert found.metrics["alpha"][0] == pytest.approx(alpha, abs=1e-8)
    mixed = alpha * found.metrics["source_reward"] + (1 - alpha) * found.chosen_rewards
    assert float((mixed - found.rejected_rewards)[0]) == pytest.approx(margin, abs=1e-7)
    assert found.metrics["source_reward_accuracy"][0] == 1


def test_gradient_of_the_worked_example():
    pairs = example(1.0)

    def loss(source, target, rejected):
        logprobs = {"source_logprobs": source, "chosen_logprobs": target, "rejected_logprobs": rejected}
        return WRPO(beta=0.01, alpha=0.1)(pairs._replace(**logprobs)).losses[0]

    values = pairs.source_logprobs, pairs.chosen_logprobs, pairs.rejected_logprobs
    found = np.concatenate(jax.grad(loss, argnums=(0, 1, 2))(*values))
    np.testing.assert_allclose(found, [-0.000475, -0.004271, 0.004745], atol=5e-7)


def test_length_normalized():
    loss = WRPO(beta=10.0, alpha=0.1, dynamic=False, length_normalized=True)
    assert not loss.needs_progress
    assert loss(example(0.3)).losses[0] == pytest.approx(0.33602494, abs=1e-7)


def random_triples(seed):
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(100.0, (3, 64)).astype(np.float32)
    reference = (logprobs + rng.normal(0, 20.0, (3, 64))).astype(np.float32)
    return logprobs, reference, rng.integers(1, 300, (3, 64)).astype(np.int32)


@pytest.mark.parametrize("settings", [{}, {"length_normalized": True}, {"label_smoothing": 0.2}])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_share_of_nothing_or_all_is_dpo_bit_for_bit(settings, alpha, dynamic):
    """Of the target's pair, or of the source's response and the rejected one: values and gradients."""
    logprobs, reference, lengths = random_triples(0)
    wrpo, dpo = WRPO(beta=0.3, alpha=alpha, dynamic=dynamic, **settings), DPO(beta=0.3, **settings)
    pair = [0 if alpha else 1, 2]

    # As in a run, all numbers are arguments: XLA computes with constants in another order.
    @jax.jit
    def ours(logprobs, reference, lengths, progress):
        return wrpo(triples(logprobs, reference, lengths, progress if dynamic else None)).losses

    @jax.jit
    def theirs(logprobs, reference, lengths):
        return dpo(Pairs(*logprobs, *lengths, *reference)).losses

    others, others_of_pair = (reference, lengths, np.ones(64, np.float32)), (reference[pair], lengths[pair])
    np.testing.assert_array_equal(ours(logprobs, *others), theirs(logprobs[pair], *others_of_pair))
    gradient = jax.jit(jax.grad(lambda *x: jnp.sum(ours(*x))))(logprobs, *others)
    expected = jax.jit(jax.grad(lambda *x: jnp.sum(theirs(*x))))(logprobs[pair], *others_of_pair)
    np.testing.assert_array_equal(gradient[np.array(pair)], expected)
    np.testing.assert_array_equal(gradient[1 - pair[0]], 0)
    assert np.abs(expected).min() > 0


def test_label_smoothing_is_a_mixture_with_the_mirror_image():
    logprobs, reference, lengths = random_triples(1)
    pairs = triples(logprobs, reference, lengths, jnp.full(64, 0.5))
    plain, smooth = (WRPO(beta=0.02, alpha=0.4, label_smoothing=e)(pairs).losses for e in (0.0, 0.1))
    ratios = logprobs.astype(np.float64) - reference
    margin = 0.02 * (0.2 * ratios[0] + 0.8 * ratios[1] - ratios[2])
    np.testing.assert_allclose(plain, np.logaddexp(0, -margin), rtol=1e-5)
    np.testing.assert_allclose(smooth, 0.9 * np.logaddexp(0, -margin) + 0.1 * np.logaddexp(0, margin), rtol=1e-5)


def test_empty_slots_make_no_nan():
    zeros, empty = jnp.zeros((3, 2)), jnp.zeros((3, 2), int)
    loss = WRPO(length_normalized=True)
    gradient = jax.grad(lambda x: jnp.sum(loss(triples(x, zeros, empty, jnp.ones(2))).losses))(zeros)
    assert np.isfinite(gradient).all()


def test_a_run(world, tmp_path):
    """The share rises with the steps done, in evaluations too; one number of the reference for each answer."""
    train(run_config(world, tmp_path / "run", "wrpo"))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    np.testing.assert_allclose([line["alpha"] for line in lines], [0.5 * t / 12 for t in range(12)], rtol=1e-6)
    evaluated = {line["step"]: line["eval_alpha"] for line in lines if "eval_alpha" in line}
    assert evaluated == {step: pytest.approx(0.5 * step / 12) for step in (4, 8, 12)}
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["eval_reward_accuracy"] > 0.5 and lines[-1]["eval_source_reward_accuracy"] > 0.5
    with np.load(tmp_path / "run/reference.npz") as found:
        names = {f"{split}.{answer}" for split in ("train", "eval") for answer in ("source", "chosen", "rejected")}
        assert set(found.files) == names | {"identity"}
        assert all(np.isfinite(found[name]).all() for name in names)
        # The other two are those of the pairs that the triples hold.
        train(run_config(world, tmp_path / "dpo", "dpo", max_steps=1))
        with np.load(tmp_path / "dpo/reference.npz") as pairs:
            for name in names & set(pairs.files):
                np.testing.assert_allclose(found[name], pairs[name], rtol=1e-5)
