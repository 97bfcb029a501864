"""The losses on pairs against TRL's own code, run on the same numbers."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusejax.objectives.losses.dpo import DPO
from fusejax.objectives.losses.ipo import IPO
from fusejax.objectives.losses.simpo import SimPO
from fusejax.objectives.preference import Pairs, segment_sums
from fusejax.objectives.sft import sft_loss

torch = pytest.importorskip("torch")
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402

PAIRS, LENGTH = 5, 12


def numbers():
    """Per-token log-probabilities of five chosen and five rejected answers, their masks and references."""
    rng = np.random.default_rng(0)
    mask = np.zeros((2 * PAIRS, LENGTH + 1), np.int64)
    for row, length in enumerate(rng.integers(1, LENGTH + 1, 2 * PAIRS)):
        mask[row, 1 : 1 + length] = 1
    logprobs = -rng.exponential(2.0, (2 * PAIRS, LENGTH)).astype(np.float32) * mask[:, 1:]
    reference = -rng.exponential(2.0, (2 * PAIRS, LENGTH)).astype(np.float32) * mask[:, 1:]
    return logprobs, reference.sum(1), mask


def trl_loss(loss_type, beta, label_smoothing=0.0):
    """Mean loss and its gradient in the per-token log-probabilities, computed by TRL's `DPOTrainer`."""
    logprobs, reference, mask = numbers()
    leaf = torch.tensor(logprobs, requires_grad=True)

    class Stop(Exception):
        pass

    losses = []
    # TRL computes one loss a batch; a batch of one pair at a time keeps its sorting losses ("aot", the one that has
    # label smoothing in the conservative form) from mixing the pairs.
    for i in range(PAIRS):
        rows = [i, PAIRS + i]
        outputs = SimpleNamespace(log_probs=leaf[rows], loss=None, logits=None, entropy=None)
        stub = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(device="cpu", gather_for_metrics=_raise(Stop), gather=_raise(Stop)),
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[loss_type],
            loss_weights=[1.0],
            beta=beta,
            label_smoothing=label_smoothing,
            use_weighting=False,
        )
        inputs = {
            "input_ids": torch.zeros(2, LENGTH + 1, dtype=torch.long),
            "completion_mask": torch.tensor(mask[rows]),
            "ref_chosen_logps": torch.tensor(reference[i : i + 1]),
            "ref_rejected_logps": torch.tensor(reference[PAIRS + i : PAIRS + i + 1]),
        }
        losses.append(_loss_before_metrics(stub, inputs, outputs, Stop))
    mean = torch.stack(losses).mean()
    mean.backward()
    return mean.item(), leaf.grad.numpy()


def _raise(exception):
    def function(*args, **kwargs):
        raise exception

    return function


def _loss_before_metrics(stub, inputs, outputs, stop):
    """Runs TRL's loss up to where it gathers metrics over processes, and reads its local variable `loss`."""
    try:
        DPOTrainer._compute_loss(stub, lambda **kwargs: outputs, inputs, return_outputs=False)
    except (stop, AttributeError, TypeError) as error:
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_name == "_compute_loss":
                loss = trace.tb_frame.f_locals["loss"]
                assert isinstance(loss, torch.Tensor)
                return loss
            trace = trace.tb_next
        raise
    raise AssertionError("TRL no longer gathers metrics after the loss")


def our_loss(loss):
    """Mean loss and its gradient in the per-token log-probabilities."""
    logprobs, reference, mask = numbers()

    def mean(logprobs):
        sums = jnp.sum(logprobs, axis=1)
        lengths = mask.sum(1)
        pairs = Pairs(
            sums[:PAIRS], sums[PAIRS:], lengths[:PAIRS], lengths[PAIRS:], reference[:PAIRS], reference[PAIRS:]
        )
        return jnp.mean(loss(pairs).losses)

    value, gradient = jax.value_and_grad(mean)(logprobs)
    return float(value), np.asarray(gradient)


@pytest.mark.parametrize(
    ("trl_type", "kind", "settings"),
    [
        ("sigmoid", DPO, {}),
        ("sigmoid_norm", DPO, {"length_normalized": True}),
        ("aot", DPO, {}),
        ("aot", DPO, {"label_smoothing": 0.2}),
        ("ipo", IPO, {}),
    ],
)
@pytest.mark.parametrize("beta", [0.01, 0.1, 10.0])
def test_values_and_gradients_agree_with_trl(trl_type, kind, settings, beta):
    ours, our_gradient = our_loss(kind(beta=beta, **settings))
    theirs, their_gradient = trl_loss(trl_type, beta, settings.get("label_smoothing", 0.0))
    assert ours == pytest.approx(theirs, rel=1e-5)
    mask = numbers()[2][:, 1:] == 1
    np.testing.assert_allclose(our_gradient[mask], their_gradient[mask], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("beta", [2.0, 10.0])
def test_simpo_agrees_with_trl(beta, gamma):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    logprobs, _, mask = numbers()
    stub = SimpleNamespace(
        alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
        loss_type="simpo",
        simpo_gamma=gamma,
        beta=beta,
        label_smoothing=0.0,
    )
    leaf = torch.tensor(logprobs, requires_grad=True)
    means = leaf.sum(1) / torch.tensor(mask).sum(1)
    losses, _, _ = CPOTrainer.cpo_loss(stub, means[:PAIRS], means[PAIRS:])
    losses.mean().backward()
    ours, our_gradient = our_loss(SimPO(beta=beta, gamma=gamma))
    assert ours == pytest.approx(losses.mean().item(), rel=1e-5)
    where = mask[:, 1:] == 1
    np.testing.assert_allclose(our_gradient[where], leaf.grad.numpy()[where], rtol=1e-4, atol=1e-9)


def test_simpo_of_a_worked_example():
    """Means of -0.30 and -0.60, as sums over ten and five tokens."""
    sums, lengths = (jnp.array([-3.0]), jnp.array([-3.0])), (jnp.array([10]), jnp.array([5]))
    found = SimPO(beta=2.0, gamma=0.5)(Pairs(*sums, *lengths))
    assert found.losses[0] == pytest.approx(0.64439666, abs=1e-7)
    np.testing.assert_allclose([found.chosen_rewards[0], found.rejected_rewards[0]], [-0.6, -1.2], rtol=1e-6)


def test_label_smoothing_with_length_normalization_is_the_same_mixture():
    """TRL has no such combination: check it against its definition, a mixture of the loss and its mirror image."""
    plain, _ = our_loss(DPO(beta=2.0, length_normalized=True))
    smooth, _ = our_loss(DPO(beta=2.0, length_normalized=True, label_smoothing=0.1))
    logprobs, reference, mask = numbers()
    sums, lengths, reference = map(jnp.asarray, (logprobs.sum(1), mask.sum(1), reference))
    flipped = DPO(beta=2.0, length_normalized=True)(
        Pairs(sums[PAIRS:], sums[:PAIRS], lengths[PAIRS:], lengths[:PAIRS], reference[PAIRS:], reference[:PAIRS])
    )
    assert smooth == pytest.approx(0.9 * plain + 0.1 * float(jnp.mean(flipped.losses)), rel=1e-5)


@pytest.mark.parametrize("length_normalized", [False, True])
def test_the_loss_is_log_2_where_policy_and_reference_agree(length_normalized):
    values = jnp.array([-3.0, -40.0])
    lengths = jnp.array([2, 9])
    loss = DPO(beta=10.0, length_normalized=length_normalized, label_smoothing=0.1)
    result = loss(Pairs(values, values - 1, lengths, lengths, values, values - 1))
    np.testing.assert_allclose(result.losses, math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(result.chosen_rewards, 0)


@pytest.mark.parametrize("loss", [DPO(beta=1.0, length_normalized=True), SimPO(), IPO()])
def test_empty_slots_make_no_nan(loss):
    zeros = jnp.zeros(3)
    empty = jnp.zeros(3, int)
    gradient = jax.grad(lambda x: jnp.sum(loss(Pairs(x, x, empty, empty, zeros, zeros)).losses))(zeros)
    assert np.isfinite(gradient).all()


def test_segment_sums_ignore_padding():
    values = jnp.array([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    sums = segment_sums(values, jnp.array([[1, 1, 2, 0], [2, 2, 3, 3]]), 3)
    np.testing.assert_array_equal(sums, [[3, 4, 0], [0, 2, 2]])


def test_sft_loss_agrees_with_transformers():
    from transformers.loss.loss_utils import ForCausalLMLoss

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 9, 17)).astype(np.float32)
    tokens = rng.integers(0, 17, (2, 9))
    mask = rng.random((2, 9)) < 0.5
    mask[:, 0] = False
    labels = torch.tensor(np.where(mask, tokens, -100))
    theirs = ForCausalLMLoss(torch.tensor(logits), labels, vocab_size=17).item()
    logprobs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits[:, :-1])), tokens[:, 1:, None], -1)[..., 0]
    logprobs = np.pad(logprobs, ((0, 0), (1, 0)))
    assert float(sft_loss(jnp.asarray(logprobs), jnp.asarray(mask))) / mask.sum() == pytest.approx(theirs, rel=1e-5)
