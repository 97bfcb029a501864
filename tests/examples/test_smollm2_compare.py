"""The comparison of the example's methods: its data, its figures, its report; no pretrained model is needed."""

import gzip
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest

from data_pipeline.__main__ import main as data_pipeline
from data_pipeline.config import PipelineConfig
from examples.smollm2 import answers, compare, comparison, heldout, triples
from examples.smollm2.heldout import Likelihoods
from examples.smollm2.report import write_comparison
from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.data.records import PreferenceTriple, Shards, open_shards
from tests.browser import Browser, check_layout

CONFIGS = Path(compare.__file__).parent.absolute()


def judged(path: Path, prompts: int) -> None:
    """Answers of all models to so many prompts, with rewards that are known to be all different."""
    rewards = np.random.default_rng(0).permutation(prompts * len(answers.MODELS)) / (prompts * len(answers.MODELS))
    rows = [
        {
            "dataset": "koala", "prompt": f"Question {n}?", "source_model": model, "response": f"{model} says {n}.",
            "preference": rewards[n * len(answers.MODELS) + k],
        }
        for n in range(prompts)
        for k, model in enumerate(answers.MODELS)
    ]  # fmt: skip
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))


def test_triples_are_of_dpos_prompts_with_the_stand_ins_as_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    output = Path("runs/smollm2")
    judged(output / "judged.jsonl.gz", prompts=40)
    data_pipeline(["run", "--config", str(CONFIGS / "data.yaml")])
    triples.prepare(output / "judged.jsonl.gz", output / "data/dpo/train", output / "triples")
    data_pipeline(["run", "--config", str(CONFIGS / "triples.yaml")])
    found = [each for each in open_shards(output / "triples/wrpo/train") if isinstance(each, PreferenceTriple)]

    def ids(shards: Shards) -> set[str]:
        return {record.id for record in shards}

    # Every model has answered every prompt, so each of DPO's prompts has a triple, and no other prompt.
    assert {each.id for each in found} == ids(open_shards(output / "data/dpo/train")) and len(found) > 5
    for each in found:
        texts = [turns[0]["content"] for turns in (each.source_chosen, each.target_chosen, each.rejected)]
        makers = [text.partition(" says ")[0] for text in texts]
        assert makers[0] not in triples.STAND_IN and sorted(makers[1:]) == sorted(triples.STAND_IN)
        assert each.prompt[-1]["content"] == f"Question {texts[0].split()[-1]}?".replace(".?", "?")
        assert each.target_score > each.rejected_score
    assert not (output / "triples/sft").exists() and not (output / "triples/wrpo/eval").exists()


def test_configurations():
    data = load_config(PipelineConfig, CONFIGS / "triples.yaml", [])
    strong = {given.where["source_model"] for given in data.given if given.where}
    assert strong | set(triples.STAND_IN) == set(answers.MODELS) and not strong & set(triples.STAND_IN)
    runs = {
        name: load_config(TrainConfig, CONFIGS / f"{name}.yaml", []).model_dump()
        for name in comparison.METHODS
        if name != "base"
    }

    def differ(name: str, other: str) -> set[str]:
        return {key for key, value in runs[name].items() if value != runs[other][key]}

    # What the table compares are methods: settings that have nothing to do with them are the same.
    assert differ("fusion", "sft") == {"fusion", "output_dir"}
    assert differ("simpo", "dpo") == {"preference", "output_dir"}
    assert differ("wrpo", "dpo") == {"preference", "output_dir", "data", "packing"}
    (source,) = load_config(PipelineConfig, CONFIGS / "distributions.yaml", []).sources
    assert runs["fusion"]["fusion"]["sidecars"] == (f"runs/smollm2/gemma/distributions/{source.name}/train",)


def test_a_checkpoint_with_a_template(tmp_path: Path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    for _ in range(2):
        compare._with_template(checkpoint, CONFIGS / "gemma.jinja", tmp_path / "made" / "model")
    made = tmp_path / "made" / "model"
    assert sorted(each.name for each in made.iterdir()) == ["chat_template.jinja", "config.json"]
    assert (made / "config.json").read_text() == "{}"
    template = jinja2.Template((made / "chat_template.jinja").read_text())
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    texts = [template.render(messages=turns[:n], bos_token="<bos>", eos_token="<eos>") for n in (1, 2)]
    assert texts == ["<bos>Hi?\n\n", "<bos>Hi?\n\nHello.<eos>"]


def test_likelihoods_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the same weights and answers."""
    asked: list[Path] = []
    weights = [tmp_path / name / "model.safetensors" for name in ("base", "sft")]
    for file in weights:
        file.parent.mkdir()
        file.write_bytes(b"weights")

    def given(directory: Path, conversations: list[Any], *, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(directory)
        return -np.arange(1.0, 6), np.array([9.0, 9, 9, 9, 2])

    monkeypatch.setattr(heldout, "mean_logprobs", given)
    turns = [[{"role": "assistant", "content": "x"}]]
    models, kept = {file.parent.name: file.parent for file in weights}, tmp_path / "kept"
    for _ in range(2):
        found = heldout.ask(models, heldout.HeldOut(turns * 3, turns * 2), max_length=1, folder=kept)
        assert found["sft"].best.tolist() == [-1, -2, -3] and found["sft"].rejected.tolist() == [-4, -5]
        assert found["sft"].chosen.tolist() == [-2, -3] and found["sft"].chosen_longer.tolist() == [False, True]
    assert asked == [tmp_path / "base", tmp_path / "sft"]
    weights[1].write_bytes(b"others")
    heldout.ask(models, heldout.HeldOut(turns * 3, turns * 2), max_length=1, folder=kept)
    assert asked[2:] == [tmp_path / "sft"]
    heldout.ask(models, heldout.HeldOut(turns * 3, turns * 2), max_length=2, folder=kept)
    assert asked[3:] == [tmp_path / "base", tmp_path / "sft"]


def likelihoods(**means: list[float]) -> dict[str, Likelihoods]:
    """Of one answer held out of SFT and of three pairs, in the last of which the chosen answer is the shorter one:
    [best, chosen, chosen, chosen, rejected, rejected, rejected]."""
    lengths = np.array([5.0, 9, 9, 9]), np.array([8.0, 8, 10])
    return {name: Likelihoods(np.array(all[:4]), np.array(all[4:]), *lengths) for name, all in means.items()}


FOUND = likelihoods(
    base=[-3, -3, -3, -3, -4, -2, -4],
    sft=[-2, -2, -2, -2, -1, -1, -3],
    fusion=[-1.5, -2, -1.5, -2, -1, -2, -3],
    dpo=[-2, -1, -2, -3, -1, -2, -3],
    simpo=[-2, -1, -2, -2, -2, -3, -4],
    wrpo=[-2, -3, -2, -2, -1, -2, -3],
)
COST = {"steps": 2, "examples": 32, "tokens": 1234567, "seconds": 65.4}


def test_figures():
    results = comparison.compare(FOUND, dict.fromkeys(["sft", "fusion", "dpo", "simpo", "wrpo"], COST))
    assert results["prompts"] == 4 and results["pairs"] == {"all": 3, "longer": 2, "shorter": 1}
    methods = results["methods"]
    assert methods["sft"]["loss"] == {"mean": (2, 0), "change": (-1, 0)}
    assert "change" not in methods["base"]["loss"] and methods["base"]["cost"] is None
    # -0.5, 0, -0.5 and 0 against SFT.
    assert methods["fusion"]["loss"]["change"] == pytest.approx((-0.25, 0.25 / 3**0.5))
    assert methods["base"]["reward_accuracy"] is None and methods["sft"]["reward_accuracy"] is None
    # DPO moves the first two pairs the right way and the third the wrong way, SimPO all of them the right way.
    accuracy = methods["dpo"]["reward_accuracy"]
    assert [accuracy["share"][kind][0] for kind in comparison.KINDS] == pytest.approx([2 / 3, 1, 0])
    assert "change" not in accuracy
    accuracy = methods["simpo"]["reward_accuracy"]
    assert [accuracy["share"][kind][0] for kind in comparison.KINDS] == [1, 1, 1]
    assert accuracy["change"]["all"] == pytest.approx((1 / 3, 1 / 3))
    likelier = {name: found["likelier"] for name, found in methods.items()}
    assert [likelier[name]["share"]["all"][0] for name in ("sft", "dpo", "simpo")] == pytest.approx([1 / 3, 0, 1])
    assert likelier["simpo"]["change"]["longer"] == (1, 0)


def test_a_single_pair_has_no_standard_error_of_change():
    """Of one pair whose chosen answer is the shorter one, there is no spread to tell of."""
    results = comparison.compare(FOUND, {})
    assert "change" in results["methods"]["simpo"]["likelier"]
    assert results["methods"]["simpo"]["likelier"]["change"]["shorter"] is None
    assert json.loads(json.dumps(results, allow_nan=False))["pairs"]["shorter"] == 1


def test_the_cost_is_the_sum_of_the_steps(tmp_path: Path):
    lines = [{"step": n, "examples": 16, "tokens": 100 * n, "step_time": 1.5, "loss": 1.0} for n in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert comparison.cost(tmp_path / "metrics.jsonl") == {"steps": 2, "examples": 32, "tokens": 300, "seconds": 3}


def test_the_table_and_the_report(tmp_path: Path, browser: Browser):
    results = comparison.compare(FOUND, dict.fromkeys(["sft", "fusion", "dpo", "simpo", "wrpo"], COST))
    results = json.loads(json.dumps(results))
    assert {len(row) for row in comparison.rows(results)} == {len(comparison.header())}
    table = comparison.markdown(results)
    assert "| ... change | – | -1.0000 ± 0.0000 | -0.2500 ± 0.1443 |" in table
    assert "| ... tokens | – | 1,234,567 |" in table
    step = {"loss": 0.7, "clm": 0.6, "reward_accuracy": 0.5}
    for name in comparison.METHODS:
        (tmp_path / name).mkdir()
        lines = [json.dumps({**step, "step": n}) for n in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    page = write_comparison(tmp_path, results)
    assert "explicit fusion" in page.read_text()
    check_layout(browser, page)
