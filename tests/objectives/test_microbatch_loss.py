"""Sums over a microbatch: weights, and the likelihood of chosen answers as a part of a preference loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusejax.data.examples import Tokenized
from fusejax.data.loader import assemble
from fusejax.data.records import ANSWERS
from fusejax.objectives.logprobs import Logprobs
from fusejax.objectives.losses.dpo import DPO
from fusejax.objectives.losses.wrpo import WRPO
from fusejax.objectives.microbatch_loss import make_loss

LOSSES = {
    "sft": None,
    "dpo": DPO(beta=0.3, length_normalized=True, sft_weight=0.5),
    "wrpo": WRPO(beta=0.1, alpha=0.6, sft_weight=0.5),
}


def example_of(kind: str, count: int, weights=None) -> Tokenized:
    """Sequences of 4 to 8 tokens, of which the first two are no targets."""
    each = len(ANSWERS[kind]) or 1
    lengths = [4 + (7 * i) % 5 for i in range(count * each)]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    places = np.concatenate([np.arange(length) for length in lengths])
    names = [str(i) for i in range(count)]
    tokens = np.arange(offsets[-1], dtype=np.int32)
    return Tokenized(kind, tokens, places > 1, offsets, names, [], {}, weights=weights)


def microbatch(data, rows):
    return {name: jnp.asarray(array) for name, array in assemble(data, rows, 96).items()}


def sums(kind: str, rows, weights=None, progress=0.5):
    """The sums, and the gradient by token id."""
    data = example_of(kind, 3, None if weights is None else np.array(weights, np.float32))
    batch = microbatch(data, rows)
    values = np.random.default_rng(0).exponential(2.0, len(data.tokens)).astype(np.float32)
    if kind != "sft":
        filled = batch["pair_ids"] >= 0
        for i, name in enumerate(("reference_source", "reference_chosen", "reference_rejected")[-len(ANSWERS[kind]) :]):
            batch[name] = jnp.where(filled, -9.0 - i - batch["pair_ids"], 0.0)
    if kind == "wrpo":
        batch["progress"] = jnp.full((len(rows), 1), progress)

    def loss(values):
        logprobs = jnp.where(batch["loss_mask"], -values[batch["tokens"]], 0.0)
        found = make_loss(LOSSES[kind])(Logprobs(logprobs), batch)
        return found["loss"], found

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(values))
    return found, gradient, data, values


@pytest.mark.parametrize("kind", ["sft", "dpo", "wrpo"])
def test_a_weight_is_a_number_of_copies(kind):
    """An example of weight 2 counts as if it were there twice, and one of 1 as without weights."""
    weighted, gradient, *_ = sums(kind, [[0, 2], [1]], [1.0, 2.0, 3.0])
    copied, expected, *_ = sums(kind, [[0, 2, 1], [1, 2], [2]])
    assert weighted.keys() == copied.keys()
    for name, value in copied.items():
        np.testing.assert_allclose(weighted[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    plain, gradient, *_ = sums(kind, [[0, 2], [1]])
    ones, same, *_ = sums(kind, [[0, 2], [1]], [1.0] * 3)
    assert {name: float(value) for name, value in plain.items()} == {name: float(value) for name, value in ones.items()}
    np.testing.assert_array_equal(same, gradient)


def test_the_likelihood_of_a_chosen_answer_is_added():
    """Its mean over tokens, and over pairs, in float64."""
    found, _, data, values = sums("dpo", [[0, 1], [2]])
    nll = [values[data.sequence(2 * i)[0][data.sequence(2 * i)[1]]].astype(np.float64).mean() for i in range(3)]
    assert float(found["sft_loss"]) == pytest.approx(sum(nll), rel=1e-6)
    plain = DPO(beta=0.3, length_normalized=True)
    batch = microbatch(data, [[0, 1], [2]])
    logprobs = jnp.where(batch["loss_mask"], -jnp.asarray(values)[batch["tokens"]], 0.0)
    alone = make_loss(plain)(Logprobs(logprobs), batch | references(batch))
    assert "sft_loss" not in alone
    assert float(found["loss"]) == pytest.approx(float(alone["loss"]) + 0.5 * sum(nll), rel=1e-6)


def references(batch):
    filled = batch["pair_ids"] >= 0
    values = {"reference_chosen": -9.0, "reference_rejected": -10.0}
    return {name: np.where(filled, value - batch["pair_ids"], 0).astype(np.float32) for name, value in values.items()}


def test_of_triples_both_chosen_answers_have_the_shares_of_the_loss():
    found, _, data, values = sums("wrpo", [[0, 1], [2]], progress=0.5)
    nll = [values[data.sequence(i)[0][data.sequence(i)[1]]].astype(np.float64).mean() for i in range(9)]
    assert float(found["sft_loss"]) == pytest.approx(0.3 * sum(nll[0::3]) + 0.7 * sum(nll[1::3]), rel=1e-6)


def test_fused_tokens_count_by_the_weights_of_their_examples():
    """The sums of a weighted microbatch are those of its examples alone, times their weights."""
    random = np.random.default_rng(1)
    data = example_of("sft", 2)
    alone = [microbatch(data, [[i], []]) for i in range(2)]
    both = microbatch(dataclasses.replace(data, weights=np.array([0.5, 3.0], np.float32)), [[0], [1]])

    def row(i):
        batch = {name: array[:1] for name, array in alone[i].items()}
        soft = np.where(np.asarray(batch["loss_mask"])[..., None], random.dirichlet([1, 1], (1, 96)), 0)
        values = [-np.where(np.asarray(batch["loss_mask"]), random.exponential(1, (1, 96)), 0) for _ in range(2)]
        return batch | {"soft_weights": jnp.asarray(soft, jnp.float32)}, [jnp.asarray(x, jnp.float32) for x in values]

    loss, rows = make_loss(None, 0.7), [row(i) for i in range(2)]
    each = [loss(Logprobs(*values), batch) for batch, values in rows]
    soft = jnp.concatenate([batch["soft_weights"] for batch, _ in rows])
    together = [jnp.concatenate(pair) for pair in zip(*(values for _, values in rows), strict=True)]
    found = loss(Logprobs(*together), both | {"soft_weights": soft})
    for name, value in found.items():
        assert float(value) == pytest.approx(0.5 * float(each[0][name]) + 3 * float(each[1][name]), rel=1e-6)
    assert found.keys() == {"loss", "count", "clm", "fusion_ce", "teacher_entropy", "fused"}
