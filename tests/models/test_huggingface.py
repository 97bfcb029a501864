"""Checkpoints in and out: exact round trips, export read by transformers, strictness about every tensor and file."""

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from fusejax.common.cli import UserError
from fusejax.common.files import replacing
from fusejax.models.decoder.decoder import named_parameters
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.models.huggingface import export_weights
from tests.models import tiny_checkpoints as tiny
from tests.tiny_runs import make_tokenizer


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint, and no tensor twice."""
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(directory.glob("*.safetensors")):
        loaded = load_file(file)
        assert not tensors.keys() & loaded.keys()
        tensors |= loaded
    return tensors


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.shape == other[name].shape, name
        assert tensor.tobytes() == other[name].tobytes(), name


def export(model, directory: Path, source: Path, dtype: str, **options) -> dict:
    hf_config = json.loads((source / "config.json").read_text())
    huggingface.save(model, model.config, directory, hf_config=hf_config, dtype=dtype, **options)
    return json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_round_trip_is_bit_exact(family, dtype, tmp_path):
    reference = tiny.reference(family).to(getattr(torch, dtype))
    with torch.no_grad():  # values that arithmetic would change
        reference.model.norm.weight[:3] = torch.tensor([-0.0, 1e-39, 3e38])
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    model = huggingface.load(str(tmp_path / "theirs"), param_dtype=jnp.dtype(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(dtype)}
    export(model, tmp_path / "single", tmp_path / "theirs", dtype)
    export(model, tmp_path / "sharded", tmp_path / "theirs", dtype, max_shard_bytes=10_000)
    assert [file.name for file in (tmp_path / "single").glob("*.safetensors")] == ["model-00001-of-00001.safetensors"]
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    theirs = tensors_of(tmp_path / "theirs")
    assert_same_bits(tensors_of(tmp_path / "single"), theirs)
    assert_same_bits(tensors_of(tmp_path / "sharded"), theirs)
    again = huggingface.load(str(tmp_path / "sharded"), param_dtype=jnp.dtype(dtype))
    export(again, tmp_path / "again", tmp_path / "theirs", dtype)
    assert_same_bits(tensors_of(tmp_path / "again"), theirs)


def test_bfloat16_survives_float32_parameters(tmp_path):
    tiny.reference("gemma2").bfloat16().save_pretrained(tmp_path / "theirs")
    model = huggingface.load(str(tmp_path / "theirs"), param_dtype=jnp.float32)
    config = export(model, tmp_path / "ours", tmp_path / "theirs", "bfloat16")
    assert_same_bits(tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs"))
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_transformers_reads_the_export(family, tmp_path):
    reference = tiny.checkpoint(tmp_path / "theirs", family)
    model = huggingface.load(str(tmp_path / "theirs"))
    export(model, tmp_path / "ours", tmp_path / "theirs", "float32")
    exported, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values())
    tokens = torch.arange(3, 43)[None]
    assert torch.equal(exported(tokens).logits, reference(tokens).logits)


def test_parameters_alone_can_be_saved(tmp_path):
    tiny.checkpoint(tmp_path / "theirs", "qwen2")
    model = huggingface.load(str(tmp_path / "theirs"))
    hf_config = json.loads((tmp_path / "theirs/config.json").read_text())
    params = nnx.state(model, nnx.Param)
    huggingface.save(params, model.config, tmp_path / "ours", hf_config=hf_config, dtype="float32")
    assert_same_bits(tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs"))


def test_index_and_config(tmp_path):
    tiny.checkpoint(tmp_path / "theirs", "llama-untied")
    model = huggingface.load(str(tmp_path / "theirs"))
    old_style = json.loads((tmp_path / "theirs/config.json").read_text())
    del old_style["dtype"]
    huggingface.save(
        model, model.config, tmp_path / "ours", hf_config=old_style, dtype="bfloat16", max_shard_bytes=10_000
    )
    assert json.loads((tmp_path / "ours/config.json").read_text())["torch_dtype"] == "bfloat16"
    index = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    tensors = tensors_of(tmp_path / "ours")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for file in (tmp_path / "ours").glob("*.safetensors"):
        assert file.stat().st_mode == (tmp_path / "ours/config.json").stat().st_mode
        contents = load_file(file)
        assert sum(tensor.nbytes for tensor in contents.values()) <= 10_000
        assert all(index["weight_map"][name] == file.name for name in contents)


# Strictness


@pytest.fixture
def single(tmp_path) -> Path:
    """A checkpoint in one file, to be spoilt."""
    tiny.checkpoint(tmp_path / "model", "llama-tied")
    return tmp_path / "model"


def respoil(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.2.mlp.up_proj.weight"), "missing tensor model.layers.2.mlp.up_proj.weight"),
        (lambda t: t.pop("model.embed_tokens.weight"), "missing tensor model.embed_tokens.weight"),
        (lambda t: t.update(extra=np.zeros(3)), "unexpected tensor extra"),
        (
            lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": np.zeros(32, np.float32)}),
            "unexpected tensor model.layers.1.self_attn.q_proj.bias",
        ),
        (
            lambda t: t.update({f"extra.{i}": np.zeros(1) for i in range(5)}),
            "unexpected tensors extra.0, extra.1, extra.2 and 2 more",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}),
            r"model.norm.weight has shape \(31,\); config.json asks for \(32,\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)}),
            "model.norm.weight is I8",
        ),
        (
            lambda t: t.update({"lm_head.weight": np.zeros((96, 32), np.float32)}),
            "lm_head.weight differs from model.embed_tokens.weight",
        ),
    ],
)
def test_wrong_tensors_are_named(single, change, message):
    respoil(single, change)
    with pytest.raises(UserError, match=message):
        huggingface.load(str(single))


def test_missing_head_of_an_untied_model_is_named(tmp_path):
    tiny.checkpoint(tmp_path, "llama-untied")
    respoil(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"missing tensor lm_head.weight"):
        huggingface.load(str(tmp_path))


def test_tied_head_written_twice_and_rotary_buffers_are_accepted(single):
    expected = huggingface.load(str(single))
    respoil(
        single,
        lambda tensors: tensors.update(
            {
                "lm_head.weight": tensors["model.embed_tokens.weight"],
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
            }
        ),
    )
    np.testing.assert_array_equal(huggingface.load(str(single)).head(), expected.head())


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        ("model.norm.weight", np.nan, np.float32),
        ("model.embed_tokens.weight", np.inf, ml_dtypes.bfloat16),
        ("model.layers.2.mlp.up_proj.weight", -np.inf, np.float64),
    ],
)
def test_nan_weights_are_called_so(single, name, value, dtype):
    def spoil(tensors):
        tensors[name] = tensors[name].astype(dtype)
        tensors[name].flat[-1] = value

    respoil(single, spoil)
    with pytest.raises(UserError, match=f"model/model.safetensors: {name} has NaN or infinite weights"):
        huggingface.load(str(single), param_dtype=jnp.bfloat16)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_model_saved_without_its_head(family, tmp_path):
    """As `AutoModel` saves it: the names lack `model.`; and where the head is not the embedding, it is missed."""
    reference = tiny.checkpoint(tmp_path / "whole", family)
    reference.model.save_pretrained(tmp_path / "bare")
    assert "embed_tokens.weight" in tensors_of(tmp_path / "bare")
    if not reference.config.tie_word_embeddings:
        with pytest.raises(UserError, match=r"missing tensor lm_head\.weight: .* without the model's head"):
            huggingface.load(str(tmp_path / "bare"))
        head = reference.lm_head.weight.detach().numpy()
        respoil(tmp_path / "bare", lambda tensors: tensors.update({"lm_head.weight": head}))
    whole, bare = (named_parameters(huggingface.load(str(tmp_path / name))) for name in ("whole", "bare"))
    assert whole.keys() == bare.keys()
    for path, parameter in whole.items():
        np.testing.assert_array_equal(parameter.get_value(), bare[path].get_value())
    config = export(huggingface.load(str(tmp_path / "bare")), tmp_path / "out", tmp_path / "bare", "float32")
    assert config["architectures"] == [type(reference).__name__]
    assert_same_bits(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "whole"))


def test_text_and_images_saved_without_a_head(tmp_path):
    reference = tiny.reference_with_images()
    reference.save_pretrained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    state = {name: tensor.numpy() for name, tensor in reference.model.state_dict().items()}
    assert "language_model.embed_tokens.weight" in state
    save_file(state, tmp_path / "bare" / "model.safetensors")
    whole, bare = (named_parameters(huggingface.load(str(tmp_path / name))) for name in ("whole", "bare"))
    for path, parameter in whole.items():
        np.testing.assert_array_equal(parameter.get_value(), bare[path].get_value())


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_truncated_file_is_named(single, kept):
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        huggingface.load(str(single))


def test_corrupt_header_is_named(single):
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:8] + b"#" * 100 + file.read_bytes()[108:])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        huggingface.load(str(single))


def test_missing_files_are_named(tmp_path):
    directory = tmp_path / "model"
    tiny.reference("qwen2").save_pretrained(directory, max_shard_size="20KB")
    victim = sorted(directory.glob("*.safetensors"))[1]
    victim.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{victim.name}: no such file"):
        huggingface.load(str(directory))
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        huggingface.load(str(directory))
    (directory / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as JSON"):
        huggingface.load(str(directory))
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match=r"config\.json: model_type 'gpt2'"):
        huggingface.load(str(directory))
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        huggingface.load(str(directory))


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/place", "no-such-owner/no-such-model", "a b"])
def test_model_that_cannot_be_found(source, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"model {source}: no such directory"):
        huggingface.find(source)


def test_only_the_weights_that_are_read_are_downloaded(single, monkeypatch):
    wanted = []
    monkeypatch.setattr(
        huggingface.huggingface_hub,
        "snapshot_download",
        lambda source, allow_patterns: wanted.extend(allow_patterns) or str(single),
    )
    assert huggingface.find("owner/name").files == single
    assert "model*.safetensors" in wanted
    assert not any(fnmatch.fnmatch("consolidated.safetensors", pattern) for pattern in wanted)


def test_file_instead_of_a_directory(single):
    with pytest.raises(UserError, match="expected the directory"):
        huggingface.find(str(single / "config.json"))


# Text and images


@pytest.mark.parametrize("naming", ["published", "in memory"])
def test_of_text_and_images_the_language_model_is_taken(naming, tmp_path, capfd):
    reference = tiny.reference_with_images()
    reference.save_pretrained(tmp_path / "theirs")
    names = {name.partition(".")[0] for name in tensors_of(tmp_path / "theirs")}
    assert names == {"language_model", "vision_tower", "multi_modal_projector"}
    if naming == "in memory":
        state = {name: tensor for name, tensor in reference.state_dict().items() if name != "lm_head.weight"}
        assert {".".join(name.split(".")[:2]) for name in state} == {
            "model.language_model",
            "model.vision_tower",
            "model.multi_modal_projector",
        }
        save_file({name: tensor.numpy() for name, tensor in state.items()}, tmp_path / "theirs/model.safetensors")
    model = huggingface.load(str(tmp_path / "theirs"))
    count = len(reference.model.vision_tower.state_dict()) + len(reference.model.multi_modal_projector.state_dict())
    assert f"the language model is read, and {count} tensors for images (0.00 GB) are not" in capfd.readouterr().err

    config = export(model, tmp_path / "ours", tmp_path / "theirs", "float32")
    assert (config["model_type"], config["architectures"]) == ("gemma3_text", ["Gemma3ForCausalLM"])
    assert config["eos_token_id"] == [1, 7]
    assert "vision_config" not in config
    exported, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values())
    tokens = torch.arange(3, 43)[None]
    assert torch.equal(exported(tokens).logits, reference(tokens).logits)


def test_tensors_for_images_are_unexpected_in_a_language_model(single):
    respoil(single, lambda tensors: tensors.update({"vision_tower.scale": np.zeros(1, np.float32)}))
    with pytest.raises(UserError, match=r"unexpected tensor vision_tower.scale"):
        huggingface.load(str(single))


# Writing


def test_nothing_is_overwritten(single):
    model = huggingface.load(str(single))
    before = {file.name: file.read_bytes() for file in single.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        export(model, single, single, "float32")
    assert {file.name: file.read_bytes() for file in single.iterdir()} == before


def test_a_failed_export_leaves_nothing(single, tmp_path, monkeypatch):
    model = huggingface.load(str(single))
    written = []

    def disk_full(path):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        return replacing(path)

    monkeypatch.setattr(export_weights, "replacing", disk_full)
    with pytest.raises(OSError, match="No space"):
        export(model, tmp_path / "out", single, "float32", max_shard_bytes=10_000)
    assert all(path.name.startswith("model-") for path in written)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_config_must_describe_the_model(single, tmp_path):
    model = huggingface.load(str(single))
    other = json.loads((single / "config.json").read_text()) | {"rms_norm_eps": 0.1}
    with pytest.raises(ValueError, match="another decoder"):
        huggingface.save(model, model.config, tmp_path / "out", hf_config=other, dtype="float32")


def test_tokenizer_files_come_along(single, tmp_path):
    copied = ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "vocab.json"]
    copied += ["merges.txt", "special_tokens_map.json", "generation_config.json"]
    for name in copied:
        (single / name).write_text("{}" if name.endswith("_config.json") else name)
    (single / "README.md").write_text("not this")
    export(huggingface.load(str(single)), tmp_path / "out", single, "float32", tokenizer_from=single)
    for name in copied:
        assert (tmp_path / "out" / name).read_text() == (single / name).read_text()
    weights = {"config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*copied, *weights}


def test_an_export_says_nothing_of_where_it_came_from(single, tmp_path):
    """Both names of the dtype, code that does not come along, another class, paths: transformers reads what is left."""
    config = json.loads((single / "config.json").read_text())
    local = {"_name_or_path": "/home/me/base", "auto_map": {"AutoModel": "code.Model"}, "cache_dir": "/data/cache"}
    wrong = {"architectures": ["LlamaModel"], "dtype": "float32", "torch_dtype": "float16", **local}
    (single / "config.json").write_text(json.dumps(config | wrong))
    (single / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "_name_or_path": "runs/a", "top_k": 5})
    )
    make_tokenizer().save_pretrained(single)
    settings = json.loads((single / "tokenizer_config.json").read_text())
    theirs = {"auto_map": {"AutoTokenizer": ["code.T", None]}, "name_or_path": "me/x", "tokenizer_file": "/a/b.json"}
    (single / "tokenizer_config.json").write_text(json.dumps(settings | theirs | {"unk_token": "/unk"}))
    (single / "tokenizer_code.py").write_text("raise SystemExit")
    model = huggingface.load(str(single))
    written = export(model, tmp_path / "out", single, "bfloat16", tokenizer_from=single)
    assert written.items() >= {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}.items()
    assert not written.keys() & {"dtype", *local}
    assert written.keys() | {*local, "dtype"} == config.keys() | wrong.keys()
    out = tmp_path / "out"
    assert json.loads((out / "tokenizer_config.json").read_text()) == settings | {"unk_token": "/unk"}
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": 2, "top_k": 5}
    assert not (out / "tokenizer_code.py").exists()
    read = transformers.AutoConfig.from_pretrained(out)
    assert (read.dtype, read.architectures) == (torch.bfloat16, ["LlamaForCausalLM"])
    assert type(transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")).__name__ == "LlamaForCausalLM"
    text = "what is 1 plus 2"
    assert transformers.AutoTokenizer.from_pretrained(out)(text)["input_ids"] == make_tokenizer()(text)["input_ids"]


# Parts of parameters


def test_devices_get_their_parts(tmp_path):
    """On four devices, in a process of its own: each holds a quarter, and together they hold the checkpoint."""
    tiny.checkpoint(tmp_path / "theirs", "gemma2")
    script = textwrap.dedent("""
        import sys
        import jax, numpy as np
        from fusejax.models.huggingface import checkpoint as huggingface
        from fusejax.models.decoder.decoder import named_parameters

        mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

        def shardings(path, shape):
            # Every axis has its turn, heads and head channels included.
            divisible = [axis for axis, size in enumerate(shape) if size % 4 == 0]
            spec = [None] * len(shape)
            if divisible:
                spec[divisible[len(path) % len(divisible)]] = "fsdp"
            return jax.NamedSharding(mesh, jax.P(*spec))

        whole = named_parameters(huggingface.load(sys.argv[1]))
        parts = named_parameters(huggingface.load(sys.argv[1], shardings=shardings))
        cut = 0
        for path, parameter in parts.items():
            array = parameter.get_value()
            np.testing.assert_array_equal(array, whole[path].get_value(), err_msg=path)
            cut += array.addressable_shards[0].data.size * 4 == array.size
        print(cut, len(parts))
    """)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, str(tmp_path / "theirs")]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    cut, count = map(int, answer.stdout.split())
    assert count == 24
    assert cut >= 20


def test_half_precision_parameters_are_rounded_to_nearest(single):
    exact = named_parameters(huggingface.load(str(single)))
    half = named_parameters(huggingface.load(str(single), param_dtype=jnp.bfloat16))
    for path, parameter in half.items():
        expected = np.asarray(exact[path].get_value()).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(parameter.get_value()), expected)
