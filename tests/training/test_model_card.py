"""The model card of an export: what the model was made from, how, and with which result, and no path of the machine."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from etils import epath

from fusejax.common.cli import UserError
from fusejax.distributed.mesh import one_device_mesh
from fusejax.training.checkpoints import Checkpoints
from fusejax.training.export import export
from fusejax.training.model_card import without_paths
from fusejax.training.origin import keep_origin, read_origin
from fusejax.training.start import StartingModel
from fusejax.training.state import TrainState
from tests.tiny_runs import run_config

MANIFEST = {
    "models": {"calculator": "some-owner/calculator-7b", "parrot": "/home/me/parrot"},
    "licenses": {"calculator": "mit"},
    "config": {
        "prompts": [{"path": "openai/gsm8k"}, {"path": "/home/me/own.jsonl"}],
        "server": {"url": "http://u:pw@h"},
    },
}
CARD = (
    "---\nlicense: cc-by-4.0\n---\n# Data set additions\n\nRead from /home/me/data/own.jsonl.\n\n## Contents\n\nSums.\n"
)


def make_run(config, metrics: dict[str, float]) -> Path:
    """A run's folder after one step that changed nothing."""
    model, output = StartingModel(config.model), Path(config.output_dir)
    if not model.is_run:
        shutil.copytree(config.model, output / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    else:
        shutil.copytree(Path(config.model) / "model", output / "model")
    keep_origin(config, model)
    with Checkpoints(output, keep=1) as checkpoints:
        params = model.load(one_device_mesh(), dtype="float32")
        checkpoints.save(TrainState(jnp.int32(1), params, {}), {"eval_loss": metrics["eval_loss"]})
    (output / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.5, "mfu": 0.1, **metrics}) + '\n{"step": 2')
    return output


@pytest.fixture
def spoken(world, tmp_path) -> Path:
    """The tiny world with what real shards and models say of themselves."""
    shutil.copytree(world, tmp_path / "world")
    for kind in ("sft", "dpo"):
        path = tmp_path / "world" / kind / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | MANIFEST))
    (tmp_path / "world" / "data_card.md").write_text(CARD)
    (tmp_path / "world" / "model" / "README.md").write_text("---\nlicense: llama3.2\n---\n# Base\n")
    config = tmp_path / "world" / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "some-owner/base-1b"}))
    return tmp_path / "world"


def test_the_card_of_two_stages(spoken, tmp_path):
    sft = make_run(run_config(spoken, tmp_path / "sft"), {"eval_loss": 0.75})
    config = run_config(spoken, tmp_path / "dpo", "dpo").model_copy(update={"model": str(sft)})
    run = make_run(config, {"eval_loss": 0.5, "eval_reward_accuracy": 0.875})
    shutil.rmtree(sft)  # the run says all by itself
    shutil.rmtree(spoken)
    export(str(run), str(tmp_path / "fused"), step=None, dtype="bfloat16")
    text = (tmp_path / "fused" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "license": "llama3.2",
        "base_model": "some-owner/base-1b",
        "datasets": ["openai/gsm8k"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fusejax", "model-fusion", "sft", "dpo"],
    }
    for line in (
        "# fused",
        "| some-owner/base-1b | llama3.2 |",
        "| eval_loss | 0.5 |",
        "| eval_reward_accuracy | 0.875 |",
        "| additions | 48 | cc-by-4.0 |",
        "| calculator (some-owner/calculator-7b) | 48 | mit |",
        "python -m fusejax.export --checkpoint dpo --output fused --step 1 --dtype bfloat16",
        "#### Data set additions",
        "Read from own.jsonl.",
    ):
        assert line in text.splitlines(), line
    assert "`python -m fusejax.train --config stage2.yaml`" in text
    configs = [yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml\n")[1:]]
    assert [config["task"] for config in configs] == ["sft", "preference"]
    assert configs[0]["output_dir"] == "sft"
    assert configs[0]["data"] == {"train": "sft/train", "eval": "sft/eval"}
    assert configs[1]["model"] == "sft"
    for secret in (str(tmp_path), "/home", "/tmp", "pw@h", "mfu"):
        assert secret not in text
    card = huggingface_hub.ModelCard.load(tmp_path / "fused" / "README.md")
    assert (card.data.base_model, card.data.license) == ("some-owner/base-1b", "llama3.2")


def test_what_is_not_known_is_called_unknown(world, tmp_path):
    run = make_run(run_config(world, tmp_path / "sft"), {"eval_loss": 0.75})
    export(str(run), str(tmp_path / "out"), step=1, dtype="float32")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| model | unknown |" in text  # the folder's name, and its licence
    assert "| calculator | 48 | unknown |" in text
    assert not {"base_model", "license", "datasets"} & yaml.safe_load(text.split("---")[1]).keys()


def test_a_run_of_an_earlier_release(world, tmp_path):
    run = make_run(run_config(world, tmp_path / "sft"), {"eval_loss": 0.75})
    (run / "origin.json").unlink()
    config = run_config(world, run).model_dump(mode="json") | {"model": "some-owner/base-1b"}
    (run / "run.yaml").write_text(yaml.safe_dump({"config": config, "data": {}}))
    export(str(run), str(tmp_path / "out"), step=1, dtype="float32")
    text = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "some-owner/base-1b"
    assert "the data are not known" in text
    (run / "run.yaml").unlink()
    export(str(run), str(tmp_path / "again"), step=1, dtype="float32")
    assert "A base model that is not known" in (tmp_path / "again" / "README.md").read_text()


BASE = '{"base": {"name": "a", "hub_id": null, "license": null}, "stages": '
BROKEN = (
    "",
    "[]",
    "{}",
    '{"base": 1, "stages": []}',
    '{"base": {}, "stages": []}',
    "\xff",
    BASE + "[1]}",
    BASE + "[{}]}",
)
BROKEN += (BASE + '[{"config": {}, "data": {"by_dataset": []}}]}', BASE + '[{"config": {}, "data": {"card": 7}}]}')


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_origin_is_named(text, tmp_path):
    (tmp_path / "origin.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"origin\.json"):
        read_origin(epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("model: /home/me/base", "model: base"),
        ("['/data/a b', ~/runs/x/]", "['a b', x]"),
        ("key=gs://bucket/runs/x step", "key=x step"),
        ("(file:///etc/hosts)", "(hosts)"),
        (r"C:\Users\me\model", "model"),
        ("https://huggingface.co/a/b and/or 3/4", "https://huggingface.co/a/b and/or 3/4"),
        ("<|im_end|> </s> owner/name runs/x", "<|im_end|> </s> owner/name runs/x"),
    ],
)
def test_paths_are_cut(text, cut):
    assert without_paths(text) == cut


def test_nan_weights_of_a_run_are_called_so(world, tmp_path):
    run = make_run(run_config(world, tmp_path / "sft"), {"eval_loss": 0.75})
    with Checkpoints(run, keep=2) as checkpoints:
        params = StartingModel(str(world / "model")).load(one_device_mesh(), dtype="float32")
        params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(np.nan)
        checkpoints.save(TrainState(jnp.int32(2), params, {}), {"eval_loss": 0.1})
    with pytest.raises(UserError, match=r"final_norm\.scale of step 2 has NaN or infinite weights"):
        StartingModel(str(run)).load(one_device_mesh(), dtype="float32")
