"""Explicit fusion in the trainer: its loss and gradients against PyTorch's in float64 and on meshes, and whole runs."""

import copy
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from fusejax.common.cli import UserError
from fusejax.config import MeshConfig
from fusejax.data.examples import Tokenized
from fusejax.distributed.mesh import make_mesh
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.decoder import abstract_decoder, named_parameters
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.objectives.microbatch_loss import make_loss
from fusejax.training import loop
from fusejax.training.loop import train
from fusejax.training.network import Accumulator, Network
from fusejax.training.tokenizing import tell
from tests.fusion.sidecar_files import byte_level, random_sidecar
from tests.models import tiny_checkpoints as tiny
from tests.tiny_runs import make_tokenizer, run_config, train_command
from tests.training.mesh_gradients import DTYPES, batch, chunks, faults_in_process, soft_targets
from tests.training.test_resume import final_arrays, logged

FAMILIES = ["llama-untied", "gemma2"]
"""A head apart; one that is tied to the embedding, with a soft cap."""


def loss_of_distributions(rows, row, at, logprobs):
    """Of one text, whose tokens are `at` these places of the row: with the whole vocabulary's soft targets."""
    loss = 0.0
    for place in np.flatnonzero(rows["loss_mask"][row, at]):
        weights, ids = (rows[name][row, at[place]] for name in ("soft_weights", "soft_ids"))
        target = np.zeros(logprobs.shape[-1])
        target[rows["tokens"][row, at[place]]] = 0.6 if weights.any() else 1.0
        np.add.at(target, ids, 0.4 * weights.astype(np.float64))
        loss = loss - torch.from_numpy(target) @ logprobs[place - 1]
    return loss


def loss_of_chunks(rows, row, at, logprobs):
    """The same, a chunk at a time."""
    loss, numbers = 0.0, rows["chunk_ids"][row, at]
    targets = np.flatnonzero(rows["loss_mask"][row, at])
    realised = {place: logprobs[place - 1, rows["tokens"][row, at[place]]] for place in targets}
    for place in targets:
        loss = loss - (0.6 if numbers[place] else 1.0) * realised[place]
    for number in set(numbers[numbers > 0].tolist()):
        inside = np.flatnonzero(numbers == number)
        source = torch.tensor(rows["chunk_logprobs"][row, at[inside[-1]]], dtype=torch.float64)
        p, q = ((each / 20 - 1e-6).exp() for each in (source, sum(realised[place] for place in inside)))
        loss = loss - 0.4 * 20 * (p * q.log() + (1 - p) * (1 - q).log())
    return loss


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["distributions", "alm"])
def test_loss_and_gradients_are_those_of_the_full_logits_in_float64(kind, family, tmp_path):
    reference = tiny.checkpoint(tmp_path / "model", family)
    config = DecoderConfig.from_hf(reference.config.to_dict())
    rows = batch(config.vocab_size)
    if kind == "alm":
        rows |= chunks(rows["loss_mask"])
        of_text, fused = loss_of_chunks, make_loss(None, 0.6, 20.0)
    else:
        rows |= soft_targets(rows["tokens"], config.vocab_size)
        of_text, fused = loss_of_distributions, make_loss(None, 0.6)

    exact = copy.deepcopy(reference).double()
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(len(rows["tokens"])):
        for segment in (1, 2):  # a text at a time, without packing
            at = np.flatnonzero(rows["segment_ids"][row] == segment)
            tokens = torch.tensor(rows["tokens"][row, at], dtype=torch.int64)
            loss = loss + of_text(rows, row, at, exact(tokens[None]).logits[0].log_softmax(-1))
    loss.backward()
    exact.load_state_dict({name: value.grad for name, value in exact.named_parameters()}, strict=False)
    exact.float().save_pretrained(tmp_path / "gradients")

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(config, mesh, fused, **DTYPES, remat="none")
    _, shapes = abstract_decoder(config, **DTYPES)

    def read(name):
        named = {
            path: np.asarray(variable.get_value())
            for path, variable in named_parameters(huggingface.load(str(tmp_path / name))).items()
        }
        return jax.tree_util.tree_map_with_path(lambda path, _: named[".".join(str(key.key) for key in path)], shapes)

    params, gradients = read("model"), read("gradients")
    sums = jax.eval_shape(network.evaluate, params, rows)
    zeros = Accumulator(
        jax.tree.map(lambda x: np.zeros((1, *x.shape), np.float32), params),
        jax.tree.map(lambda _: np.zeros(1, np.float32), sums),
    )
    found = jax.jit(network.accumulate)(params, zeros, rows)
    assert float(found.sums["loss"][0]) == pytest.approx(loss.item(), rel=1e-5)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(found.gradients), jax.tree.leaves(gradients), strict=True
    ):
        largest = np.abs(theirs).max()
        assert np.abs(np.asarray(ours)[0] - theirs).max() < 1e-4 * largest, jax.tree_util.keystr(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_on_meshes_of_four_devices(family):
    """With a vocabulary that `tensor` does not divide."""
    hf_config = tiny.reference(family, num_hidden_layers=4 if family == "gemma2" else 2).config.to_dict()
    meshes = [{"fsdp": 4, "remat": "full"}, {"fsdp": 2, "tensor": 2, "remat": "none"}]
    faults = faults_in_process(hf_config | {"vocab_size": 97}, meshes, clm_weight=0.6)
    assert not faults, "\n".join(faults)


def test_gradients_of_chunks_on_a_mesh_of_four_devices():
    hf_config = tiny.reference("llama-untied", num_hidden_layers=2).config.to_dict()
    faults = faults_in_process(hf_config, [{"fsdp": 4, "remat": "full"}], clm_weight=0.6, chunk_temperature=20.0)
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def sidecars(world, tmp_path_factory):
    """Of two sources: one with the target's tokenizer, and one of a few words, without every fifth answer."""
    folder, data = tmp_path_factory.mktemp("sidecars"), world / "sft" / "train"
    return [
        random_sidecar(folder / "same", "same", make_tokenizer(), data, "<|im_end|>", seed=0),
        random_sidecar(folder / "other", "other", byte_level(["12", "21", "110"]), data, "<|end|>", seed=1, skip=5),
    ]


def fusion(sidecars, **changes):
    return {"sidecars": sidecars, "top_k": 4, **changes}


def test_a_run(world, sidecars, tmp_path):
    """Its log says what the loss is made of; its evaluation, before the first step alike, is plain SFT's."""
    changes = {"max_steps": 4, "dtype": {"params": "float32", "compute": "float32"}}
    train(run_config(world, tmp_path / "sft", **changes))
    train(run_config(world, tmp_path / "one", fusion=fusion(sidecars, clm_weight=1.0), **changes))
    train(run_config(world, tmp_path / "fused", fusion=fusion(sidecars, clm_weight=0.5, choose="avgce"), **changes))
    sft, one, fused = (logged(tmp_path / name) for name in ("sft", "one", "fused"))
    for plain, weighed in zip(sft, one, strict=True):
        assert {name: weighed[name] for name in plain} == plain
        assert weighed["clm"] == weighed["loss"]
    for name, array in final_arrays(tmp_path / "sft").items():
        np.testing.assert_array_equal(array, final_arrays(tmp_path / "one")[name], err_msg=name)
    assert fused[0]["clm"] == sft[0]["loss"]
    for line in fused:
        assert 0 < line["teacher_entropy"] < line["fusion_ce"]
        assert 0.5 < line["fused"] <= 1
        assert line["loss"] != line["clm"]
    kl = [line["fusion_ce"] - line["teacher_entropy"] for line in fused]
    assert kl[-1] < kl[0]
    assert "eval_loss" in fused[-1]
    assert "eval_clm" not in fused[-1]

    # The same sidecars, in another place: the same run, which can go on.
    moved = [
        str(shutil.copytree(Path(path).parent, tmp_path / f"moved-{i}") / "train") for i, path in enumerate(sidecars)
    ]
    train(run_config(world, tmp_path / "fused", fusion=fusion(moved, clm_weight=0.5, choose="avgce"), **changes))

    other = random_sidecar(tmp_path / "other", "other", byte_level([]), world / "sft" / "train", "<|end|>", seed=2)
    models = json.loads((tmp_path / "fused" / "origin.json").read_text())["stages"][0]["data"]["fused"]
    assert models.keys() == {"same", "other"} and all(models.values())
    again = run_config(world, tmp_path / "fused", fusion=fusion([sidecars[0], other], clm_weight=0.5, choose="avgce"))
    again = again.model_copy(update={"max_steps": 4})
    with pytest.raises(UserError, match=r"differs in .*the sidecar of other"):
        train(again)


def test_a_run_with_chunks(world, sidecars, tmp_path):
    """Its steps have all examples, so that what does not depend on the model is that of the whole token file."""
    alm = {"loss": "alm", "sidecars": sidecars, "clm_weight": 0.25, "choose": "other", "chunk_temperature": 10.0}
    changes = {"max_steps": 2, "batch_size": 48}
    train(run_config(world, tmp_path / "alm", fusion=alm, **changes))
    first, last = logged(tmp_path / "alm")
    with np.load(tmp_path / "alm" / "tokens" / "train.npz") as kept:
        ids, logprobs = kept["chunk_ids"], kept["chunk_logprobs"].astype(np.float64)
    ends = (ids > 0) & (ids != np.append(ids[1:], 0))
    p = np.exp(logprobs[ends] / 10 - 1e-6)
    entropy = -10 * (p * np.log(p) + (1 - p) * np.log1p(-p)).sum()
    for line in (first, last):
        assert line["teacher_entropy"] == pytest.approx(entropy / len(ids), rel=1e-4)
        assert line["fused"] == pytest.approx((ids > 0).mean(), rel=1e-6) and line["fused"] > 0.5
        assert line["chunks"] == pytest.approx(ends.mean(), rel=1e-6) and line["chunks"] < line["fused"]
    assert last["teacher_entropy"] < last["alm"] < first["alm"]
    assert "eval_loss" in last and "eval_clm" not in last

    # With the target's own tokenizer, every token of an answer is a chunk.
    same = {"loss": "alm", "sidecars": sidecars[:1], "clm_weight": 0.25, "chunk_temperature": 10.0}
    train(run_config(world, tmp_path / "same", fusion=same, **changes))
    for line in logged(tmp_path / "same"):
        assert line["fused"] == line["chunks"] == 1
        assert line["loss"] == pytest.approx(0.25 * line["clm"] + 0.75 * line["alm"], rel=1e-5)
    # Neither the source nor the kind of fusion can change in a run.
    for other, key in (
        ({**alm, "choose": "same"}, r"fusion\.choose"),
        (fusion(sidecars, clm_weight=0.25, choose="other"), r"fusion\.loss"),
    ):
        with pytest.raises(UserError, match=rf"differs in .*{key}.*, the fusion;"):
            train(run_config(world, tmp_path / "alm", fusion=other, **changes))


def test_one_line_where_a_sidecar_is_of_other_data(world, sidecars, tmp_path):
    changes = {"data": {"train": str(world / "sft" / "eval")}, "fusion": fusion(sidecars)}
    found = subprocess.run(train_command(world, tmp_path / "run", **changes), capture_output=True, text=True)
    assert found.returncode == 2
    *_, line = found.stderr.splitlines()
    assert line.endswith(
        "is about the answers of other data than data.train " + changes["data"]["train"] + ": make it again"
    )


def test_a_sidecar_that_changes_while_the_run_prepares(world, sidecars, tmp_path, monkeypatch):
    """As on a host that has another copy than host 0."""
    folder = shutil.copytree(Path(sidecars[1]).parent, tmp_path / "copy")
    whole = loop.tokenize

    def late(*arguments, **names):
        random_sidecar(folder, "other", byte_level([]), world / "sft" / "train", "<|end|>", seed=3)
        whole(*arguments, **names)

    monkeypatch.setattr(loop, "tokenize", late)
    with pytest.raises(UserError, match="copy/train: host 0 finds another sidecar there than host 0 at the start"):
        train(run_config(world, tmp_path / "run", fusion=fusion([str(folder / "train")])))


def test_what_is_wrong_with_sidecars_is_told_before_data_is_read(world, sidecars, tmp_path):
    """In a line that names the key."""
    for changes, message in (
        ({"choose": "nobody"}, "fusion.choose: 'nobody' is none of mince, avgce, same, other"),
        ({"sidecars": [*sidecars, str(tmp_path / "none" / "train")]}, "fusion.sidecars: data .*: no manifest.json in"),
    ):
        with pytest.raises(UserError, match=message):
            train(run_config(world, tmp_path / "run", fusion={**fusion(sidecars), **changes}))
        assert not (tmp_path / "run" / "tokens").exists()


def test_a_fused_id_that_the_model_does_not_have(world, tmp_path):
    """A token of the tokenizer alone, which no text has."""
    mask = np.array([False, True])
    data = Tokenized("sft", np.array([1, 2], np.int32), mask, np.array([0, 2]), ["0"], [], {})
    fused = dataclasses.replace(
        data, soft_ids=np.array([[2, 9]], np.int32), soft_weights=np.full((1, 2), 0.5, np.float32)
    )
    config = run_config(world, tmp_path / "run")
    tell(config, {"train": fused}, vocab_size=10)
    with pytest.raises(UserError, match=r"the token id 9, but vocab_size in config\.json is 9"):
        tell(config, {"train": fused}, vocab_size=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "dpo", "preference": {}}, "fusion is for task sft"),
        ({"fusion": {"sidecars": ["a/train"], "temperature": 2.0, "tail": "keep"}}, "needs fusion.temperature 1"),
        ({"fusion": {"sidecars": []}}, "at least 1 item"),
        (
            {"fusion": {"loss": "alm", "sidecars": ["a/train"], "choose": "avgce"}},
            "fusion.choose avgce is for the loss",
        ),
        ({"fusion": {"loss": "alm", "sidecars": ["a/train"], "top_k": 4}}, "fusion.top_k\n  Extra inputs"),
        ({"fusion": {"loss": "uld", "sidecars": ["a/train"]}}, "loss 'uld' is none of distributions, alm"),
        ({"fusion": {"loss": ["alm"], "sidecars": ["a/train"]}}, r"loss \['alm'\] is none of distributions, alm"),
    ],
)
def test_configurations_without_sense(world, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_config(world, tmp_path / "run", **{"fusion": fusion(["a/train"]), **changes})


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(world, sidecars, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    changes = {"checkpoint": {"every_steps": 2, "keep": 2}, "epochs": 4, "fusion": fusion(sidecars)}
    subprocess.run(train_command(world, tmp_path / "unbroken", **changes), check=True)
    command, checkpoint = (
        train_command(world, tmp_path / "killed", **changes),
        tmp_path / "killed" / "checkpoints" / "4",
    )
    process = subprocess.Popen(command, stderr=sys.stderr)
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    subprocess.run(command, check=True)
    assert logged(tmp_path / "killed") == logged(tmp_path / "unbroken")
    expected, found = final_arrays(tmp_path / "unbroken"), final_arrays(tmp_path / "killed")
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    with np.load(tmp_path / "killed" / "tokens" / "train.npz") as kept:
        assert kept["soft_ids"].shape[1] == 4
        assert json.loads(str(kept["header"]))["fused"]["without"] == 0
