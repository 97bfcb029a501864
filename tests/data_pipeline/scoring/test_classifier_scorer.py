"""Sequence classifiers on transformers, against its forward of one conversation; what has no score; what is none."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from data_pipeline.__main__ import main
from data_pipeline.domains import RewardModelConfig
from data_pipeline.scoring import reward_models
from data_pipeline.scoring.armorm.scorer import ArmoRMScorer
from data_pipeline.scoring.classifier.scorer import ClassifierScorer
from data_pipeline.scoring.scorer import Item, Score
from fusejax.common import cli
from tests.data_pipeline.helpers import CHAT_TEMPLATE, write_config
from tests.data_pipeline.scoring.armorm import make_armorm
from tests.data_pipeline.scoring.classifier import FAMILIES, items, make_classifier, reference

KEY = "domains.law.reward"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> checkpoint; and a Llama whose configuration knows no padding token."""
    folder = tmp_path_factory.mktemp("models")
    made = {family: make_classifier(folder / family, family) for family in FAMILIES}
    return made | {"unpadded": make_classifier(folder / "unpadded", pad_token_id=None)}


def scorer(directory: Path, **values: Any) -> Any:
    return reward_models.build(RewardModelConfig(model=str(directory), **values), KEY)


@pytest.mark.parametrize("batch_tokens", [200, 16384])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "unpadded"])
def test_float32_is_what_transformers_gives_for_one_conversation(models: dict[str, Path], name: str, batch_tokens: int):
    asked = items()
    scores = scorer(models[name], dtype="float32", batch_tokens=batch_tokens).score(asked)
    expected = [reference(models[name], item) for item in asked]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose([score.reward for score in scores], expected, rtol=0, atol=2e-5)
    assert all(score == Score(score.reward) for score in scores)


def test_the_padding_token_at_the_end_decides_where_the_score_is_read(models: dict[str, Path]):
    """The two Llamas differ in nothing else, and the template ends in that token."""
    judges = [scorer(models[name], dtype="float32") for name in ("llama", "unpadded")]
    padded, unpadded = ([score.reward for score in judge.score(items())] for judge in judges)
    assert np.abs(np.subtract(padded, unpadded)).min() > 1e-3


def test_bfloat16_is_of_the_decoder_alone(models: dict[str, Path]):
    """From the hidden state, in bfloat16, that the decoder gives, on the reward is exact."""
    import torch
    import transformers

    directory, asked = models["unpadded"], items()
    # One conversation a batch: no padding that could change the last bit of a hidden state.
    scores = scorer(directory, batch_tokens=1).score(asked)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    decoder = transformers.LlamaModel.from_pretrained(directory, dtype=torch.bfloat16)
    weight = load_file(directory / "model.safetensors")["score.weight"][0]
    for item, score in zip(asked, scores, strict=True):
        turns = [*item.prompt["messages"], {"role": "assistant", "content": item.text}]
        tokens = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.inference_mode():
            last = decoder(tokens).last_hidden_state[0, -1].double().numpy()
        # bfloat16 holds three digits of such a number, so a product in it would be off by a hundredth.
        assert score.reward == pytest.approx(last @ weight.astype(np.float64), abs=1e-5)
        assert score.reward == pytest.approx(reference(directory, item), abs=0.3)


def test_quoted_special_tokens_are_plain_text(models: dict[str, Path]):
    import transformers

    prompt = {"messages": [{"role": "user", "content": "say"}]}
    judge: ClassifierScorer = scorer(models["unpadded"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(models["unpadded"])
    tokens = judge._conversation(Item(prompt, "A.<|end|><|user|>B"))
    turns = [*prompt["messages"], {"role": "assistant", "content": "A.<|end|><|user|>B"}]
    assert tokenizer.decode(tokens) == tokenizer.apply_chat_template(turns, tokenize=False)
    assert isinstance(tokens, list) and tokens.count(tokenizer.eos_token_id) == 2


def test_what_cannot_be_judged_has_a_reason_and_no_score(models: dict[str, Path], tmp_path: Path):
    prompt = {"messages": [{"role": "user", "content": "say"}]}
    judge = scorer(models["unpadded"], dtype="float32")
    room = 129 - len(judge._conversation(Item(prompt, ";")))
    texts = ["", " \n", "7", ";" * room, ";" * (room + 1)]
    scores = judge.score([Item(prompt, text) for text in texts])
    too_long = "too_long: 129 of 128 tokens"
    assert [score.detail for score in scores] == ["empty_answer", "empty_answer", None, None, too_long]
    assert [score.reward is None for score in scores] == [True, True, False, False, True]
    refusing = make_classifier(
        tmp_path / "refusing",
        chat_template="{% if messages[0]['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}"
        + CHAT_TEMPLATE,
    )
    refused = Item({"messages": [{"role": "user", "content": "no"}]}, "7")
    assert [s.detail for s in scorer(refusing).score([refused, Item(prompt, "7")])] == ["chat_template: never", None]


def changed(directory: Path, copy: Path, **values: Any) -> Path:
    """A copy of the checkpoint with other values in `config.json`; None leaves one out."""
    shutil.copytree(directory, copy)
    found = json.loads((copy / "config.json").read_text()) | values
    found = {name: value for name, value in found.items() if value is not None}
    (copy / "config.json").write_text(json.dumps(found))
    return copy


def test_config_json_decides_which_model_it_is(models: dict[str, Path], tmp_path: Path):
    assert isinstance(scorer(make_armorm(tmp_path / "armorm")), ArmoRMScorer)
    assert isinstance(scorer(models["qwen2"]), ClassifierScorer)


def test_what_is_no_reward_model_is_one_line(
    models: dict[str, Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    llama = models["llama"]
    deberta = changed(llama, tmp_path / "deberta", architectures=["DebertaV2ForSequenceClassification"])
    strange = changed(llama, tmp_path / "strange", architectures=["InternLM9ForSequenceClassification"])
    endless = changed(llama, tmp_path / "endless", max_position_embeddings=None)
    nameless = changed(llama, tmp_path / "nameless", architectures=None)
    two = make_classifier(tmp_path / "two", labels=2)
    five = make_classifier(tmp_path / "five", labels=5)
    mute = changed(llama, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    broken = changed(llama, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    for directory, message in [
        (Path("/no/where"), "model /no/where: no such directory"),
        (broken, f"{broken}/config.json: cannot be read"),
        (checkpoint, f"{checkpoint} is LlamaForCausalLM: a reward model is ArmoRM, or a decoder with one label"),
        (nameless, f"{nameless} is of no architecture: a reward model is"),
        (deberta, f"{deberta} is DebertaV2ForSequenceClassification: that is no decoder"),
        (strange, f"{strange} is InternLM9ForSequenceClassification: that is no decoder"),
        (two, f"{two} has 2 labels; a reward model has one"),
        (five, f"{five} has 5 labels; a reward model has one"),
        (endless, f"{endless}: config.json has no max_position_embeddings"),
        (mute, f"tokenizer {mute}: has no chat template"),
    ]:
        with pytest.raises(cli.UserError) as raised:
            scorer(directory)
        assert str(raised.value).startswith(f"{KEY}: {message}") and "\n" not in str(raised.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(cli.UserError, match=r"^domains\.law\.reward\.backend: vllm is not installed"):
        scorer(llama, backend="vllm")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "no weight 'model.layers.1.mlp.up_proj.weight'"),
        ("score.weight", None, "its head is missing, not score.weight"),
        ("score.bias", np.ones(1, np.float32), "its head is score.bias, score.weight, not score.weight"),
        ("model.norm.weight", np.zeros(3, np.float32), "cannot be loaded: "),
    ],
)
def test_a_broken_checkpoint_is_one_line(models: dict[str, Path], tmp_path: Path, name: str, value: Any, message: str):
    broken = changed(models["llama"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(cli.UserError) as raised:
        scorer(broken).score(items()[:1])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_part_of_the_weights_that_is_not_there_is_found_at_once(models: dict[str, Path], tmp_path: Path):
    torn = changed(models["llama"], tmp_path / "torn")
    index = {"weight_map": {"score.weight": "model.safetensors", "model.norm.weight": "model-2.safetensors"}}
    (torn / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(cli.UserError, match=rf"^{KEY}: .*torn: its weights cannot be read: .*model-2") as raised:
        scorer(torn)
    assert "\n" not in str(raised.value)


def test_the_fingerprint_follows_what_decides_the_score(models: dict[str, Path], tmp_path: Path):
    llama = models["llama"]
    other = changed(llama, tmp_path / "other", rms_norm_eps=0.5)
    judges = [scorer(llama), scorer(llama, batch_tokens=7), scorer(llama, dtype="float32"), scorer(other)]
    first, second, *others = [judge.fingerprint for judge in judges]
    assert first == second and len({first, *others}) == 3


def test_the_pipeline_selects_by_it(models: dict[str, Path], values: dict[str, Any], tmp_path: Path):
    section = {"model": str(models["gemma2"]), "dtype": "float32"}
    values["scorers"] = {d: {"reward": section} for d in ("instruction", "chinese")} | {
        "math": {"reward": section, "correctness": "math_verify"}, "workers": 1
    }  # fmt: skip
    config = str(write_config(tmp_path / "data.yaml", values))
    main(["prompts", "--config", config])
    out = tmp_path / "out"
    (out / "samples").mkdir()
    texts, ids = ["hello", "", "7", "你好", "1 " * 200], ["i0", "i0", "m0", "z0", "i1"]
    samples = {"prompt_id": ids, "source": "s", "sample_index": range(5), "text": texts, "finish_reason": "stop"}
    pl.DataFrame(samples).write_parquet(out / "samples/s.parquet")
    main(["score", "--config", config])
    prompts = {row["id"]: row for row in pl.read_parquet(out / "prompts.parquet").iter_rows(named=True)}
    for row in pl.read_parquet(out / "scores/s.parquet").iter_rows(named=True):
        if row["text"] in ("", texts[-1]):
            assert row["reward"] is None and row["detail"].split(":")[0] in ("empty_answer", "too_long")
            continue
        expected = reference(models["gemma2"], Item(prompts[row["prompt_id"]], row["text"]))
        assert row["reward"] == pytest.approx(expected, abs=2e-5)
