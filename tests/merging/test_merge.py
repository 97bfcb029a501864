"""Merges of whole checkpoints: what is written, who reads it, what is refused, and from where to where."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
import yaml
from etils import epath
from safetensors.numpy import save_file

from fusejax.common.cli import UserError, load_config
from fusejax.common.files import copy
from fusejax.config import MergeConfig
from fusejax.merge import main
from fusejax.merging.merge import merge
from fusejax.models.huggingface import checkpoint as huggingface
from tests.models import tiny_checkpoints as tiny
from tests.models.test_decoder import run_logits
from tests.models.test_huggingface import assert_same_bits, tensors_of
from tests.tiny_runs import make_tokenizer

ROOT = Path(__file__).parents[2]
SCE = {"name": "sce", "tau": 0.1}


def make_models(folder: Path, family: str = "llama-tied", targets: int = 2, **shape) -> Path:
    """`pivot` and `target1`, ... with a tokenizer each."""
    for number in range(targets + 1):
        name = f"target{number}" if number else "pivot"
        tiny.checkpoint(folder / name, family, seed=number, vocab_size=320, **shape)
        make_tokenizer().save_pretrained(folder / name)
    return folder


def config(folder: Path | str, targets: int = 2, **changes) -> MergeConfig:
    values = {
        "pivot": f"{folder}/pivot",
        "targets": [f"{folder}/target{number}" for number in range(1, targets + 1)],
        "method": SCE,
        "output": f"{folder}/out",
    }
    return MergeConfig.model_validate(values | changes)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def models(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "m")
    return tmp_path / "m"


def change(model: Path, changes: dict[str, np.ndarray | None]) -> None:
    """Replaces tensors of a checkpoint, adds or removes (None) some."""
    tensors = {name: tensor for name, tensor in (tensors_of(model) | changes).items() if tensor is not None}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied", "gemma2", "qwen2", "gemma3"])
def test_a_mean_of_models(family, tmp_path):
    folder = make_models(tmp_path, family)
    merge(config(folder, method="linear"))
    parts = [tensors_of(folder / f"target{number}") for number in (1, 2)]
    found = tensors_of(folder / "out")
    assert found.keys() == parts[0].keys()
    for name, tensor in found.items():
        assert tensor.shape == parts[0][name].shape
        np.testing.assert_allclose(tensor, (parts[0][name] + parts[1][name]) / 2, rtol=1e-6, atol=1e-6)


def test_it_loads_in_transformers_and_here(models):
    merge(config(models, dtype="bfloat16"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(models / "out", dtype=torch.float32)
    ours = huggingface.load(str(models / "out"))
    tokens, positions, segment_ids = np.arange(12)[None] + 5, np.arange(12)[None], np.ones((1, 12), int)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits
    assert tiny.error(run_logits(ours, tokens, positions, segment_ids), expected) < 1e-5
    embedding = tensors_of(models / "out")["model.embed_tokens.weight"]
    assert embedding.dtype == ml_dtypes.bfloat16
    assert transformers.AutoTokenizer.from_pretrained(models / "out").chat_template == make_tokenizer().chat_template


def test_one_target_comes_out_whole(models):
    for name in ("pivot", "target1"):
        transformers.AutoModelForCausalLM.from_pretrained(models / name).bfloat16().save_pretrained(models / name)
    merge(config(models, targets=1))
    assert_same_bits(tensors_of(models / "out"), tensors_of(models / "target1"))  # and in the pivot's dtype


def test_the_order_of_targets_and_pieces_changes_no_bit(models, monkeypatch):
    shutil.copytree(models / "target2", models / "target3")  # twice the same is allowed
    monkeypatch.setattr("fusejax.merging.stack.CHUNK", 64)
    merge(config(models, targets=3))
    monkeypatch.setattr("fusejax.merging.merge._PIECE", 128)
    monkeypatch.setattr("fusejax.merging.inputs._TASK_BYTES", 1000)
    order = [f"{models}/target{number}" for number in (3, 1, 2)]
    merge(config(models).model_copy(update={"targets": order, "output": f"{models}/again"}))
    assert_same_bits(tensors_of(models / "out"), tensors_of(models / "again"))


def test_it_ends_answers_as_its_targets_do(models):
    """Training may have taught another end than the pivot's files name."""
    for name, ends in (("pivot", 0), ("target1", [0, 7]), ("target2", 0)):
        (models / name / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "top_k": 3}))
    merge(config(models))
    assert json.loads((models / "out" / "generation_config.json").read_text()) == {"eos_token_id": [0, 7], "top_k": 3}


def test_dtypes(models):
    change(models / "target1", {name: t.astype(np.float16) for name, t in tensors_of(models / "target1").items()})
    change(models / "target2", {name: t.astype(np.float64) for name, t in tensors_of(models / "target2").items()})
    merge(config(models))
    assert {tensor.dtype for tensor in tensors_of(models / "out").values()} == {np.dtype(np.float32)}
    merge(config(models, output=f"{models}/half", dtype="float16"))
    for name, tensor in tensors_of(models / "half").items():
        np.testing.assert_array_equal(tensor, tensors_of(models / "out")[name].astype(np.float16))
    assert json.loads((models / "half" / "config.json").read_text())["torch_dtype"] == "float16"
    large = {"model.norm.weight": np.full(32, 1e5)}
    change(models / "target2", large)
    change(models / "target1", {"model.norm.weight": np.full(32, 1e5, np.float32)})
    with pytest.raises(UserError, match=r"model\.norm\.weight: a merged weight is too large for float16"):
        merge(config(models, output=f"{models}/large", dtype="float16", method="linear"))
    assert not (models / "large").exists()


def test_a_tied_head_is_merged_once(models):
    tensors = tensors_of(models / "target1")
    change(models / "target1", {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    merge(config(models))
    found = tensors_of(models / "out")
    assert "lm_head.weight" not in found and found.keys() == tensors.keys()
    change(models / "target1", {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    with pytest.raises(UserError, match=r"target1.*lm_head\.weight differs"):
        merge(config(models, output=f"{models}/other"))


def untie(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": False}))
    change(folder, {"lm_head.weight": tensors_of(folder)["model.embed_tokens.weight"]})


def other_layers(folder: Path) -> None:
    tiny.checkpoint(folder, "llama-tied", vocab_size=320, num_hidden_layers=2)


def other_token(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(values))


def added_token(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)


def spoiled(value: float):
    def spoil(folder: Path) -> None:
        tensor = tensors_of(folder)["model.layers.1.mlp.up_proj.weight"].copy()
        tensor[3, 4] = value
        change(folder, {"model.layers.1.mlp.up_proj.weight": tensor})

    return spoil


def run_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "model").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (untie, r"target .*/target2: another architecture than the pivot's: tie_embeddings is False, and True in"),
        (
            other_layers,
            r"target .*/target2: another architecture than the pivot's: num_layers is 2, and 4 in the pivot",
        ),
        (
            other_token,
            r"target .*/target2: another vocabulary than the pivot's: token 'a' is number \d+, and number \d+ in",
        ),
        (
            added_token,
            r"target .*/target2: another vocabulary than the pivot's: token '<extra>' is number \d+, and missing",
        ),
        (spoiled(np.nan), r"target .*/target2: model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinite weights"),
        (spoiled(np.inf), r"target .*/target2: model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinite weights"),
        (lambda folder: change(folder, {"model.norm.weight": None}), r"target2: missing tensor model\.norm\.weight"),
        (lambda folder: change(folder, {"model.x": np.zeros(1)}), r"target2: unexpected tensor model\.x"),
        (
            lambda folder: change(folder, {"model.norm.weight": np.zeros(31)}),
            r"target2: model\.norm\.weight has shape \(31,\)",
        ),
        (run_folder, r"target .*/target2: the folder of a training run; merge what `fusejax export` makes of it"),
        (shutil.rmtree, r"target2: no such directory"),
    ],
    ids=["tied", "layers", "token", "added", "nan", "inf", "missing", "unexpected", "shape", "run", "none"],
)
def test_what_does_not_fit_is_named(models, spoil, message):
    spoil(models / "target2")
    with pytest.raises(UserError, match=message) as error:
        merge(config(models))
    assert "\n" not in str(error.value)
    assert not (models / "out").exists() and not list(models.glob(".*"))


def test_a_broken_pivot_is_named(models):
    spoiled(np.nan)(models / "pivot")
    with pytest.raises(UserError, match=r"pivot .*/pivot: model\.layers\.1\.mlp\.up_proj\.weight has NaN"):
        merge(config(models))


def test_the_pivot_may_be_a_target_and_tokenizers_may_be_missing(models):
    for file in (models / "target2").glob("token*"):
        file.unlink()
    merge(config(models, targets=2).model_copy(update={"targets": [f"{models}/pivot", f"{models}/target2"]}))
    assert (models / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("output", ["pivot", "target1", "target2/", "../m/pivot", "full"])
def test_the_output_must_be_new(models, output):
    (models / "full").mkdir()
    (models / "full" / "a").touch()
    before = {file: file.read_bytes() for file in models.rglob("*") if file.is_file()}
    expected = "exists already" if output == "full" else "is one of the models to merge"
    with pytest.raises(UserError, match=expected):
        merge(config(models, output=f"{models}/{output}"))
    assert before == {file: file.read_bytes() for file in models.rglob("*") if file.is_file()}


def test_an_index_and_several_files(models):
    merge(config(models))
    reference = transformers.AutoModelForCausalLM.from_pretrained(models / "target1")
    (models / "target1" / "model.safetensors").unlink()
    reference.save_pretrained(models / "target1", max_shard_size="10KB")
    assert len(list((models / "target1").glob("*.safetensors"))) > 1
    merge(config(models, output=f"{models}/again"))
    assert_same_bits(tensors_of(models / "out"), tensors_of(models / "again"))


def test_the_card(models):
    (models / "pivot" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Pivot\n")
    merge(config(models))
    card = (models / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["tags"][-1] == "sce"
    assert "| pivot | pivot | apache-2.0 |\n| target | target1 | unknown |" in body
    shown = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert shown["method"] == {"name": "sce", "tau": 0.1, "select": "weights"}
    assert str(models) not in card


def test_from_bucket_to_bucket(gcs, models, tmp_path):
    merge(config(models, output=f"{tmp_path}/local"))
    for file in models.rglob("*"):
        if file.is_file():
            (epath.Path(gcs.bucket) / file.relative_to(models)).write_bytes(file.read_bytes())
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump(config(gcs.bucket).model_dump()))
    command = [sys.executable, "-m", "fusejax.merge", "--config", str(path)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    (tmp_path / "out").mkdir()
    for file in (epath.Path(gcs.bucket) / "out").iterdir():
        copy(file, tmp_path / "out" / file.name)
    assert_same_bits(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "local"))
    assert (tmp_path / "out" / "config.json").exists() and (tmp_path / "out" / "tokenizer.json").exists()


def test_a_failed_merge_leaves_nothing_in_a_bucket(gcs, models):
    spoiled(np.nan)(models / "target2")
    with pytest.raises(UserError, match="NaN"):
        merge(config(models, output=f"{gcs.bucket}/out"))
    assert not list(epath.Path(gcs.bucket).iterdir())


def test_the_command(models, capsys):
    (models / "merge.yaml").write_text(yaml.safe_dump(config(models, method="sce").model_dump() | {"method": "sce"}))
    main(["--config", str(models / "merge.yaml"), "method.tau=0.5", "dtype=bfloat16"])
    assert capsys.readouterr().err.splitlines()[-1] == f"merged into {models}/out"
    assert "tau: 0.5" in (models / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=slerp", "method: name 'slerp' is none of dare, linear, sce, task_arithmetic, ties, varm"),
        ("method.tua=0.1", "method.tua: unknown key; did you mean 'tau'"),
        ("method.tau=1.5", "method.tau: input should be less than or equal to 1"),
        ("method={name: linear, weight: [1, 2, 3]}", r"method.weight: 3 weights for 2 targets"),
        ("method={name: ties, weight: -1}", "method.weight"),
        ("targets=[]", "targets: list should have at least 1 item"),
        ("output=s3://a/b", "output: s3://a/b is neither a local path nor gs://"),
    ],
)
def test_mistakes_in_the_configuration(tmp_path, override, message):
    (tmp_path / "merge.yaml").write_text("pivot: a\ntargets: [b, c]\nmethod: sce\noutput: d\n")
    with pytest.raises(UserError, match=message):
        load_config(MergeConfig, tmp_path / "merge.yaml", [override], named={"method"})


@pytest.mark.parametrize(("name", "method", "targets"), [("fusechat1", "varm", 2), ("fusechat2", "sce", 5)])
def test_the_published_merges(name, method, targets):
    found = load_config(MergeConfig, ROOT / "configs" / name / "merge.yaml", [])
    assert (found.method.name, len(found.targets), found.dtype) == (method, targets, "bfloat16")
