"""The parts of the example that need no pretrained model: its answers, its held-out figures, its report."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from data_pipeline.config import PipelineConfig
from examples.smollm2 import answers, heldout
from examples.smollm2.report import write_report
from examples.smollm2.results import rows, table
from fusejax.common.cli import UserError, load_config
from fusejax.config import TrainConfig
from fusejax.data.chat import encode_conversation, load_tokenizer
from tests.browser import Browser, check_layout

CONFIGS = Path(answers.__file__).parent


def clone(folder: Path) -> Path:
    """What a clone of AlpacaEval's repository has of each model, made up: the k-th model's answers win with k / 10."""
    for k, model in enumerate(answers.MODELS):
        path = folder / "results" / model / answers.ANNOTATIONS
        path.parent.mkdir(parents=True)
        judged = {
            "dataset": "koala",
            "instruction": "Hi?",
            "output_1": "x",
            "output_2": f"Hello {k}",
            "generator_2": "g",
        }
        path.write_text(json.dumps([{**judged, "preference": 1 + k / 10}, {**judged, "preference": None}]))
    return folder


def test_answers_from_a_clone_and_from_a_file_are_the_same(tmp_path: Path):
    answers.prepare(clone(tmp_path / "alpaca_eval"), tmp_path / "judged.jsonl.gz")
    content = gzip.decompress((tmp_path / "judged.jsonl.gz").read_bytes())
    found = [json.loads(line) for line in content.splitlines()]
    assert [row["source_model"] for row in found] == list(answers.MODELS)
    assert found[3] == {
        "dataset": "koala", "prompt": "Hi?", "source_model": answers.MODELS[3], "response": "Hello 3",
        "preference": pytest.approx(0.3),
    }  # fmt: skip
    (tmp_path / "plain.jsonl").write_bytes(content)
    for source in ("plain.jsonl", "judged.jsonl.gz"):
        answers.prepare(tmp_path / source, tmp_path / "again.jsonl.gz")
        assert (tmp_path / "again.jsonl.gz").read_bytes() == (tmp_path / "judged.jsonl.gz").read_bytes()


def test_what_is_no_clone_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="no such file or folder"):
        answers.prepare(tmp_path / "nowhere", tmp_path / "out.gz")
    with pytest.raises(UserError, match="no clone of AlpacaEval"):
        answers.prepare(tmp_path, tmp_path / "out.gz")
    path = clone(tmp_path / "c") / "results" / answers.MODELS[0] / answers.ANNOTATIONS
    path.write_text('[{"instruction": "Hi?"}]')
    with pytest.raises(UserError, match="not AlpacaEval's annotations"):
        answers.prepare(tmp_path / "c", tmp_path / "out.gz")
    assert not (tmp_path / "out.gz").exists()


def test_configurations():
    data = load_config(PipelineConfig, CONFIGS / "data.yaml", [])
    assert sorted(given.where["source_model"] for given in data.given) == sorted(answers.MODELS)
    assert {given.reward for given in data.given} == {"preference"}
    assert load_config(TrainConfig, CONFIGS / "sft.yaml", []).task == "sft"
    assert load_config(TrainConfig, CONFIGS / "dpo.yaml", []).needs_reference


def test_mean_logprobs_are_those_of_one_answer_at_a_time(world: Path):
    conversations = [
        [{"role": "user", "content": "what is 1 plus 2"}, {"role": "assistant", "content": text}]
        for text in ("3", "It is three, of course, as always.")
    ]
    means, counts = heldout.mean_logprobs(world / "model", conversations, max_length=40)
    tokenizer = load_tokenizer(world / "model")
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    for mean, count, messages in zip(means, counts, conversations, strict=True):
        tokens, mask = (array[:40] for array in encode_conversation(tokenizer, messages)[:2])
        with torch.no_grad():
            logprobs = model(torch.tensor(tokens)[None].long()).logits[0].log_softmax(1)
        found = [float(logprobs[i - 1, tokens[i]]) for i in np.flatnonzero(mask)]
        assert count == len(found)
        assert mean == pytest.approx(np.mean(found), abs=1e-5)
    assert counts[1] > counts[0]


def test_reward_accuracy_compares_changes_per_token(monkeypatch: pytest.MonkeyPatch):
    """Two held-out answers of SFT and three pairs; DPO moves the first two pairs the right way, the third the wrong."""
    best = [[{"role": "assistant", "content": f"b{n}"}] for n in range(5)]
    heard = heldout.HeldOut(best, [[{"role": "assistant", "content": f"r{n}"}] for n in range(3)])
    means = {
        "base": [-3.0] * 5,
        "sft": [-2.0, -2.5, -2, -2, -2, -1, -3, -2],
        "dpo": [-2.0, -2.0, -1, -2, -3, -1, -4, -2],
    }
    counts = np.array([9, 9, 9, 9, 2, 5, 5, 5])

    def given(directory, conversations, *, max_length):
        return np.array(means[directory.name]), counts[: len(conversations)]

    monkeypatch.setattr(heldout, "mean_logprobs", given)
    found = heldout.measure({name: Path(name) for name in means}, heard, max_length=1)
    assert found["prompts"] == 5 and found["pairs"] == 3
    assert found["reward_accuracy"][0] == pytest.approx(2 / 3)
    assert found["chosen_longer"][0] == pytest.approx(2 / 3)
    assert found["reward_accuracy_chosen_longer"][0] == 1 and found["reward_accuracy_chosen_shorter"][0] == 0
    assert found["loss"]["base"] == (3, 0) and found["loss"]["sft"][0] == pytest.approx(2.1)
    assert found["loss_fall"]["sft"][0] == pytest.approx(0.9)
    assert found["likelier"]["sft"][0] == pytest.approx(1 / 3)


def test_report(tmp_path: Path, browser: Browser):
    estimate = (0.123456, 0.01)
    results = {
        "prompts": 203, "pairs": 128, "loss": dict.fromkeys(("base", "sft", "dpo"), estimate),
        "loss_fall": dict.fromkeys(("sft", "dpo"), estimate), "likelier": dict.fromkeys(("sft", "dpo"), estimate),
        **dict.fromkeys(("reward_accuracy", "chosen_longer"), estimate),
        **{f"reward_accuracy_chosen_{kind}": estimate for kind in ("longer", "shorter")},
    }  # fmt: skip
    assert len(table(results).splitlines()) == len(rows(results)) == 10
    step = {"step": 1, "loss": 0.7, "chosen_reward": 0.1, "rejected_reward": 0.0, "reward_accuracy": 0.5}
    for task in ("sft", "dpo"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "metrics.jsonl").write_text("".join(f"{json.dumps({**step, 'step': n})}\n" for n in (1, 2)))
    shown = {"prompt": "<b>Hi?</b>", "chosen": "Hello", "base": "x" * 500, "sft": "word " * 200, "dpo": "好" * 300}
    page = write_report(tmp_path, results, [shown])
    assert "&lt;b&gt;Hi?" in page.read_text()
    check_layout(browser, page)
