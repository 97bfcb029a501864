"""The stage on tiny models: its numbers, its order, what it leaves out, and what it does when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import transformers

from data_pipeline.__main__ import main
from data_pipeline.config import PipelineConfig
from data_pipeline.distributions import stage
from data_pipeline.distributions.backend import Asked
from fusejax.common.cli import UserError
from fusejax.data import records, token_bytes
from fusejax.data.records import open_shards
from tests.data_pipeline.distributions.sources import (
    config_of,
    config_values,
    example,
    examples,
    make_source,
    write_sft,
)
from tests.data_pipeline.helpers import write_config

ROOT = Path(__file__).parents[3]
FAMILIES = {
    "llama": ("llama3", {}),
    # Soft caps on scores and logits, low enough to bite, and windows shorter than the conversations.
    "gemma2": ("gemma", {"sliding_window": 8, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 1.0}),
    "mistral": ("mistral", {"sliding_window": 8}),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("sources") / "llama")


def written(output: Path, source: str = "s", split: str = "train") -> list[Any]:
    return list(open_shards(output / "distributions" / source / split))


def manifest(output: Path, source: str = "s") -> dict[str, Any]:
    return json.loads((output / "distributions" / source / "manifest.json").read_text())


def dense(directory: Path, record: Any, messages: list[dict[str, str]]) -> np.ndarray:
    """Log-probabilities [n + 1, V] in float64, by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").double().eval()
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    special = {tokenizer.convert_tokens_to_ids(name) for name in ("<|eot_id|>", "<end_of_turn>", "</s>")}
    end = max(place for place, token in enumerate(ids) if token in special)
    assert ids[end - len(record.tokens) : end] == record.tokens.tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return logits.log_softmax(-1)[end - len(record.tokens) - 1 : end].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_those_of_a_dense_computation(family: str, tmp_path: Path):
    tokenizer, overrides = FAMILIES[family]
    directory = make_source(tmp_path / "m", tokenizer, family, **overrides)
    given = examples(3)
    write_sft(tmp_path, given)
    stage.run(config_of(tmp_path, s=directory))
    for record, asked in zip(written(tmp_path), given, strict=True):
        expected = dense(directory, record, asked.messages)
        count = len(record.tokens)
        assert record.top_ids.shape == (count + 1, 5) and expected.std() > 0.5
        # Half a unit of float16's last place below 16, and what float32 loses.
        close = {"rtol": 0, "atol": 2**-8 + 1e-4}
        np.testing.assert_allclose(record.logprobs, expected[np.arange(count), record.tokens], **close)
        np.testing.assert_allclose(record.top_logprobs, -np.sort(-expected, axis=1)[:, :5], **close)
        at_ids = np.take_along_axis(expected, record.top_ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(record.top_logprobs, at_ids, **close)


def test_what_a_record_and_the_manifest_say(llama: Path, tmp_path: Path):
    write_sft(tmp_path, [example("e", "né!")])
    stage.run(config_of(tmp_path, s=llama))
    (record,) = written(tmp_path)
    assert (record.id, record.dataset, record.domain, record.source_model) == ("e", "set", "instruction", "s")
    assert record.ends.tolist() == [0, 1, 2, 3, 4]
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    table = token_bytes.token_bytes(tokenizer)
    assert [table[token] for token in record.tokens] == [b"n", b"\xc3", b"\xa9", b"!"]
    facts = manifest(tmp_path)["distributions"]["train"]
    assert facts["end_of_turn"] == [tokenizer.eos_token_id] and facts["top_k"] == 5 and facts["dtype"] == "float16"
    assert facts["data_fingerprint"] == open_shards(tmp_path / "sft/train").fingerprint
    copied = tmp_path / "distributions/s/tokenizer.json"
    assert facts["tokenizer_sha256"] == records._sha256(copied) == records._sha256(llama / "tokenizer.json")


def test_a_token_takes_six_bytes_for_each_of_k_and_ten(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_sft(tmp_path, [example("short", "a"), example("long", "a" * 150)])
    for top_k in (10, 20, 50):
        values = config_values(tmp_path, s=llama)
        values["distributions"]["top_k"] = top_k
        stage.run(PipelineConfig.model_validate(values))
        short, long = written(tmp_path)
        more = len(long.tokens) - len(short.tokens)
        size = len(records.encode(long)) - len(records.encode(short))
        # And a few bytes that say how long the arrays are.
        assert more > 10 and 0 <= size - more * (6 * top_k + 10) < 32
    total = sum(len(records.encode(record)) for record in (short, long))
    assert (
        f"2 answers of {len(short.tokens) + len(long.tokens)} tokens, {total:,} bytes; 0 rejected"
        in capsys.readouterr().out
    )


def test_more_than_the_vocabulary(llama: Path, tmp_path: Path):
    write_sft(tmp_path, examples(1))
    values = config_values(tmp_path, s=llama)
    values["distributions"]["top_k"] = 10_000
    stage.run(PipelineConfig.model_validate(values))
    (record,) = written(tmp_path)
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(llama))
    assert record.top_ids.shape[1] == vocabulary == manifest(tmp_path)["distributions"]["train"]["top_k"]
    np.testing.assert_array_equal(np.sort(record.top_ids, axis=1)[0], np.arange(vocabulary))
    np.testing.assert_allclose(np.exp(record.top_logprobs.astype(np.float64)).sum(1), 1, atol=2e-3)


def test_order_and_what_is_left_out(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """A chunk with nothing in it, a record that is damaged, and numbers of a model that are none."""
    given = examples(9)
    for index, answer in ((2, "x" * 300), (3, " trimmed "), (4, " ")):
        given[index] = example(f"e{index}", answer)
    broken = given[6]
    with monkeypatch.context() as patched:
        whole = records.encode
        patched.setattr(records, "encode", lambda record: whole(record) if record is not broken else b"\xff")
        write_sft(tmp_path, given)
    monkeypatch.setattr(stage, "CHUNK", 2)
    opened = stage.open_backend

    def open_spoiled(*arguments: Any) -> Any:
        backend = opened(*arguments)
        whole = backend.rows

        def rows(asked: Sequence[Asked]) -> Any:
            for one in whole(asked):
                yield one._replace(top_logprobs=one.top_logprobs * np.nan) if spoil.pop(0) else one

        backend.rows = rows
        return backend

    spoil = [False, True, False, False, False, False]
    monkeypatch.setattr(stage, "open_backend", open_spoiled)
    stage.run(config_of(tmp_path, s=llama))
    assert [record.id for record in written(tmp_path)] == ["e0", "e3", "e5", "e7", "e8"]
    lines = [json.loads(line) for line in (tmp_path / "rejected/distributions-s-train.jsonl").read_text().splitlines()]
    assert [(line["where"], line["reason"]) for line in lines] == [
        ("e1", "non_finite"), ("e2", "too_long"), ("e4", "empty_response"), ("#6", "bad_record"),
    ]  # fmt: skip
    facts = manifest(tmp_path)
    assert facts["distributions"]["train"]["rejected"] == dict.fromkeys(sorted(line["reason"] for line in lines), 1)
    assert facts["splits"]["train"]["examples"] == 5 and [
        s["examples"] for s in facts["splits"]["train"]["shards"]
    ] == [1, 2, 2]
    assert "5 answers" in (told := capsys.readouterr().out) and "4 rejected (non_finite 1, too_long 1" in told


def test_done_work_is_not_done_again(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Other shards are written of the same parts' records; other answers are asked for anew."""
    write_sft(tmp_path, examples(3))
    asked: list[int] = []
    opened = stage.open_backend
    monkeypatch.setattr(stage, "open_backend", lambda *a: asked.append(1) or opened(*a))
    values = config_values(tmp_path, s=llama)
    values["sources"][0]["backend"], values["distributions"]["backend"] = "vllm", "transformers"
    for _ in range(2):
        stage.run(PipelineConfig.model_validate(values))
    assert len(asked) == 1
    values["sources"][0]["engine"] = {"gpu_memory_utilization": 0.5}  # it changes no number
    stage.run(PipelineConfig.model_validate(values))
    assert len(asked) == 1
    write_sft(tmp_path, examples(4))
    stage.run(PipelineConfig.model_validate(values))
    assert len(asked) == 2 and len(written(tmp_path)) == 4
    values["distributions"]["top_k"] = 2
    stage.run(PipelineConfig.model_validate(values))
    assert len(asked) == 3 and written(tmp_path)[0].top_ids.shape[1] == 2


def test_a_second_split_leaves_the_first(llama: Path, tmp_path: Path):
    write_sft(tmp_path, [*examples(2), example("bad", "x" * 300)])
    write_sft(tmp_path, examples(1), "eval")
    values = config_values(tmp_path, s=llama)
    stage.run(PipelineConfig.model_validate(values))
    values["distributions"]["data"] = f"{tmp_path}/sft/eval"
    stage.run(PipelineConfig.model_validate(values))
    assert len(written(tmp_path)) == 2 and len(written(tmp_path, split="eval")) == 1
    facts = manifest(tmp_path)["distributions"]
    assert facts["train"]["data_fingerprint"] != facts["eval"]["data_fingerprint"]
    rejected = {path.name: path.read_text().count("\n") for path in (tmp_path / "rejected").iterdir()}
    assert rejected == {"distributions-s-train.jsonl": 1, "distributions-s-eval.jsonl": 0}


def files(output: Path) -> dict[str, bytes]:
    folders = (output / "distributions", output / "rejected")
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(output)): path.read_bytes().replace(bytes(output), b"OUT") for path in paths}


def test_a_chunk_is_all_that_a_killed_run_loses(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage, "CHUNK", 2)
    for name in ("whole", "killed"):
        write_sft(tmp_path / name, [*examples(4), example("long", "x" * 300), *examples(8)[5:]])
    stage.run(config_of(tmp_path / "whole", s=llama))
    opened, asked = stage.open_backend, []

    def open_failing(*arguments: Any) -> Any:
        backend = opened(*arguments)
        whole = backend.rows

        def rows(conversations: Sequence[Asked]) -> Any:
            asked.append(len(conversations))
            if len(asked) == 3:
                raise KeyboardInterrupt
            return whole(conversations)

        backend.rows = rows
        return backend

    monkeypatch.setattr(stage, "open_backend", open_failing)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config_of(tmp_path / "killed", s=llama))
    assert not (tmp_path / "killed/distributions/s").exists()
    stage.run(config_of(tmp_path / "killed", s=llama))
    assert asked == [2, 2, 1, 1, 2]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_any_moment(llama: Path, tmp_path: Path):
    for name in ("whole", "killed"):
        write_sft(tmp_path / name, examples(40))
    program = (
        "import sys; from data_pipeline.distributions import stage; stage.CHUNK = 2; "
        "from data_pipeline.__main__ import main; main(['distributions', '--config', sys.argv[1]])"
    )

    def start(name: str) -> subprocess.Popen:
        config = write_config(tmp_path / f"{name}.yaml", config_values(tmp_path / name, s=llama))
        return subprocess.Popen([sys.executable, "-c", program, str(config)], cwd=ROOT, env=os.environ)

    assert start("whole").wait() == 0
    parts = tmp_path / "killed/distributions/.parts"
    for wanted in (1, 5, 11, 20):
        process = start("killed")
        while process.poll() is None and len(list(parts.rglob("*.parquet"))) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed").wait() == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_mistakes_are_one_line(llama: Path, tmp_path: Path):
    def fails(change: dict[str, Any], message: str, **source: Any) -> None:
        values = config_values(tmp_path, s=llama)
        values["distributions"] |= change
        values["sources"][0] |= source
        with pytest.raises(UserError, match=message) as raised:
            stage.run(PipelineConfig.model_validate(values))
        assert "\n" not in str(raised.value)

    fails({}, "sft/train")
    write_sft(tmp_path, examples(2))
    fails({"sources": ["t"]}, "distributions.sources: 't' is none of the sources s")
    fails({}, "distributions.backend: the source s is behind a server", backend="openai", server={"url": "http://h/v1"})
    chat = {"url": "http://h/v1", "mode": "chat"}
    fails({"backend": "vllm"}, "the source s is behind a chat server", backend="openai", server=chat)
    fails({"backend": "vllm"}, "distributions.backend: vllm is not installed here")
    fails({"template": "target", "target": str(tmp_path)}, "has no config.json")
    fails({"engine": {"swap_space": 1}}, "distributions.engine: the backend transformers takes no engine arguments")
    with_target = {"template": "target", "target": str(llama)}
    own = "distributions.template: the source s has chat_template_kwargs, which are its own template's"
    fails(with_target, own, chat_template_kwargs={"enable_thinking": False})
    fails({"data": str(tmp_path / "dpo/train")}, "dpo/train")
    fails({}, "none of 2 answers can be had in its tokens, for example 'e0': too_long", max_model_len=20)
    records.write_shards(tmp_path / "dpo", "train", [pair()], kind="dpo", num_shards=1, manifest={})
    fails({"data": str(tmp_path / "dpo/train")}, "is of kind dpo, not sft")
    assert not (tmp_path / "distributions/s").exists()


def pair() -> records.PreferencePair:
    turns: list[Any] = [[{"role": role, "content": text}] for role, text in (("user", "q"), ("assistant", "a"))]
    return records.PreferencePair("p", "set", "code", "s", turns[0], turns[1], turns[1])


def test_a_model_without_all_its_weights(tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    directory = make_source(tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    write_sft(tmp_path, examples(1))
    with pytest.raises(UserError, match=r"sources: s: .*: no weight 'model.norm.weight'"):
        stage.run(config_of(tmp_path, s=directory))


@pytest.mark.parametrize(
    "section",
    [
        {"template": "target"},
        {"target": "t"},
        {"top_k": 0},
        {"engine": {"max_logprobs": 3}},
        {"engine": {"model": "m"}},
    ],
)
def test_sections_that_are_refused(section: dict[str, Any], tmp_path: Path):
    with pytest.raises(pydantic.ValidationError):
        PipelineConfig.model_validate(config_values(tmp_path) | {"distributions": section})


def test_a_run_has_the_stage_where_the_configuration_has_its_section(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Checked before the other stages begin."""
    done: list[str] = []
    for folder in ("prompts", "sampling", "scoring", "selection", "shards", "report", "distributions"):
        monkeypatch.setattr(f"data_pipeline.{folder}.stage.run", lambda config, name=folder: done.append(name))
    values = config_values(tmp_path, s=llama)
    values["scorers"] = {"instruction": {"reward": "tests.data_pipeline.helpers:reward"}}
    main(["run", "--config", str(write_config(tmp_path / "c.yaml", values))])
    assert done[-2:] == ["report", "distributions"] and len(done) == 7
    values["distributions"]["sources"] = ["t"]
    with pytest.raises(UserError, match=r"distributions\.sources"):
        main(["run", "--config", str(write_config(tmp_path / "c.yaml", values))])
    del values["distributions"]
    main(["run", "--config", str(write_config(tmp_path / "c.yaml", values))])
    assert done[7:] == done[:6]
