"""The stage on tiny models: its numbers, what it leaves out, and what it does when it is stopped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers

from data_pipeline.__main__ import main
from data_pipeline.likelihoods import stage
from fusejax.common.cli import UserError
from fusejax.data.records import PreferencePair, open_shards, write_shards
from tests.data_pipeline.distributions.sources import config_of, config_values, make_source
from tests.data_pipeline.helpers import write_config


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("sources") / "llama")


def pair(name: str, chosen: str = "42 é!", rejected: str = "no", more: int = 0) -> PreferencePair:
    answers = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    answers[1] += [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}] * more
    return PreferencePair(name, "set", "d", "s", [{"role": "user", "content": f"And {name}?"}], *answers)


def write_pairs(output: Path, pairs: list[PreferencePair], split: str = "train") -> None:
    write_shards(output / "dpo", split, pairs, kind="dpo", num_shards=2, manifest={})


def table(output: Path, split: str = "train") -> pl.DataFrame:
    return pl.read_parquet(output / f"likelihoods/s/{split}.parquet")


def test_the_means_are_those_of_a_dense_computation(llama: Path, tmp_path: Path):
    pairs = [pair(f"p{n}", f"it is {n} " * (1 + n)) for n in range(3)]
    write_pairs(tmp_path, pairs)
    write_pairs(tmp_path, pairs[:1], "eval")
    stage.run(config_of(tmp_path, s=llama))
    found = table(tmp_path)
    assert found["id"].to_list() == ["p0", "p1", "p2"] and table(tmp_path, "eval").rows() == found[:1].rows()
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama).double().eval()
    for row, asked in zip(found.iter_rows(named=True), pairs, strict=True):
        for side in ("chosen", "rejected"):
            text = getattr(asked, side)[0]["content"].strip()  # as this template has it
            prompt = tokenizer.apply_chat_template(asked.prompt, tokenize=False, add_generation_prompt=True)
            before, whole = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (prompt, prompt + text))
            ids = [*whole, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            each = logprobs[np.arange(len(before), len(ids)) - 1, ids[len(before) :]]
            assert row[f"{side}_tokens"] == len(each) > 1
            np.testing.assert_allclose(row[side], each.mean(), rtol=1e-5)
    facts = json.loads((tmp_path / "likelihoods/s/manifest.json").read_text())["likelihoods"]
    assert {split: each["data_fingerprint"] for split, each in facts.items()} == {
        split: open_shards(tmp_path / "dpo" / split).fingerprint for split in ("train", "eval")
    }


def test_what_has_no_value_is_null_and_told(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_pairs(tmp_path, [pair("a"), pair("b", rejected="x" * 300), pair("c", more=1)])
    stage.run(config_of(tmp_path, s=llama))
    found = table(tmp_path)
    assert found["rejected"].is_null().to_list() == [False, True, True] and found["chosen"].null_count() == 0
    lines = [json.loads(line) for line in (tmp_path / "rejected/likelihoods-s-train.jsonl").read_text().splitlines()]
    told = [(line["where"], line["answer"], line["reason"]) for line in lines]
    assert told == [("b", "rejected", "too_long"), ("c", "rejected", "several_turns")]
    assert "2 answers left out (too_long 1, several_turns 1)" in capsys.readouterr().out
    write_pairs(tmp_path, [pair("b", *["x" * 300] * 2)])
    with pytest.raises(UserError, match=r"^sources: s: none of 2 answers .* 'b': too_long"):
        stage.run(config_of(tmp_path, s=llama))


def test_a_stop_loses_a_chunk_and_done_work_is_not_done_again(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_pairs(tmp_path, [pair(f"p{n}") for n in range(5)])
    stage.run(config_of(tmp_path, s=llama))
    whole = (tmp_path / "likelihoods/s/train.parquet").read_bytes()
    other = tmp_path / "other"
    write_pairs(other, [pair(f"p{n}") for n in range(5)])
    monkeypatch.setattr(stage, "CHUNK", 2)
    opened, chunks = stage.open_backend, []

    def stopping(*arguments: Any, **names: Any) -> Any:
        backend = opened(*arguments, **names)
        rows = backend.rows

        def counted(asked: Any) -> Any:
            chunks.append(len(asked))
            if len(chunks) == 3:
                raise KeyboardInterrupt
            return rows(asked)

        backend.rows = counted
        return backend

    monkeypatch.setattr(stage, "open_backend", stopping)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config_of(other, s=llama))
    for _ in range(2):
        stage.run(config_of(other, s=llama))
    assert chunks == [4, 4, 2, 2]
    assert (other / "likelihoods/s/train.parquet").read_bytes() == whole
    assert not list((other / "likelihoods/.parts").iterdir())


def test_other_data_and_the_command(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_shards(tmp_path / "elsewhere", "train", [pair("a")], kind="dpo", num_shards=1, manifest={})
    values = config_values(tmp_path, s=llama)
    values["distributions"]["pairs"] = f"{tmp_path}/elsewhere"
    main(["likelihoods", "--config", str(write_config(tmp_path / "c.yaml", values))])
    assert table(tmp_path)["id"].to_list() == ["a"] and "likelihoods s train: 1 pairs" in capsys.readouterr().out
    values["distributions"]["pairs"] = f"{tmp_path}/nowhere"
    with pytest.raises(UserError, match="nowhere"):
        main(["likelihoods", "--config", str(write_config(tmp_path / "c.yaml", values))])
