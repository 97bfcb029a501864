"""Files of a checkpoint that are wrong in every way: each ends a run in one line, before anything is written."""

import contextlib
import json
import os
import re
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusejax.common import cli
from fusejax.common.cli import UserError
from fusejax.config import TrainConfig
from fusejax.data.chat import load_tokenizer
from fusejax.models.huggingface.checkpoint_files import check_files
from fusejax.training.loop import train
from tests.tiny_runs import settings

Spoil = Callable[[Path], None]


def values(**changes: Any) -> Spoil:
    """Values that replace a file's own, or its file."""

    def spoil(path: Path) -> None:
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(found | changes))

    return spoil


def text(content: str) -> Spoil:
    return lambda path: path.write_text(content)


def added(member: str) -> Spoil:
    """Text of one more member of the file's object, for what `json.dumps` does not write."""
    return lambda path: path.write_text(path.read_text().rstrip().removesuffix("}") + f", {member}}}")


def data(content: bytes) -> Spoil:
    return lambda path: path.write_bytes(content)


def instead(make: Callable[[Path], Any]) -> Spoil:
    """Something else than a file, of its name."""

    def spoil(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return spoil


def header(**tensors: Any) -> Spoil:
    """A safetensors file of a header alone."""
    content = json.dumps(tensors).encode()
    return data(struct.pack("<Q", len(content)) + content)


fifo, folder = instead(os.mkfifo), instead(Path.mkdir)
endless = instead(lambda path: path.symlink_to("/dev/zero"))
dangling = instead(lambda path: path.symlink_to("nowhere"))
huge = instead(lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**30))
deep, garbage, latin = text("[" * 100_000), data(bytes(range(256))), data('{"a": "é"}'.encode("latin-1"))
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
THETA = {"rope_type": "default", "rope_theta": 10000.0}
TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

CASES: list[tuple[str, Spoil, str]] = [
    # Files that are none, or no JSON
    *((name, spoil, "not a regular file") for name in ("config.json", "tokenizer.json") for spoil in (fifo, endless)),
    ("generation_config.json", fifo, "not a regular file"),
    ("tokenizer_config.json", endless, "not a regular file"),
    ("special_tokens_map.json", fifo, "not a regular file"),
    ("chat_template.jinja", fifo, "not a regular file"),
    ("chat_template.jinja", endless, "not a regular file"),
    ("tokenizer.model", fifo, "not a regular file"),
    ("tokenizer_extra.bin", endless, "not a regular file"),
    ("config.json", folder, "not a regular file"),
    ("config.json", dangling, "no such file"),
    ("tokenizer_config.json", dangling, "a link to nothing"),
    ("config.json", huge, "has more than 16,777,216 bytes"),
    ("tokenizer.json", huge, "has more than 268,435,456 bytes"),
    ("chat_template.jinja", huge, "has more than 16,777,216 bytes"),
    ("tokenizer.model", huge, "more than 268,435,456 bytes"),
    *(
        (name, text(""), "cannot be read as JSON")
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    ),
    *((name, deep, "nested too far") for name in ("config.json", "tokenizer.json", "generation_config.json")),
    ("config.json", text('{"a": ' + "[" * 80 + "]" * 80 + "}"), "nested too far"),
    *((name, garbage, "not UTF-8") for name in ("config.json", "tokenizer.json", "chat_template.jinja")),
    *((name, latin, "not UTF-8") for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json")),
    ("config.json", text("[]"), r"expected a JSON object, found \[\]"),
    ("config.json", text("null"), "expected a JSON object, found None"),
    ("generation_config.json", text("3"), "expected a JSON object, found 3"),
    ("tokenizer_config.json", text('"x"'), "expected a JSON object, found 'x'"),
    ("tokenizer.json", text("[1]"), r"expected a JSON object, found \[1\]"),
    ("config.json", added('"rms_norm_eps": NaN'), "NaN is not a number"),
    ("config.json", added('"initializer_range": -Infinity'), "-Infinity is not a number"),
    ("config.json", added('"initializer_range": 1e999'), "1e999 is not a number"),
    ("config.json", added(f'"seed": {"1" * 5000}'), "cannot be read as JSON"),
    ("config.json", added('"rope_scaling": {"type": "yarn"}, "rope_scaling": null'), "'rope_scaling' occurs twice"),
    ("config.json", added(r'"name": "\ud800"'), "half a surrogate pair"),
    # Values of config.json
    ("config.json", values(model_type=["llama"]), r"model_type \['llama'\] is not a text"),
    ("config.json", values(hidden_size=2**70), r"hidden_size 1180591620717411303424 is not an integer"),
    ("config.json", values(hidden_size="32"), "hidden_size '32' is not"),
    ("config.json", values(hidden_size=32.0), r"hidden_size 32\.0 is not"),
    ("config.json", values(hidden_size=-32), "hidden_size -32 is not"),
    ("config.json", values(num_hidden_layers=True), "num_hidden_layers True is not"),
    ("config.json", values(num_hidden_layers=10**9), "num_hidden_layers 1000000000 is not"),
    ("config.json", values(vocab_size=[283]), r"vocab_size \[283\] is not"),
    ("config.json", values(num_key_value_heads=0), "num_key_value_heads 0 is not"),
    ("config.json", values(max_position_embeddings="long"), "max_position_embeddings 'long' is not"),
    ("config.json", values(hidden_act=["silu"]), r"hidden_act \['silu'\] is not a text"),
    ("config.json", values(rms_norm_eps="1e-5"), "rms_norm_eps '1e-5' is not a number"),
    ("config.json", values(rms_norm_eps=None), "rms_norm_eps None is not a number"),
    ("config.json", values(rms_norm_eps=0), "rms_norm_eps 0 is not a number above 0"),
    ("config.json", values(rms_norm_eps=-1e-5), "rms_norm_eps -1e-05 is not"),
    ("config.json", values(tie_word_embeddings="false"), "tie_word_embeddings 'false' is not true or false"),
    ("config.json", values(model_type="qwen2", use_sliding_window="no"), "use_sliding_window 'no' is not"),
    ("config.json", values(model_type="mistral", sliding_window=2.5), r"sliding_window 2\.5 is not"),
    ("config.json", values(model_type="qwen2", use_sliding_window=True, max_window_layers=None), "max_window_layers"),
    ("config.json", values(layer_types=[["full_attention"]] * 2), "layer_types .* is not a list, each of it a text"),
    ("config.json", values(layer_types="full_attention"), "layer_types 'full_attention' is not"),
    ("config.json", values(model_type="gemma2", query_pre_attn_scalar=0), "query_pre_attn_scalar 0 is not"),
    ("config.json", values(model_type="gemma2", query_pre_attn_scalar=-4), "query_pre_attn_scalar -4 is not"),
    ("config.json", values(model_type="gemma2", final_logit_softcapping=0), "final_logit_softcapping 0 is not"),
    ("config.json", values(attention_bias="false"), "attention_bias 'false' is not true or false"),
    ("config.json", values(quantization_config="awq"), "quantization_config 'awq' is not an object"),
    ("config.json", values(eos_token_id="</s>"), "eos_token_id '</s>' is not"),
    ("config.json", values(eos_token_id=[2, -1]), r"eos_token_id \[2, -1\] is not"),
    ("config.json", values(eos_token_id=2**70), "eos_token_id 1180591620717411303424 is not"),
    # The rotary embedding
    ("config.json", values(rope_theta=0), "rope_theta 0 is not a number above 0"),
    ("config.json", values(rope_theta=-1.0), r"rope_theta -1\.0 is not"),
    ("config.json", values(rope_theta="1e6"), "rope_theta '1e6' is not"),
    ("config.json", values(rope_theta=True), "rope_theta True is not"),
    ("config.json", values(rope_scaling="yarn"), "rope_scaling 'yarn' is not an object"),
    ("config.json", values(rope_parameters=[THETA]), "rope_parameters .* is not an object"),
    ("config.json", values(rope_parameters={"rope_type": ["default"]}), r"rope_type \['default'\] is not a text"),
    ("config.json", values(rope_parameters={"rope_theta": 0}), "rope_theta 0"),
    ("config.json", values(rope_scaling={"type": "linear", "factor": "2"}), "factor '2' is not a number"),
    ("config.json", values(rope_scaling={"type": "linear", "factor": 0}), "factor 0 is not a number above 0"),
    ("config.json", values(rope_scaling={"type": "linear", "factor": True}), "factor True is not"),
    ("config.json", values(rope_scaling=YARN), "'yarn'.* is not supported"),
    (
        "config.json",
        values(rope_parameters=THETA, rope_scaling=YARN),
        "rope_parameters .* and rope_scaling .* disagree",
    ),
    (
        "config.json",
        values(rope_parameters={"rope_type": "linear", "factor": 2}, rope_scaling={"type": "linear", "factor": 4}),
        "rope_parameters .* and rope_scaling .* disagree",
    ),
    (
        "config.json",
        values(rope_parameters=THETA, rope_theta=5e5),
        "rope_theta 500000.* and rope_parameters.rope_theta",
    ),
    ("config.json", values(rope_scaling={"rope_type": "default", "type": "yarn"}), "rope_type and type disagree"),
    # Other files
    ("generation_config.json", values(eos_token_id="2"), "eos_token_id '2' is not"),
    ("generation_config.json", values(eos_token_id=True), "eos_token_id True is not"),
    ("generation_config.json", values(pad_token_id=-2), "pad_token_id -2 is not"),
    ("generation_config.json", values(temperature="hot"), "temperature 'hot' is not a number"),
    ("generation_config.json", values(top_p=2), "top_p 2 is not"),
    ("tokenizer_config.json", values(eos_token=2), "eos_token 2 is not a text or an object"),
    ("tokenizer_config.json", values(chat_template=7), "chat_template 7 is not"),
    ("tokenizer_config.json", values(model_max_length="long"), "model_max_length 'long' is not"),
    ("tokenizer_config.json", values(added_tokens_decoder=[]), r"added_tokens_decoder \[\] is not"),
    ("special_tokens_map.json", values(eos_token=5), "eos_token 5 is not"),
    ("tokenizer.json", values(model=None), "model None is not an object"),
    ("tokenizer.json", values(added_tokens="<s>"), "added_tokens '<s>' is not"),
    ("tokenizer.json", values(model={"type": "Nonsense"}), "cannot be loaded"),
    ("tokenizer.json", values(added_tokens=[{"id": -1}]), "cannot be loaded"),
    ("added_tokens.json", values(new="283"), "new '283' is not an integer"),
]

WEIGHTS: list[tuple[str, Spoil, str]] = [
    ("model.safetensors.index.json", text("[]"), "expected a JSON object"),
    ("model.safetensors.index.json", fifo, "not a regular file"),
    ("model.safetensors.index.json", text('{"weight_map": []}'), "no weight_map"),
    ("model.safetensors.index.json", text('{"weight_map": {"a": 1}}'), "no weight_map"),
    ("model.safetensors.index.json", text('{"weight_map": {"a": "../a.safetensors"}}'), "is not the name of a file"),
    ("model.safetensors.index.json", deep, "nested too far"),
    ("model-00001-of-00001.safetensors", fifo, "not a regular file"),
    ("model-00001-of-00001.safetensors", endless, "not a regular file"),
    ("model-00001-of-00001.safetensors", header(a=[1]), "not a whole safetensors file"),
    ("model-00001-of-00001.safetensors", header(a=TENSOR | {"shape": ["1"]}), "not a whole safetensors file"),
    ("model-00001-of-00001.safetensors", header(a=TENSOR | {"shape": [-1]}), "not a whole safetensors file"),
    ("model-00001-of-00001.safetensors", header(a=TENSOR | {"dtype": ["F32"]}), "not a whole safetensors file"),
    ("model-00001-of-00001.safetensors", header(a=TENSOR | {"data_offsets": [0, 4.0]}), "not a whole safetensors file"),
    ("model-00001-of-00001.safetensors", data(struct.pack("<Q", 10**5) + b"[" * 10**5), "not a whole safetensors file"),
]


@contextlib.contextmanager
def seconds(limit: int) -> Iterator[None]:
    """Fails, rather than waiting for a pipe for ever."""

    def fail(*_: Any) -> None:
        pytest.fail(f"still busy after {limit} s")

    old = signal.signal(signal.SIGALRM, fail)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def stderr_of_a_run(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a run that must end in status 2."""
    config = settings(world, tmp_path / "run", model=str(tmp_path / "model"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    capfd.readouterr()
    with seconds(60), pytest.raises(SystemExit) as ended:
        # Not the command, which would end this process while another thread compiles.
        cli.run(lambda: train(cli.load_config(TrainConfig, tmp_path / "run.yaml", [])))
    assert ended.value.code == 2
    return capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(("name", "spoil", "message"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_file_is_told_in_one_line(name, spoil, message, world, tmp_path, capfd):
    shutil.copytree(world / "model", tmp_path / "model")
    spoil(tmp_path / "model" / name)
    lines = stderr_of_a_run(world, tmp_path, capfd)
    assert len(lines) == 1, lines
    where = "tokenizer " if message == "cannot be loaded" else rf"{tmp_path}/model/{name}: "
    assert re.search(f"error: {where}.*{message}", lines[0]), lines[0]
    assert len(lines[0]) < 600
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "spoil", "message"), WEIGHTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_wrong_weights_are_told_in_one_line(name, spoil, message, world, tmp_path, capfd):
    shutil.copytree(world / "model", tmp_path / "model")
    spoil(tmp_path / "model" / name)
    *notes, last = stderr_of_a_run(world, tmp_path, capfd)
    assert re.search(f"error: {tmp_path}/model/.*{message}", last), last
    assert not any("error" in line or "Traceback" in line for line in notes)


def test_a_sentencepiece_model_alone_names_its_package(world, tmp_path, capfd, monkeypatch):
    shutil.copytree(world / "model", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    [line] = stderr_of_a_run(world, tmp_path, capfd)
    assert line.endswith("model/tokenizer.model: without tokenizer.json it needs a package: pip install sentencepiece")


def test_a_sentencepiece_model_alone(tmp_path):
    """It gives the ids that sentencepiece gives, if its class is named; without one, transformers would give others."""
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = [" ".join(f"w{i * i % 37}" for i in range(line, line + 9)) for line in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=280,
        minloglevel=2,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    with pytest.raises(UserError, match=r"tokenizer.model: .*its tokenizer_class must be named"):
        check_files(tmp_path)
    chosen = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "chat_template": "{{ messages }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(chosen))
    check_files(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("w1 w4  w9", "\u00e9 w16\nw25"):
        assert tokenizer(text)["input_ids"] == theirs.encode(text, add_bos=True)
