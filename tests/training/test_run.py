"""Whole runs: what they leave behind, what they refuse, what they import."""

import dataclasses
import datetime
import json
import math
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from fusejax.common.chat_template import ChatConfig
from fusejax.common.cli import UserError
from fusejax.data.records import PreferencePair, open_shards, write_shards
from fusejax.training.checkpoints import Checkpoints
from fusejax.training.export import export
from fusejax.training.loop import train
from tests.tiny_runs import make_tokenizer, make_world, run_config, settings, train_command
from tests.training.test_resume import final_arrays


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """An SFT run and the DPO run that starts from it."""
    folder = tmp_path_factory.mktemp("runs")
    train(run_config(world, folder / "sft"))
    train(run_config(world, folder / "dpo", "dpo", model=str(folder / "sft")))
    return folder


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_metrics_hold_every_step(runs):
    lines = metrics(runs / "sft")
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert line["examples"] == 8
        assert {
            "epoch",
            "loss",
            "grad_norm",
            "learning_rate",
            "tokens",
            "target_tokens",
            "step_time",
            "tokens_per_second",
            "goodput",
        } <= line.keys()
        assert 0 <= line["goodput"] < 1
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["epoch"] == 2.0
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8, 12]


def test_dpo_starts_at_log_2_and_learns_the_preference(runs):
    lines = metrics(runs / "dpo")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["eval_reward_accuracy"] > 0.5
    for name in ("reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward"):
        assert name in lines[0]
        assert f"eval_{name}" in lines[-1]
    assert lines[-1]["reward_margin"] == pytest.approx(
        lines[-1]["chosen_reward"] - lines[-1]["rejected_reward"], abs=1e-5
    )


def test_what_pairs_share_can_be_computed_once(world, runs, tmp_path, capfd):
    packing = {"row_length": 100, "attention_length": 128, "rows_per_device": 2}
    train(run_config(world, tmp_path / "run", "dpo", model=str(runs / "sft"), packing=packing))
    assert "pairs share" not in capfd.readouterr().err
    assert metrics(tmp_path / "run")[-1]["loss"] < metrics(tmp_path / "run")[0]["loss"]
    with np.load(tmp_path / "run" / "reference.npz") as found, np.load(runs / "dpo" / "reference.npz") as expected:
        for split in ("train.chosen", "train.rejected", "eval.chosen", "eval.rejected"):
            np.testing.assert_allclose(found[split], expected[split], rtol=1e-5)
    train(run_config(world, tmp_path / "other", "dpo", max_steps=1))
    assert re.search(r"pairs share \d\d% of their tokens; packing.attention_length=\d+ ", capfd.readouterr().err)


def test_tensorboard_has_the_curves(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(runs / "dpo" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 13))
    assert {"eval_reward_accuracy", "tokens_per_second", "seconds_left"} <= set(board.Tags()["scalars"])
    (configuration,) = board.Tensors("configuration/text_summary")
    assert b"length_normalized: true" in configuration.tensor_proto.string_val[0]
    (versions,) = board.Tensors("versions/text_summary")
    assert f"- jax {jax.__version__}".encode() in versions.tensor_proto.string_val[0]


def test_what_this_machine_does_not_know_is_left_out(runs):
    assert all({"mfu", "hbm_peak_bytes"}.isdisjoint(line) for line in metrics(runs / "sft"))


def test_the_last_checkpoints_are_kept_and_the_best_of_them_found(runs):
    with Checkpoints(runs / "sft") as checkpoints:
        assert checkpoints.steps() == [8, 12]
        losses = {step: values["eval_loss"] for step, values in checkpoints.metrics().items()}
        assert checkpoints.best_step() == min(losses, key=lambda step: losses[step])


def test_best_is_by_evaluation_loss(tmp_path):
    import jax.numpy as jnp
    import optax

    from fusejax.training.state import TrainState

    params = {"w": jnp.ones(3)}
    optimizer = optax.sgd(0.1)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, loss in ((1, 0.1), (2, 0.3), (3, 0.4)):
            checkpoints.save(TrainState(jnp.int32(step), params, optimizer.init(params)), {"eval_loss": loss})
            checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.best_step() == 2


def test_export_is_what_was_trained(runs, tmp_path):
    """transformers loads the export; the reference pass and its log-probabilities agree through both ways in."""
    export(str(runs / "dpo"), str(tmp_path / "hf"), step=None, dtype="float32")
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    again = runs / "from-export"
    train(run_config(runs.parent, again, "dpo", **_data_of(runs), model=str(tmp_path / "hf"), max_steps=1))
    direct = runs / "from-run"
    train(run_config(runs.parent, direct, "dpo", **_data_of(runs), model=str(runs / "dpo"), max_steps=1))
    one, other = np.load(again / "reference.npz"), np.load(direct / "reference.npz")
    assert str(one["identity"]) == str(other["identity"])  # the same weights, bit for bit
    np.testing.assert_array_equal(one["train.chosen"], other["train.chosen"])


def _data_of(runs):
    import yaml

    return {"data": yaml.safe_load((runs / "dpo" / "run.yaml").read_text())["config"]["data"]}


def test_export_refuses(runs, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        export(str(tmp_path / "nothing"), str(tmp_path / "out"), step=None, dtype="float32")
    with pytest.raises(UserError, match="no checkpoint of step 5"):
        export(str(runs / "sft"), str(tmp_path / "out"), step=5, dtype="float32")
    assert not (tmp_path / "out").exists()


def test_a_complete_run_is_left_alone(world, runs):
    before = (runs / "sft" / "metrics.jsonl").stat().st_mtime_ns
    train(run_config(world, runs / "sft"))
    assert (runs / "sft" / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_configuration_in_the_same_folder_is_refused(world, runs):
    with pytest.raises(UserError, match=r"differs in seed"):
        train(run_config(world, runs / "sft", seed=1))
    with pytest.raises(UserError, match=r"differs in optimizer\.learning_rate"):
        train(run_config(world, runs / "sft", optimizer={"learning_rate": 2e-3}))


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"model": "MODEL"}, "another model"),
        ({"data": "EVAL"}, "another train data"),
        ({"max_length": 60}, "another max_length"),
        ({"dtype": {"params": "float32", "compute": "bfloat16"}}, "another compute dtype"),
    ],
)
def test_a_reference_of_anything_else_is_refused(world, runs, tmp_path, changes, differing):
    sidecar = {"beta": 10.0, "length_normalized": True, "reference": str(runs / "dpo" / "reference.npz")}
    base = {"model": str(runs / "sft"), "preference": sidecar}
    replaced = {
        "MODEL": {"model": str(world / "model")},
        "EVAL": {"data": {"train": str(world / "dpo" / "eval"), "eval": str(world / "dpo" / "eval")}},
    }
    for key, value in changes.items():
        base |= replaced[value] if isinstance(value, str) else {key: value}
    with pytest.raises(UserError, match=differing):
        train(run_config(world, tmp_path / "run", "dpo", **base))


def test_a_reference_of_another_tokenizer_is_refused(world, runs, tmp_path):
    copy = tmp_path / "sft"
    shutil.copytree(runs / "sft", copy)
    template = copy / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    sidecar = {"beta": 10.0, "length_normalized": True, "reference": str(runs / "dpo" / "reference.npz")}
    with pytest.raises(UserError, match="another tokenizer"):
        train(run_config(world, tmp_path / "run", "dpo", model=str(copy), preference=sidecar))


def test_a_reference_of_another_date_is_refused(world, runs, tmp_path):
    """Llama 3.2's template writes today's date, which would be another prompt tomorrow."""
    copy = tmp_path / "sft"
    shutil.copytree(runs / "sft", copy)
    template = copy / "model" / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text())

    def run(name, sidecar="reference.npz", **changes):
        preference = {"beta": 10.0, "length_normalized": True, "reference": str(tmp_path / sidecar)}
        config = run_config(world, tmp_path / name, "dpo", model=str(copy), preference=preference, **changes)
        train(config.model_copy(update={"max_steps": 1}))
        return config

    config = run("one")
    before = (tmp_path / "one" / "tokens" / "train.npz").read_bytes()
    assert "date: 2024-07-26" in (tmp_path / "one" / "run.yaml").read_text()
    with pytest.raises(UserError, match=r"reference\.npz: computed for another .*chat\.date"):
        run("other", chat={"date": "2025-01-31"})
    with pytest.raises(UserError, match=r"differs in chat\.date"):
        train(config.model_copy(update={"chat": ChatConfig(date=datetime.date(2025, 1, 31))}))
    run("january", "january.npz", chat={"date": "2025-01-31"})
    with pytest.raises(UserError, match=r"january\.npz: computed for another .*chat\.date"):
        run("default", "january.npz")
    run("two")
    assert (tmp_path / "two" / "tokens" / "train.npz").read_bytes() == before


def test_a_damaged_reference_is_refused(world, runs, tmp_path):
    damaged = tmp_path / "reference.npz"
    damaged.write_bytes((runs / "dpo" / "reference.npz").read_bytes()[:300])
    sidecar = {"beta": 10.0, "length_normalized": True, "reference": str(damaged)}
    with pytest.raises(UserError, match=r"reference\.npz: not a reference sidecar, or damaged"):
        train(run_config(world, tmp_path / "run", "dpo", model=str(runs / "sft"), preference=sidecar))


def test_divergence_ends_the_run(world, tmp_path):
    with pytest.raises(UserError, match=r"step \d+: \w+ is (nan|inf)"):
        train(run_config(world, tmp_path / "run", optimizer={"learning_rate": 1e30, "warmup_ratio": 0.0}))


def test_broken_records_are_counted_and_kept_out(world, tmp_path):
    question = [{"role": "user", "content": "what is 1 plus 1"}]
    said = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    pairs = [PreferencePair(f"good{i}", "d", "math", "s", question, said("2"), said("3"), 0.2, 0.1) for i in range(8)]
    pairs.append(PreferencePair("same", "d", "math", "s", question, said("2"), said("2"), 0.2, 0.1))
    pairs.append(PreferencePair("nan", "d", "math", "s", question, said("2"), said("4"), math.nan, 0.1))
    pairs.append(PreferencePair("spelled", "d", "math", "s", question, said("<|im_end|>"), said("4"), 0.2, 0.1))
    long = [{"role": "user", "content": "what is " * 60}]
    pairs.append(PreferencePair("long", "d", "math", "s", long, said("2"), said("4"), 0.2, 0.1))
    write_shards(tmp_path / "data", "train", pairs, kind="dpo", format="arrayrecord", num_shards=1, manifest={})
    train(run_config(world, tmp_path / "run", "dpo", data={"train": str(tmp_path / "data" / "train")}, max_steps=1))
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in rejected} == {
        "same": "identical_pair",
        "nan": "non_finite_score",
        "long": "prompt_too_long",
    }
    changed = [json.loads(line) for line in (tmp_path / "run" / "changed.jsonl").read_text().splitlines()]
    assert changed == [{"split": "train", "id": "spelled", "change": "spelled"}]


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_records_with_weights(world, tmp_path, task):
    """A run on examples of which some have a weight: equal ones change nothing but the kept tokens, others the loss."""
    records = open_shards(world / task / "train")[:]

    def losses(name, weights):
        weighted = [dataclasses.replace(record, weight=weights[i % 2]) for i, record in enumerate(records)]
        write_shards(tmp_path / name, "train", weighted, kind=task, num_shards=1, manifest={})
        data = {"train": str(tmp_path / name / "train"), "eval": str(world / task / "eval")}
        train(run_config(world, tmp_path / f"{name}-run", task, data=data, max_steps=2))
        return [line["loss"] for line in metrics(tmp_path / f"{name}-run")]

    train(run_config(world, tmp_path / "plain", task, max_steps=2))
    plain = [line["loss"] for line in metrics(tmp_path / "plain")]
    assert losses("equal", (0.25, 0.25)) == pytest.approx(plain, rel=1e-5)
    assert losses("different", (None, 4.0)) != pytest.approx(plain, rel=1e-5)
    kept = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("equal", "different")]
    assert all(each["splits"]["train"]["weighted"] for each in kept)
    # The manifest of an earlier writer says nothing of weights.
    path = tmp_path / "equal" / "manifest.json"
    path.write_text(path.read_text().replace('"weighted": true,', ""))
    with pytest.raises(UserError, match=r"data\.train: records have weights, but its manifest does not say so"):
        data = {"train": str(tmp_path / "equal" / "train")}
        train(run_config(world, tmp_path / "other", task, data=data, max_steps=1))


def test_training_needs_neither_torch_nor_vllm(world, tmp_path):
    """A whole run and its export, in a process where these packages cannot be imported."""
    script = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "absent = ('torch', 'vllm', 'tensorflow')\n"
        "PathFinder.find_spec = lambda name, *rest: None if name.partition('.')[0] in absent else find(name, *rest)\n"
        "from fusejax import export, train\n"
        "from fusejax.common import cli\n"
        f"sys.argv = ['train', '--config', {str(tmp_path / 'run.yaml')!r}]\n"
        "cli.run(train.main)\n"
        f"sys.argv = ['export', '--checkpoint', {str(tmp_path / 'run')!r}, '--output', {str(tmp_path / 'hf')!r}]\n"
        "cli.run(export.main)\n"
        "assert not {'torch', 'vllm', 'tensorflow', 'data_pipeline'} & sys.modules.keys()\n"
    )
    train_command(world, tmp_path / "run", max_steps=1)
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "hf" / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/nowhere/model"}, "model /nowhere/model"),
        ({"data": {"train": "/nowhere/train"}}, "/nowhere"),
        ({"batch_size": 1000}, "batch_size 1000"),
        ({"mesh": {"data": 3}}, "mesh"),
    ],
)
def test_mistakes_end_in_one_line(world, tmp_path, changes, message):
    command = train_command(world, tmp_path / "run", **changes)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "packing"),
    [
        ("sft", {"row_length": 128}),
        ("dpo", {"row_length": 128}),
        ("dpo", {"row_length": 128, "attention_length": 192}),
        ("wrpo", {"row_length": 144, "attention_length": 256}),
    ],
)
def test_a_sharded_run_has_the_same_losses(world, tmp_path, task, packing):
    """Four devices, parameters split over two of them and heads over the other two, against one device."""
    losses = {}
    for name, devices, mesh in (("one", 1, {}), ("four", 4, {"fsdp": 2, "tensor": 2})):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        changes = {"mesh": mesh, "packing": {"rows_per_device": 2, **packing}}
        subprocess.run(train_command(world, tmp_path / name, task, **changes), env=environment, check=True)
        losses[name] = [line["loss"] for line in metrics(tmp_path / name)]
    np.testing.assert_allclose(losses["four"], losses["one"], rtol=1e-4)


def test_checkpoints_are_not_ranked_by_a_loss_that_changes_with_the_steps(world, tmp_path):
    """WRPO's alpha rises: the log has its evaluation losses, but which checkpoint is the best does not follow them."""
    train(run_config(world, tmp_path / "run", "wrpo", max_steps=2, checkpoint={"every_steps": 1, "keep": 2}))
    assert all("eval_loss" in line for line in metrics(tmp_path / "run"))
    with Checkpoints(tmp_path / "run", keep=2) as checkpoints:
        kept = checkpoints.metrics()
        assert kept.keys() == {1, 2} and checkpoints.best_step() == 2
    assert all("eval_reward_accuracy" in scores and "eval_loss" not in scores for scores in kept.values())


@pytest.mark.slow
def test_a_vocabulary_that_tensor_does_not_divide(tmp_path):
    """The same losses as on one device, from either to the other and back, and its own size in the export."""
    tokenizer = make_tokenizer()
    world = make_world(tmp_path / "world", vocab_size=len(tokenizer) + 1 - len(tokenizer) % 2)

    def run(name: str, devices: int, steps: int, **mesh: int) -> list[float]:
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        changes = {"epochs": 9, "checkpoint": {"every_steps": 2, "keep": 9}, "mesh": mesh}
        subprocess.run(
            train_command(world, tmp_path / name, "dpo", **changes, max_steps=6), env=environment, check=True
        )
        losses = [line["loss"] for line in metrics(tmp_path / name)]
        for step in range(steps + 2, 7, 2):  # as if it had been killed before
            shutil.rmtree(tmp_path / name / "checkpoints" / str(step))
        return losses[:steps]

    alone = run("alone", 1, 6)
    run("moved", 2, 2, fsdp=1, tensor=2)
    (tmp_path / "moved" / "reference.npz").unlink()  # so that the start must be found to be the same
    run("moved", 1, 4)
    moved = run("moved", 4, 6, fsdp=2, tensor=2)
    np.testing.assert_allclose(moved, alone, rtol=1e-4)
    export(str(tmp_path / "moved"), str(tmp_path / "hf"), step=6, dtype="float32")
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    size = json.loads((world / "model" / "config.json").read_text())["vocab_size"]
    assert size % 2 == 1 and len(weights["model.embed_tokens.weight"]) == len(weights["lm_head.weight"]) == size
    stored = final_arrays(tmp_path / "moved")
    for name, array in stored.items():
        if "embedding" in name:
            assert len(array) == size + 1 and not array[size:].any(), name


def test_what_the_mesh_cannot_split_is_found_before_tokenizing(world, tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    for mesh, message in (
        ({"fsdp": 2, "tensor": 4}, "error: mesh.tensor=4 does not divide num_key_value_heads 2"),
        ({"data": 2, "fsdp": 3, "tensor": 1}, "error: mesh: data x fsdp x tensor = 2 x 3 x 1 does not fill 8 devices"),
    ):
        command = train_command(world, tmp_path / "run", mesh=mesh)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr.strip()) == (2, message)
        assert not (tmp_path / "run" / "tokens").exists() and not (tmp_path / "run" / "model").exists()


def test_every_key_of_the_configuration_is_told_in_the_error(world, tmp_path):
    values = settings(world, tmp_path / "run")
    values["optimizer"]["learning_rat"] = values["optimizer"].pop("learning_rate")
    import yaml

    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "fusejax.train", "--config", str(tmp_path / "bad.yaml")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "learning_rat" in result.stderr
    assert "did you mean 'learning_rate'?" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_resumed_run_keeps_its_tokens(world, tmp_path, monkeypatch):
    """Whatever a later release makes of a conversation."""
    config = run_config(world, tmp_path / "run", checkpoint={"every_steps": 4, "keep": 9})
    train(config)
    before = [line["loss"] for line in metrics(tmp_path / "run")]
    for step in (8, 12):  # as if the run had been killed after step 4
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    monkeypatch.setattr("fusejax.training.loop.tokenize", lambda *_, **__: pytest.fail("tokenised again"))
    train(config)
    assert [line["loss"] for line in metrics(tmp_path / "run")] == before


def test_a_run_without_checkpoints_gives_way(world, tmp_path):
    """A first attempt that failed early does not block the folder for a corrected one."""
    broken = tmp_path / "broken"
    shutil.copytree(world / "model", broken)
    weights = next(broken.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=weights.name):
        train(run_config(world, tmp_path / "run", model=str(broken), max_steps=1))
    train(run_config(world, tmp_path / "run", max_steps=1))
    assert len(metrics(tmp_path / "run")) == 1
