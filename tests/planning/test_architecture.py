"""Finding what a configuration trains, without weights and without the Hub."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fusejax.common.cli import UserError
from fusejax.models.decoder.decoder import abstract_decoder
from fusejax.planning.architecture import find_architecture, known_architectures

CONFIGS = Path(__file__).parents[2] / "configs"

PARAMETERS = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "openchat/openchat_3.5": 7_241_748_480,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "google/gemma-2-9b-it": 9_241_705_984,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-3-270m-it": 268_098_176,
    "google/gemma-3-1b-it": 999_885_952,
    # Of 4,300,079,472, the others for images.
    "google/gemma-3-4b-it": 3_880_263_168,
}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_all_targets_are_known():
    assert known_architectures().keys() == PARAMETERS.keys()


@pytest.mark.parametrize("hub_id", PARAMETERS)
def test_targets_have_their_published_number_of_parameters(hub_id):
    model, _ = find_architecture(hub_id, CONFIGS / "fusechat3" / "any.yaml")
    _, shapes = abstract_decoder(model, param_dtype=jnp.float32, compute_dtype=jnp.bfloat16)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == PARAMETERS[hub_id]


def test_a_run_to_come_is_followed_to_what_it_starts_from():
    model, source = find_architecture("runs/fusechat3/gemma2-9b-sft", CONFIGS / "fusechat3" / "gemma2-9b-dpo.yaml")
    assert model.pattern == (4096, None)
    assert source.endswith("configs/models/gemma2-9b.json")


@pytest.mark.parametrize("place", ["config.json", "model/config.json", "shape.json"])
def test_files_and_directories(tmp_path, place):
    file = tmp_path / "run" / place
    file.parent.mkdir(parents=True)
    file.write_text((CONFIGS / "models" / "llama3.2-1b.json").read_text())
    asked = file if place == "shape.json" else tmp_path / "run"
    model, source = find_architecture(str(asked), tmp_path / "run.yaml")
    assert (model.num_layers, model.tie_embeddings) == (16, True)
    assert source == str(file)


def test_a_checkpoint_that_exists_goes_before_the_configuration_beside(tmp_path):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "sft.yaml").write_text(f"model: google/gemma-2-9b-it\noutput_dir: {tmp_path}/out\n")
    before, _ = find_architecture(f"{tmp_path}/out", tmp_path / "dpo.yaml")
    (tmp_path / "out" / "model" / "config.json").write_text((CONFIGS / "models" / "llama3.1-8b.json").read_text())
    after, _ = find_architecture(f"{tmp_path}/out", tmp_path / "dpo.yaml")
    assert (before.num_layers, after.num_layers) == (42, 32)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("some/where/else", "no such directory, and no configuration beside .* has it as output_dir; name its arch"),
        ("nobody/nothing", "not to be had from the Hub .*; name its architecture instead"),
    ],
)
def test_unknown_models_are_refused_with_a_remedy(tmp_path, model, message):
    with pytest.raises(UserError, match=message):
        find_architecture(model, tmp_path / "run.yaml")


def test_runs_that_start_from_each_other_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("model: runs/of/b\noutput_dir: runs/of/a\n")
    (tmp_path / "b.yaml").write_text("model: runs/of/a\noutput_dir: runs/of/b\n")
    with pytest.raises(UserError, match="start from each other"):
        find_architecture("runs/of/a", tmp_path / "c.yaml")


def test_unsupported_architectures_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match=r"config.json: model_type 't5' is not supported"):
        find_architecture(str(tmp_path), tmp_path / "run.yaml")
