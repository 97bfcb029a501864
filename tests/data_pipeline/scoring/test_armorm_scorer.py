"""ArmoRM on transformers: against the formula in float64, what the gate sees, what has no score, broken checkpoints."""

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
from data_pipeline.config import PipelineConfig
from data_pipeline.domains import RewardModelConfig
from data_pipeline.scoring.armorm import conversation
from data_pipeline.scoring.armorm.scorer import ArmoRMScorer
from data_pipeline.scoring.armorm.transformers_backend import batches
from data_pipeline.scoring.scorer import Item, Score
from data_pipeline.scoring.scorers import build
from fusejax.common import chat_template, cli
from tests.data_pipeline.helpers import write_config
from tests.data_pipeline.scoring.armorm import (
    CHAT_TEMPLATE,
    POSITIONS,
    QUOTE,
    heads_reference,
    items,
    make_armorm,
    read,
    reference,
    tokenizer_of,
)


@pytest.fixture(scope="module")
def armorm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_armorm(tmp_path_factory.mktemp("models") / "armorm")


def scorer(directory: Path, **values: Any) -> ArmoRMScorer:
    return ArmoRMScorer(RewardModelConfig(model=str(directory), **values), "scorers.math.reward")


def check(directory: Path, scored: list[Item], scores: list[Score], tolerance: float) -> None:
    for item, score in zip(scored, scores, strict=True):
        tokens, gate = read(directory, item)
        if len(tokens) > POSITIONS:
            assert score == Score(detail=f"too_long: {len(tokens)} of {POSITIONS} tokens")
            continue
        expected = reference(directory, tokens, gate)
        assert score.objectives is not None and len(score.objectives) == 19
        np.testing.assert_allclose([score.reward, *score.objectives], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch_tokens", [1, 300, 16384])
def test_float32_is_the_formula_in_batches_of_mixed_lengths(armorm: Path, batch_tokens: int):
    scored = items()
    scores = scorer(armorm, dtype="float32", batch_tokens=batch_tokens).score(scored)
    assert [score.detail is None for score in scores].count(False) == 1
    check(armorm, scored, scores, 1e-5)
    # The tolerance tells gates apart: at any other place the score would be another.
    tokens, gate = read(armorm, scored[0])
    others = [reference(armorm, tokens, place)[0] for place in range(len(tokens)) if place != gate]
    assert min(abs(np.array(others) - reference(armorm, tokens, gate)[0])) > 1e-4


def test_bfloat16_is_of_the_backbone_alone(armorm: Path):
    """From the hidden states, in bfloat16, that the backbone gives, on the score is exact."""
    import torch
    import transformers

    scored = items()
    # One conversation a batch: no padding that could change the last bit of a hidden state.
    scores = scorer(armorm, batch_tokens=1).score(scored)
    backbone = transformers.LlamaModel.from_pretrained(armorm, dtype=torch.bfloat16)
    for item, score in zip(scored, scores, strict=True):
        tokens, gate = read(armorm, item)
        if score.objectives is None:
            assert len(tokens) > POSITIONS
            continue
        with torch.inference_mode():
            hidden = backbone(torch.tensor([tokens])).last_hidden_state[0].double().numpy()
        expected = heads_reference(armorm, hidden[-1], hidden[gate])
        np.testing.assert_allclose([score.reward, *score.objectives], expected, rtol=0, atol=5e-7)
    # The backbone's own rounding; the largest that was measured is 0.005 of a score and 0.030 of an objective.
    for found in (scores, scorer(armorm).score(scored)):
        check(armorm, scored, found, 0.1)
        errors = [
            score.reward - reference(armorm, *read(armorm, item))[0]
            for item, score in zip(scored, found, strict=True)
            if score.reward is not None
        ]
        assert max(map(abs, errors)) < 0.02


def test_a_text_is_read_as_the_template_reads_it_but_for_quoted_tokens(armorm: Path):
    tokenizer = tokenizer_of(armorm)

    def encode(turns: list[dict[str, str]]) -> list[int]:
        return chat_template.encode(tokenizer, turns).tokens

    pattern = conversation.gating_pattern(tokenizer)
    assert tokenizer.decode(pattern) == QUOTE and pattern[0] == tokenizer.eos_token_id
    for text in ("hello", " x\n\n", "你好 \ue000 1\U00100001", "<|eot|> <|start_header_id |>"):
        turns = [{"role": "user", "content": f"a {text}"}, {"role": "assistant", "content": text}]
        assert encode(turns) == tokenizer.apply_chat_template(turns, return_dict=False)
    turns[1]["content"] = f"A.{QUOTE}B. \ue0000\ue000"
    tokens = encode(turns)
    assert tokenizer.decode(tokens) == tokenizer.apply_chat_template(turns, tokenize=False)
    assert [tokens.count(index) for index in pattern[:2]] == [2, 2]
    naive = tokenizer.apply_chat_template(turns, return_dict=False)
    assert conversation.last_occurrence(naive, pattern) > conversation.last_occurrence(tokens, pattern)


def test_the_published_tokens_give_the_published_pattern(tmp_path: Path):
    import tokenizers
    import transformers

    words = {"assistant": 78191, "user": 882, "\n\n": 271, "[UNK]": 0}
    special = {
        "<|begin_of_text|>": 128000, "<|start_header_id|>": 128006, "<|end_header_id|>": 128007, "<|eot_id|>": 128009
    }  # fmt: skip
    model = tokenizers.models.WordLevel(words | special, unk_token="[UNK]")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        additional_special_tokens=list(special),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    assert conversation.gating_pattern(tokenizer) == [128009, 128006, 78191, 128007, 271]


def test_last_occurrence():
    assert conversation.last_occurrence([1, 2, 3, 1, 2, 3, 1], [1, 2]) == 3
    assert conversation.last_occurrence([1, 1, 1], [1, 1]) == 1
    assert conversation.last_occurrence([1, 2], [1, 2]) == 0
    assert conversation.last_occurrence([1, 2], [2, 1]) is None
    assert conversation.last_occurrence([1], [1, 2]) is None


def test_batches_hold_every_index_once_within_their_tokens():
    lengths = [3, 50, 7, 7, 100, 1, 20, 3]
    for limit in (1, 10, 21, 60, 1000):
        groups = batches(lengths, limit)
        assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
        assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= limit for g in groups)
    assert len(batches(lengths, 1000)) == 1 and batches([], 5) == []


def test_what_cannot_be_judged_has_a_reason_and_no_score(armorm: Path, tmp_path: Path):
    prompt = {"messages": [{"role": "user", "content": "say"}]}
    judge = scorer(armorm, dtype="float32")
    shortest = [*prompt["messages"], {"role": "assistant", "content": ";"}]
    short = len(chat_template.encode(tokenizer_of(armorm), shortest).tokens)
    longest = ";" * (1 + POSITIONS - short)
    texts = ["", " \n", "7", longest, f"{longest};"]
    scores = judge.score([Item(prompt, text) for text in texts])
    assert [len(read(armorm, Item(prompt, text))[0]) for text in texts[3:]] == [POSITIONS, POSITIONS + 1]
    assert [score.detail for score in scores] == [
        "empty_answer", "empty_answer", None, None, f"too_long: {POSITIONS + 1} of {POSITIONS} tokens"
    ]  # fmt: skip
    assert [score.reward is None for score in scores] == [True, True, False, False, True]
    assert all((score.reward is None) == (score.objectives is None) for score in scores)
    # A template that does not strip: a line break that opens the answer melts into the header's.
    melting = make_armorm(tmp_path / "melting", chat_template=CHAT_TEMPLATE.replace("| trim", ""))
    first, second = scorer(melting, dtype="float32").score([Item(prompt, "\n7"), Item(prompt, "7")])
    assert first == Score(detail="no_gating_pattern") and second.reward is not None
    refusing = make_armorm(
        tmp_path / "refusing",
        chat_template="{% if messages[0]['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}"
        + CHAT_TEMPLATE,
    )
    refused = Item({"messages": [{"role": "user", "content": "no"}]}, "7")
    assert [s.detail for s in scorer(refusing).score([refused, Item(prompt, "7")])] == ["chat_template: never", None]


def change(directory: Path, copy: Path, name: str, value: np.ndarray | None) -> Path:
    """A copy of the checkpoint with one weight replaced, or left out."""
    shutil.copytree(directory, copy)
    weights = load_file(directory / "model.safetensors") | ({} if value is None else {name: value})
    if value is None:
        del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, r"no weight 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        ("gating.layers.3.bias", None, r"heads cannot be loaded: .*gating\.layers\.3\.bias"),
        ("regression_layer.weight", np.zeros((5, 64), np.float32), r"heads cannot be loaded: .*regression_layer"),
        ("model.norm.weight", np.zeros(3, np.float32), r"cannot be loaded: .*"),
    ],
)
def test_a_broken_checkpoint_is_one_line(armorm: Path, tmp_path: Path, name: str, value: Any, message: str):
    broken = change(armorm, tmp_path / "broken", name, value)
    with pytest.raises(cli.UserError, match=message) as raised:
        scorer(broken).score(items()[:1])
    assert "\n" not in str(raised.value)


def test_a_model_that_is_no_armorm_or_a_backend_that_is_not_there(
    armorm: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(cli.UserError, match=r"^scorers\.math\.reward: model /no/where: no such directory"):
        scorer(Path("/no/where"))
    with pytest.raises(cli.UserError, match="is LlamaForCausalLM, not LlamaForRewardModelWithGating"):
        scorer(checkpoint)
    endless = tmp_path / "endless"
    shutil.copytree(armorm, endless)
    values = json.loads((endless / "config.json").read_text())
    del values["max_position_embeddings"]
    (endless / "config.json").write_text(json.dumps(values))
    with pytest.raises(cli.UserError, match=r"endless: config\.json has no max_position_embeddings"):
        scorer(endless)
    mute = tmp_path / "mute"
    shutil.copytree(armorm, mute)
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(cli.UserError, match="the tokenizer has no chat template"):
        scorer(mute).score(items()[:1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(cli.UserError, match=r"^scorers\.math\.reward\.backend: vllm is not installed"):
        scorer(armorm, backend="vllm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **group: ())
    with pytest.raises(cli.UserError, match=r"^scorers\.math\.reward\.backend: .*pip install --no-deps"):
        scorer(armorm, backend="vllm")


def test_domains_share_a_model_and_its_fingerprint_follows_what_decides_the_score(armorm: Path, tmp_path: Path):
    section = {"model": str(armorm)}
    config = PipelineConfig.model_validate(
        {
            "output_dir": "unused",
            "prompts": [{"path": "unused.jsonl", "dataset": "d", "domain": "math"}],
            "sources": [{"name": "s", "model": "s"}],
            "scorers": {"math": {"reward": section}, "code": {"reward": section}},
        }
    )
    built = build(config, ["math", "code", "chinese"])
    assert built["math"][0] is built["code"][0] is not None and built["chinese"] == (None, None)
    other = change(armorm, tmp_path / "other", "gating.logit_scale", np.ones(1, np.float32))
    judges = [scorer(armorm), scorer(armorm, batch_tokens=7), scorer(armorm, dtype="float32"), scorer(other)]
    first, second, *others = [judge.fingerprint for judge in judges]
    assert first == second and len({first, *others}) == 3


def test_the_pipeline_keeps_the_objectives_and_resumes(
    armorm: Path, values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("data_pipeline.scoring.stage.CHUNK", 4)
    section = {"model": str(armorm), "dtype": "float32"}
    values["scorers"] = {d: {"reward": section} for d in ("instruction", "chinese")} | {
        "math": {"reward": section, "correctness": "math_verify"}, "workers": 1
    }  # fmt: skip
    config = str(write_config(tmp_path / "data.yaml", values))
    main(["prompts", "--config", config])
    out = tmp_path / "out"
    (out / "samples").mkdir()
    texts = ["hello", "", r"\boxed{4}", "你好", "1 " * 200, QUOTE, r"\boxed{5}", "hi", "ho"]
    ids = ["i0", "i0", "m0", "z0", "i1", "i1", "m0", "i2", "i2"]
    samples = pl.DataFrame(
        {"prompt_id": ids, "source": "s", "sample_index": range(9), "text": texts, "finish_reason": "stop"}
    )
    samples.write_parquet(out / "samples/s.parquet")
    # Killed in the second chunk; what the first had scored is not asked again.
    score = ArmoRMScorer.score
    asked: list[int] = []

    def failing(self: ArmoRMScorer, batch: Any) -> Any:
        asked.append(len(batch))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return score(self, batch)

    monkeypatch.setattr(ArmoRMScorer, "score", failing)
    with pytest.raises(KeyboardInterrupt):
        main(["score", "--config", config])
    capsys.readouterr()
    main(["score", "--config", config])
    assert "; no reward {'empty_answer': 1, 'too_long': 1}" in capsys.readouterr().out
    assert sum(asked[4:]) == 5
    scores = pl.read_parquet(out / "scores/s.parquet")
    messages = {row["id"]: row["messages"] for row in pl.read_parquet(out / "prompts.parquet").iter_rows(named=True)}
    for row in scores.iter_rows(named=True):
        if row["reward"] is None:
            assert row["objectives"] is None
            continue
        tokens, gate = read(armorm, Item({"messages": messages[row["prompt_id"]]}, row["text"]))
        found = [row["reward"], *row["objectives"]]
        np.testing.assert_allclose(found, reference(armorm, tokens, gate), rtol=0, atol=1e-5)
    reasons = [detail and detail.split(":")[0] for detail in scores["detail"]]  # Verified answers have the verifier's.
    assert reasons == [None, "empty_answer", "same_text", None, "too_long", None, reasons[6], None, None]
    assert scores["reward"].is_null().sum() == 2
    assert scores.filter(prompt_id="m0")["verdict"].to_list() == ["correct", "wrong"]
    capsys.readouterr()
    main(["score", "--config", config])
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("{model: /no/where}", "scorers.instruction.reward: model /no/where: no such directory"),
        ("{modle: x}", "scorers.instruction.reward.modle: unknown key; did you mean 'model'?"),
        ("{model: x, backend: tpu}", "scorers.instruction.reward.backend: input should be 'transformers' or 'vllm'"),
        ("{model: x, batch_tokens: 0}", "scorers.instruction.reward.batch_tokens: input should be greater than 0"),
        ("{model: x, engine: {enforce_eager: true}}", "engine arguments are for the backend vllm, not transformers"),
        ("{model: x, backend: vllm, engine: {dtype: half}}", "scorers.instruction.reward.engine.dtype"),
        ("{model: gs://b/m}", "scorers.instruction.reward.model: gs://b/m: "),
        ("3", "scorers.instruction.reward: expected module:attribute, or a section with the key 'model'"),
    ],
)
def test_mistakes_in_the_section_are_one_line(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture, reward: str, message: str
):
    config = str(write_config(tmp_path / "data.yaml", values))
    with pytest.raises(SystemExit) as exit_:
        cli.run(lambda: main(["run", "--config", config, f"scorers.instruction.reward={reward}"]))
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1 and message in error, error


def test_the_checkpoint_has_the_published_names(armorm: Path):
    names = {name for name in load_file(armorm / "model.safetensors") if not name.startswith("model.")}
    gate = {f"gating.layers.{index}.{kind}" for index in range(4) for kind in ("weight", "bias")}
    assert names == gate | {"regression_layer.weight", "gating.logit_scale", "reward_transform_matrix"}
    assert json.loads((armorm / "config.json").read_text())["architectures"] == ["LlamaForRewardModelWithGating"]
