"""Answers that come with a data set: matched by the prompt's text, all that is left out counted."""

import json
import re

import polars as pl
import pytest

from data_pipeline.__main__ import main
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts import stage as prompts
from data_pipeline.sampling import given_scores
from data_pipeline.sampling import stage as sample
from fusejax.common.cli import UserError
from fusejax.data.records import open_shards
from tests.data_pipeline.helpers import write_config, write_jsonl


@pytest.fixture
def config(tmp_path):
    def make(rows, **more):
        records = [{"id": f"p{i}", "prompt": f" What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
        records.append({"id": "long", "messages": [*turns, {"role": "user", "content": "2+2"}], "answer": "4"})
        made = PipelineConfig.model_validate(
            {
                "output_dir": str(tmp_path / "run"),
                "prompts": [
                    {"path": str(write_jsonl(tmp_path / "p.jsonl", records)), "dataset": "d", "domain": "instruction"}
                ],
                "given": [
                    {
                        "name": "teacher",
                        "model": "lab/teacher",
                        "path": str(write_jsonl(tmp_path / "given.jsonl", rows)),
                        "prompt": "problem",
                        "answer": "solution",
                        "domains": ["instruction"],
                        **more,
                    }
                ],
            }
        )
        prompts.run(made)
        return made

    return make


def table(config):
    return pl.read_parquet(f"{config.output_dir}/samples/teacher.parquet")


def test_rows_become_answers(config, capsys):
    rows = [
        {"problem": "What is 1 + 1?", "solution": "two"},
        {"problem": "What is 0 + 1?", "solution": "one"},
        {"problem": "What is 1 + 1?", "solution": "2"},
        {"problem": "What is 1 + 1?", "solution": "two"},
        {"problem": "What is 9 + 1?", "solution": "ten"},
        {"problem": "Hi", "solution": "of a conversation"},
        {"problem": "What is 2 + 1?", "solution": " "},
        {"problem": 7, "solution": "no text"},
        {"problem": "What is 2 + 1?", "solution": "7 " * 500},
    ]
    made = config(rows)
    sample.run(made)
    found = table(made)
    assert found.schema == sample.SCHEMA
    assert set(found.select("prompt_id", "sample_index", "text").rows()) == {
        ("p0", 0, "one"),
        ("p1", 0, "two"),
        ("p1", 1, "2"),
        ("p2", 0, "7 " * 500),
    }
    order = pl.read_parquet(f"{made.output_dir}/prompts.parquet")["id"].to_list()
    assert found["prompt_id"].unique(maintain_order=True).to_list() == [name for name in order if name != "long"]
    assert found.filter("degenerate")["prompt_id"].to_list() == ["p2"]
    assert set(found["model"]) == {"lab/teacher"} and set(found["engine"]) == {"given"}
    told = capsys.readouterr().out
    assert "4 given answers to 3 of 4 prompts" in told
    assert "{'no_such_prompt': 3, 'empty': 1, 'duplicate': 1}" in told
    sample.run(made)
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"problem": "What is 0 + 1?", "answer": "1"}], "no record has the column 'solution'"),
        ([{"problem": "Why?", "solution": "So."}], "none of 1 rows answers a prompt: {'no_such_prompt': 1}"),
    ],
)
def test_what_cannot_serve_is_named(config, rows, message):
    made = config(rows)
    with pytest.raises(UserError, match=message):
        sample.run(made)
    assert not (sample.epath.Path(made.output_dir) / "samples/teacher.parquet").exists()


def test_names_are_shared_with_the_sources():
    with pytest.raises(ValueError, match="a name occurs twice in teacher, teacher"):
        PipelineConfig.model_validate(
            {
                "output_dir": "o",
                "prompts": [{"path": "p.jsonl", "dataset": "d", "domain": "math"}],
                "sources": [{"name": "teacher", "model": "m"}],
                "given": [{"name": "teacher", "model": "m", "path": "g.jsonl", "prompt": "a", "answer": "b"}],
            }
        )
    with pytest.raises(ValueError, match="sources: there are none, and no given answers either"):
        PipelineConfig.model_validate(
            {"output_dir": "o", "prompts": [{"path": "p.jsonl", "dataset": "d", "domain": "math"}]}
        )


def test_scores_come_along(config, capsys):
    asked = "What is 1 + 1?"
    values = [
        ("0", 0.25, True, 0.25, None, "correct", None),
        ("1", 3, "wrong", 3.0, None, "wrong", None),
        ("2", None, None, None, "missing_reward", "unknown", "missing_verdict"),
        ("3", "0.5 or so", "yes", None, "bad_reward: '0.5 or so'", "unknown", "bad_verdict: 'yes'"),
        ("31", "-0.5", "False", -0.5, None, "wrong", None),
        ("4", True, 1, None, "bad_reward: True", "unknown", "bad_verdict: 1"),
        ("5", float("nan"), "unknown", None, "bad_reward: nan", "unknown", None),
        ("6", 10**400, False, None, f"bad_reward: 1{'0' * 99}", "wrong", None),
    ]
    rows = [{"problem": asked, "solution": v[0], "score": v[1], "right": v[2]} for v in values]
    # Copies: equal ones, one that adds what the other lacks, and two that disagree.
    rows += [
        rows[0],
        {"problem": asked, "solution": "7", "score": None, "right": "correct"},
        {"problem": asked, "solution": "7", "score": -1.5},
        {"problem": asked, "solution": "8", "score": 0.7, "right": "correct"},
        {"problem": asked, "solution": "8", "score": 0.5, "right": "wrong"},
    ]
    values += [
        ("7", None, None, -1.5, None, "correct", None),
        ("8", None, None, None, "several_rewards: 0.5, 0.7", "unknown", "several_verdicts: correct, wrong"),
    ]
    made = config(rows, reward="score", verdict="right")
    sample.run(made)
    found = table(made)
    assert found.schema == pl.Schema({**sample.SCHEMA, **given_scores.SCHEMA})
    assert found.select("text", *given_scores.SCHEMA).rows() == [(v[0], *v[3:]) for v in values]
    assert "{'duplicate': 3}" in capsys.readouterr().out
    again = config(list(reversed(rows)), reward="score", verdict="right")
    sample.run(again)
    columns = ["text", *given_scores.SCHEMA]
    assert table(again).select(columns).sort("text").equals(found.select(columns)), "no order of rows decides"


def test_only_the_scores_that_are_named(config):
    made = config([{"problem": "What is 1 + 1?", "solution": "2", "score": 1, "right": True}], verdict="right")
    sample.run(made)
    assert table(made).columns == [*sample.SCHEMA, "given_verdict", "given_verdict_problem"]


def test_rows_of_one_model(config, capsys):
    rows = [
        {"problem": "What is 1 + 1?", "solution": "two", "by": "a", "turn": 1},
        {"problem": "What is 1 + 1?", "solution": "2", "by": "b", "turn": 1},
        {"problem": "What is 1 + 1?", "solution": "II", "by": "a", "turn": 2},
    ]
    made = config(rows, where={"by": "a", "turn": 1})
    sample.run(made)
    assert table(made)["text"].to_list() == ["two"]
    assert "2 rows left out {'other_row': 2}" in capsys.readouterr().out
    with pytest.raises(UserError, match=re.escape("none of 3 rows answers a prompt: {'other_row': 3}")):
        sample.run(config(rows, where={"by": "c"}))
    with pytest.raises(UserError, match="no record has the column 'model'"):
        sample.run(config(rows, where={"model": "a"}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"right": True}, "no record has the column 'score'"),
        (
            {"score": "good", "right": True},
            "given.jsonl: column 'score': no finite number in any answer's row: bad_reward: 'good'",
        ),
        (
            {"score": 1, "right": "yes"},
            "column 'right': no correct, wrong, unknown, true or false in any answer's row: bad_verdict: 'yes'",
        ),
    ],
)
def test_a_column_without_any_score_is_a_mistake(config, values, message):
    made = config([{"problem": "What is 0 + 1?", "solution": "1", **values}], reward="score", verdict="right")
    with pytest.raises(UserError, match=re.escape(message)):
        sample.run(made)


def judged(tmp_path, rule, **domain):
    """A configuration of 24 prompts that `x` and `y` answer, in one file: y's reward is greater, but for one."""
    asked = [f"Name {number}." for number in range(24)]
    rows = [
        {"q": prompt, "a": f"{model} {prompt}", "model": model, "reward": reward, "ok": model == "y"}
        for number, prompt in enumerate(asked)
        for model, reward in (("x", 0.1), ("y", None if number == 3 else 0.2 + number / 100))
    ]
    file = str(write_jsonl(tmp_path / "judged.jsonl", rows))
    entry = {"path": file, "prompt": "q", "answer": "a", "reward": "reward", "verdict": "ok", "domains": ["law"]}
    return {
        "output_dir": str(tmp_path / "out"),
        "prompts": [{"path": file, "dataset": "d", "domain": "law", "columns": {"prompt": "q"}}],
        "given": [{"name": m, "model": f"lab/{m}", "where": {"model": m}, **entry} for m in ("x", "y")],
        "domains": {"law": {"rule": rule, **domain}, "math": {"verifier": "math_verify", "rule": "one_source"}},
        "write": {"num_shards": 1, "eval_fraction": 0.33},
    }


def run(tmp_path, values, stage="run"):
    main([stage, "--config", str(write_config(tmp_path / "data.yaml", values))])


@pytest.mark.parametrize(
    ("name", "more"), [("margin", {"sft_fraction": 0.5}), ("verdict_pairs", {}), ("verdict_both", {})]
)
def test_judged_answers_are_selected_without_any_scorer(tmp_path, capsys, name, more):
    rule = {"name": name, "same_source": False, "min_margin": 0.105, "max_margin": 1.0, **more}
    run(tmp_path, judged(tmp_path, rule))
    out = tmp_path / "out"
    assert "prompts: 24 prompts, 24 rejected {'duplicate_prompt': 24}" in capsys.readouterr().out
    scores = pl.read_parquet(out / "scores/y.parquet")
    assert scores.columns == [*sample.SCHEMA, "reward", "verdict", "extracted", "detail", "objectives"]
    assert set(scores["verdict"]) == {"correct"}
    assert scores.filter(pl.col("reward").is_null())["detail"].to_list() == ["missing_reward"]
    selected = {kind: pl.read_parquet(out / f"selection/{kind}.parquet") for kind in ("sft", "dpo", "unused")}
    assert selected["unused"].select("source", "reason").rows() == [("y", "no_reward")]
    assert set(selected["dpo"].select("chosen_source", "rejected_source").rows()) == {("y", "x")}
    # Without the prompt whose answer of y has no reward, and the one whose margin is below the bound.
    chosen = set(selected["dpo"]["prompt_id"])
    assert chosen <= {f"d-{2 * number}" for number in range(24)} - {"d-0", "d-6"}
    assert len(chosen) == 22 if name != "margin" else 0 < len(chosen) < 22
    for kind in ("sft", "dpo") if name != "verdict_pairs" else ("dpo",):
        held_out = {record.id for record in open_shards(f"{out}/{kind}/eval")}
        assert held_out and not held_out & {record.id for record in open_shards(f"{out}/{kind}/train")}
    pair = next(iter(open_shards(f"{out}/dpo/train")))
    assert (pair.chosen_score, pair.rejected_score) == pytest.approx((0.2 + int(pair.id[2:]) / 200, 0.1))
    assert json.loads((out / "dpo/manifest.json").read_text())["config"]["given"][0]["where"] == {"model": "x"}
    card = (out / "data_card.md").read_text()
    assert "| law | column reward of x, column reward of y | column ok of x, column ok of y |" in card


def test_a_reward_function_and_verdicts_that_come_along(tmp_path):
    """The verdict of the data set comes before the function's, as a verifier's does."""
    values = judged(tmp_path, "verdict_both", reward="tests.data_pipeline.helpers:reward")
    for entry in values["given"]:
        del entry["reward"]
    run(tmp_path, values)
    scores = {name: pl.read_parquet(tmp_path / f"out/scores/{name}.parquet") for name in ("x", "y")}
    assert {name: set(frame["verdict"]) for name, frame in scores.items()} == {"x": {"wrong"}, "y": {"correct"}}
    assert scores["x"]["reward"].is_between(0.05, 0.151).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda values: values["domains"]["law"].update(reward="tests.data_pipeline.helpers:reward"),
            "given.0.reward and domains.law.reward both give answers a reward; rewards on two scales cannot be "
            "compared: keep one, or leave law out of given.0.domains",
        ),
        (
            lambda values: values["given"][1].update(domains=[]),
            "given.1.verdict and domains.math.verifier both give answers a verdict: keep one, or leave math out of "
            "given.1.domains",
        ),
        (
            lambda values: values["given"][1].pop("reward"),
            "domains.law.reward: selecting law answers needs a reward: a model, or module:attribute; or all of them "
            "given with a reward",
        ),
        (
            lambda values: values["given"][0].pop("verdict"),
            "domains.law.verifier: the rule verdict_both needs verdicts: name a verifier, or module:attribute; or give "
            "all answers with a verdict",
        ),
    ],
)
def test_scores_on_two_scales_and_missing_ones_are_refused_at_once(tmp_path, change, message):
    values = judged(tmp_path, "verdict_both")
    change(values)
    with pytest.raises(UserError, match=re.escape(message)):
        run(tmp_path, values)
    assert not (tmp_path / "out").exists()
