"""Configuration files, overrides, and how mistakes in them are told."""

import json
import signal
import subprocess
import sys

import pytest

from fusejax import export
from fusejax.common.cli import UserError, load_config, one_line
from fusejax.config import EvaluateConfig, TrainConfig

GOOD = """
task: sft
model: some/model
data: {train: data/sft/train}
output_dir: runs/x
optimizer: {learning_rate: 5e-6}
"""


def load(tmp_path, text=GOOD, overrides=()):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(TrainConfig, path, list(overrides))


def test_values_and_overrides(tmp_path):
    config = load(tmp_path, overrides=["optimizer.b2=0.95", "data.eval=data/sft/eval", "optimizer.learning_rate=1e-5"])
    assert config.optimizer.learning_rate == 1e-5
    assert config.optimizer.b2 == 0.95
    assert config.data.eval == "data/sft/eval"
    assert load(tmp_path).optimizer.learning_rate == 5e-6  # which YAML 1.1 reads as text


@pytest.mark.parametrize("name", ["dpo", "preference"])
def test_preference_and_dpo_are_one_task(tmp_path, name):
    config = load(tmp_path, overrides=[f"task={name}", "preference.beta=0.2"])
    assert (config.task, config.record_kind, config.needs_reference) == ("preference", "dpo", True)
    kept = config.model_dump()
    assert json.loads(config.model_dump_json()) == config.model_dump(mode="json")
    assert kept["preference"] == {
        "loss": "dpo",
        "beta": 0.2,
        "length_normalized": False,
        "label_smoothing": 0.0,
        "reference": None,
        "sft_weight": 0.0,
    }
    assert TrainConfig.model_validate(kept) == config


def test_row_length_follows_the_task(tmp_path):
    assert load(tmp_path, overrides=["max_length=100"]).row_length == 100
    assert load(tmp_path, overrides=["max_length=100", "task=dpo", "preference.beta=1"]).row_length == 200


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimiser.b1=0.9"], "optimiser: unknown key; did you mean 'optimizer'?"),
        (["optimizer.learning_rat=1"], "optimizer.learning_rat: unknown key; did you mean 'learning_rate'?"),
        (["batch_size=many"], "batch_size: input should be a valid integer"),
        (["batch_size=0"], "batch_size: input should be greater than 0"),
        (["task=dpo"], "task preference (or dpo) needs the section 'preference'"),
        (["task=dpo", "preference.betta=1"], "preference.betta: unknown key; did you mean 'beta'?"),
        (["task=dpo", "preference.loss=dop"], "preference: loss 'dop' is none of dpo"),
        (["task=dpo", "preference.beta=-1"], "preference.beta: input should be greater than 0"),
        (["preference.beta=1"], "task sft has no use for the section 'preference'"),
        (["packing.row_length=100"], "packing.row_length 100 cannot hold a whole example"),
        (["packing.attention_length=2000"], "packing.attention_length 2000 is less than packing.row_length, 2048"),
        (["packing.attention_length=4096"], "packing.attention_length is for task preference"),
        (
            ["task=dpo", "preference.beta=1", "packing.row_length=3500", "packing.attention_length=4095"],
            "packing.attention_length 4095 cannot hold a whole example: task preference with max_length 2048 needs",
        ),
        (
            ["task=dpo", "preference.beta=1", "packing.row_length=2047", "packing.attention_length=4096"],
            "packing.row_length 2047 cannot hold a whole example: task preference with max_length 2048 needs 2048",
        ),
        (["max_prompt_length=2048"], "max_prompt_length 2048 leaves no room in max_length 2048"),
        (["mesh.data=-1"], "only one axis can be -1"),
        (["seed=-1"], "seed: input should be greater than or equal to 0"),
        (["optimizer.learning_rate=.inf"], "optimizer.learning_rate: input should be a finite number"),
        (["batch_size=true"], "batch_size: input should be a valid integer"),
        (["batch_size=8.0"], "batch_size: input should be a valid integer"),
        (["task=dpo", "preference.length_normalized=1"], "preference.length_normalized: input should be a valid bool"),
        (["output_dir=gs:///run"], "output_dir: gs:///run is neither a local path nor gs://BUCKET/..."),
        (["data.train=gs:/b/train"], "data.train: gs:/b/train is neither a local path nor gs://BUCKET/..."),
        (["data.eval=s3://b/eval"], "data.eval: s3://b/eval is neither a local path nor gs://BUCKET/..."),
        (["nothing"], "override 'nothing': expected key.path=value"),
        (["model.name=x"], "override 'model.name=x': 'model' has no keys below it"),
        (["seed=[1"], "override 'seed=[1': '[1' is not a YAML value"),
    ],
)
def test_mistakes_name_the_key(tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, overrides=overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "seed: 1\nseed: 2\n", "key 'seed' occurs twice"),
        ("task: [sft", "not YAML"),
        ("- task", "expected keys and values, found list"),
        ("", "field required"),
    ],
)
def test_files_that_hold_no_configuration(tmp_path, text, message):
    with pytest.raises(UserError, match=r"run\.yaml") as error:
        load(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "run.yaml").write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(UserError, match=r"run\.yaml: not UTF-8") as error:
        load_config(TrainConfig, tmp_path / "run.yaml", [])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["models.base", "prompts", "scoring", "output_dir"])
def test_where_the_files_of_an_evaluation_may_lie(tmp_path, key):
    (tmp_path / "run.yaml").write_text("{models: {base: m}, prompts: p, scoring: s, output_dir: o}")
    assert load_config(EvaluateConfig, tmp_path / "run.yaml", []).models == {"base": "m"}
    load_config(EvaluateConfig, tmp_path / "run.yaml", [f"{key}=gs://b/x"])
    with pytest.raises(UserError, match=f"{key}: s3://b/x is neither a local path nor gs://BUCKET"):
        load_config(EvaluateConfig, tmp_path / "run.yaml", [f"{key}=s3://b/x"])


def test_an_evaluation_has_models(tmp_path):
    (tmp_path / "run.yaml").write_text("{models: {}, prompts: p, scoring: s, output_dir: o}")
    with pytest.raises(UserError, match="models: dictionary should have at least 1 item"):
        load_config(EvaluateConfig, tmp_path / "run.yaml", [])


@pytest.mark.parametrize("options", [["s3://b/run", "--output", "x"], ["run", "--output", "s3://b/x"]])
def test_where_an_export_may_lie(monkeypatch, options):
    monkeypatch.setattr("sys.argv", ["export", "--checkpoint", *options])
    with pytest.raises(UserError, match=r"s3://b/(run|x) is neither a local path nor gs://BUCKET"):
        export.main()


def test_a_missing_file_ends_with_status_2():
    command = [sys.executable, "-m", "fusejax.train", "--config", "/nowhere/run.yaml"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: config /nowhere/run.yaml: No such file or directory\n"


def test_an_error_in_one_line():
    assert one_line(ValueError("no\n  such thing")) == "no such thing"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 301)) == "x" * 300 + " ..."
    assert one_line(ValueError("x" * 9), 9) == "x" * 9


def test_leaving_spares_the_teardown_and_nothing_else():
    program = """
import atexit, os, sys, threading, time
from fusejax.common import cli

class Library:
    def __del__(self, abort=os.abort):
        abort()

library = Library()
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
atexit.register(lambda: print("registered", file=sys.stderr))
print("printed", end="")
if "leave" in sys.argv:
    cli.leave(3)
"""
    run = [sys.executable, "-c", program]
    aborted = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert aborted.returncode == -signal.SIGABRT
    left = subprocess.run([*run, "leave"], capture_output=True, text=True, timeout=60)
    assert (left.returncode, left.stdout, left.stderr) == (3, "printedthread\n", "registered\n")
