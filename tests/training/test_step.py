"""One optimizer step: the same result however the batch falls into rows and microbatches."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import AutoModelForCausalLM

from fusejax.config import OptimizerConfig
from fusejax.data.chat import load_tokenizer
from fusejax.data.examples import tokenize
from fusejax.data.loader import assemble
from fusejax.data.records import open_shards
from fusejax.distributed.mesh import one_device_mesh
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.decoder import abstract_decoder
from fusejax.objectives.losses.dpo import DPO
from fusejax.objectives.microbatch_loss import make_loss
from fusejax.training.network import Accumulator, Network
from fusejax.training.optimizer import make_optimizer, make_schedule
from fusejax.training.start import StartingModel
from fusejax.training.state import TrainState, initializer
from fusejax.training.step import apply
from tests.models import tiny_checkpoints as tiny
from tests.tiny_runs import GEMMA3, make_world, run_config


class Setup:
    def __init__(self, world, task, remat="none", **preference):
        config = run_config(world, world / "unused", task)
        self.mesh = one_device_mesh()
        start = StartingModel(config.model)
        self.params = start.load(self.mesh, dtype="float32")
        preference = DPO(**preference) if preference else config.preference
        self.loss = preference
        self.network = Network(
            start.config,
            self.mesh,
            make_loss(preference),
            param_dtype=jnp.dtype("float32"),
            compute_dtype=jnp.dtype("float32"),
            remat=remat,
        )
        tokenizer = load_tokenizer(start.directory)
        self.data = tokenize(open_shards(config.data.train), tokenizer, max_length=64)

    def gradients(self, microbatches):
        """Mean gradients and sums of a batch given as microbatches: rows of examples, and the rows' lengths."""
        total = None
        for rows, *lengths in microbatches:
            batch = dict(assemble(self.data, rows, *lengths))
            if "pair_ids" in batch:
                # Any reference does: here one that is not the policy, so that the gradients are not special.
                filled = batch["pair_ids"] >= 0
                batch["reference_chosen"] = np.where(filled, -20.0 - batch["pair_ids"] % 5, 0).astype(np.float32)
                batch["reference_rejected"] = np.where(filled, -40.0 + batch["pair_ids"] % 3, 0).astype(np.float32)
                if self.loss.kind == "wrpo":
                    batch["reference_source"] = np.where(filled, -30.0 + batch["pair_ids"] % 7, 0).astype(np.float32)
                    batch["progress"] = np.full((len(rows), 1), 0.8, np.float32)
            if total is None:
                sums = jax.eval_shape(self.network.evaluate, self.params, batch)
                total = jax.tree.map(lambda x: jnp.zeros((1, *x.shape)), Accumulator(self.params, sums))
            total = jax.jit(self.network.accumulate)(self.params, total, batch)
        return jax.tree.map(lambda x: x[0] / total.sums["count"][0], total)


@pytest.mark.parametrize("task", ["sft", "dpo", "wrpo"])
def test_rows_and_microbatches_change_nothing(world, task):
    setup = Setup(world, task)
    length = 128 * setup.data.sequences_per_example
    one_row_each = setup.gradients([([[i]], length) for i in range(8)])
    packed = setup.gradients([([[0, 3], [5]], length), ([[1, 2, 6], []], length), ([[7, 4]], length)])
    for name, value in one_row_each.sums.items():
        np.testing.assert_allclose(packed.sums[name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), packed.gradients, one_row_each.gradients
    )


def check_that_sharing_changes_nothing(setup):
    assert setup.data.shared_lengths[:8].min() > 4
    length = 128 * setup.data.sequences_per_example
    apart = setup.gradients([([[0, 3], [5]], length), ([[1, 2, 6], []], length), ([[7, 4]], length)])
    rows = ([[0, 3], [5]], [[1, 2, 6], []], [[7, 4]])
    shared = setup.gradients([(each, length - 76, length) for each in rows])
    for name, value in apart.sums.items():
        np.testing.assert_allclose(shared.sums[name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), shared.gradients, apart.gradients)


@pytest.mark.parametrize(("task", "remat"), [("dpo", "none"), ("dpo", "dots"), ("dpo", "full"), ("wrpo", "dots")])
def test_sharing_what_answers_begin_with_changes_nothing(world, task, remat):
    check_that_sharing_changes_nothing(Setup(world, task, remat=remat))


@pytest.mark.slow
def test_sharing_goes_with_layers_that_differ(tmp_path):
    check_that_sharing_changes_nothing(Setup(make_world(tmp_path, **GEMMA3), "dpo", remat="dots"))


def test_sft_loss_is_that_of_transformers(world):
    """The mean over all target tokens of the batch, not of means over sequences or microbatches."""
    setup = Setup(world, "sft")
    ours = setup.gradients([([[0, 1]], 128), ([[2]], 128), ([[3]], 128)])
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    total, count = 0.0, 0
    for i in range(4):
        tokens, mask = setup.data.sequence(i)
        labels = torch.tensor(np.where(mask, tokens, -100), dtype=torch.long)[None]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor(tokens, dtype=torch.long)[None], labels=labels).loss
        total, count = total + loss.item() * mask.sum(), count + mask.sum()
    assert float(ours.sums["loss"]) == pytest.approx(total / count, rel=1e-5)


def test_answer_logprobs_do_not_depend_on_neighbours_or_padding(world):
    setup = Setup(world, "dpo")
    pass_ = jax.jit(functools.partial(setup.network.answer_logprobs, answers=2))
    alone = [pass_(setup.params, assemble(setup.data, [[i]], 128))[1] for i in range(4)]
    packed = pass_(setup.params, assemble(setup.data, [[2, 0], [3, 1], []], 512))[1]
    for side in range(2):
        expected = [[alone[2][side][0, 0], alone[0][side][0, 0]], [alone[3][side][0, 0], alone[1][side][0, 0]]]
        np.testing.assert_allclose(packed[side][:2, :2], np.array(expected), rtol=1e-5)
        np.testing.assert_array_equal(packed[side][2], 0)
        np.testing.assert_array_equal(packed[side][:2, 2:], 0)


@pytest.mark.parametrize("length_normalized", [False, True])
def test_dpo_starts_at_log_2(world, length_normalized):
    setup = Setup(world, "dpo", beta=10.0, length_normalized=length_normalized)
    batch = dict(assemble(setup.data, [[0, 1], [2]], 256))
    _, (chosen, rejected) = setup.network.answer_logprobs(setup.params, batch, answers=2)
    batch |= {"reference_chosen": chosen, "reference_rejected": rejected}
    sums = setup.network.evaluate(setup.params, batch)
    assert float(sums["count"]) == 3
    assert float(sums["loss"]) / 3 == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("max_norm", [1.0, None])
def test_adamw_and_clipping_agree_with_torch(max_norm):
    """Three steps on one matrix, gradients above and below the norm limit if there is one, weight decay on."""
    config = OptimizerConfig(
        learning_rate=1e-2, schedule="constant", warmup_ratio=0.0, weight_decay=0.1, max_grad_norm=max_norm
    )
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 5)).astype(np.float32)
    gradients = [scale * rng.normal(size=(4, 5)).astype(np.float32) for scale in (3.0, 0.01, 1.0)]

    theirs = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    transformation = make_optimizer(config, 3)
    params = {"w": jnp.asarray(start)}
    state = TrainState(jnp.int32(0), params, transformation.init(params))
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([theirs], max_norm or math.inf)
        optimizer.step()
        # Two replicas of the parameters, and four parts of the rows. The step divides the sums by the count.
        sums = {"count": jnp.full(4, 0.5), "loss": jnp.full(4, 0.25)}
        gradients_ = {"w": jnp.stack([1.5 * gradient, 0.5 * gradient])}
        state, metrics = apply(transformation, state, Accumulator(gradients_, sums))
        assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
        assert float(metrics["loss"]) == 0.5
    assert int(state.step) == 3
    np.testing.assert_allclose(state.params["w"], theirs.detach().numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("on", "decaying"), [("matrices", {"weight", "embedding"}), ("all", None)])
def test_norms_and_biases_decay_only_where_asked(on, decaying):
    """Of a family that has all kinds of parameters; without gradients, decay is all that moves them."""
    model = DecoderConfig.from_hf(tiny.reference("qwen2").config.to_dict())
    _, shapes = abstract_decoder(model, param_dtype=jnp.dtype("float32"), compute_dtype=jnp.dtype("float32"))
    params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
    config = OptimizerConfig(
        learning_rate=0.5, schedule="constant", warmup_ratio=0, weight_decay=0.5, weight_decay_on=on
    )
    optimizer = make_optimizer(config, 3)
    state = initializer(optimizer, moments=jnp.float32)(params)
    nothing = Accumulator(jax.tree.map(lambda x: jnp.zeros((1, *x.shape)), params), {"count": jnp.ones(1)})
    new = apply(optimizer, state, nothing)[0].params
    kinds = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert kinds == {"weight", "embedding", "scale", "bias"}
    for path, x in jax.tree_util.tree_leaves_with_path(new):
        np.testing.assert_array_equal(x, 0.75 if path[-1].key in (decaying or kinds) else 1.0, err_msg=str(path))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_checkpoints_of_optax_adamw_fit(decay):
    """Which earlier releases used: what decays does not change the tree that is stored."""
    ours = make_optimizer(OptimizerConfig(learning_rate=1e-3, weight_decay=decay), 10)
    theirs = optax.chain(optax.identity(), optax.adamw(optax.constant_schedule(1e-3), weight_decay=decay))
    params = {"w": jnp.ones(3)}
    assert jax.tree.structure(ours.init(params)) == jax.tree.structure(theirs.init(params))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_have_a_dtype_of_their_own(dtype):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 10)
    state = initializer(optimizer, moments=jnp.dtype(dtype))({"w": jnp.zeros(3, jnp.bfloat16)})
    assert state.params["w"].dtype == jnp.bfloat16
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim > 0]
    assert [x.dtype for x in moments] == [jnp.dtype(dtype)] * 2


def test_schedule():
    schedule = make_schedule(OptimizerConfig(learning_rate=2.0, warmup_ratio=0.1), 20)
    rates = [float(schedule(step)) for step in range(20)]
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])  # two steps of warm-up, then the peak
    assert rates[2:] == pytest.approx([1 + math.cos(math.pi * i / 18) for i in range(18)], abs=1e-6)
    assert rates[-1] > 0
    without = make_schedule(OptimizerConfig(learning_rate=2.0, warmup_ratio=0.0, schedule="linear"), 4)
    assert [float(without(step)) for step in range(4)] == pytest.approx([2.0, 1.5, 1.0, 0.5])
