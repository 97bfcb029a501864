"""The command: all stages on tiny models, again, with mistakes, and on answers of another program."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipeline.__main__ import main
from data_pipeline.config import PipelineConfig
from data_pipeline.scoring.stage import COLUMNS
from fusejax.common import cli
from fusejax.data.records import open_shards
from tests.data_pipeline.helpers import write_config

ROOT = Path(__file__).parents[2]


def run(stage: str, config: Path, *overrides: str) -> None:
    main([stage, "--config", str(config), *overrides])


@pytest.fixture
def config(tmp_path: Path, values: dict[str, Any]) -> Path:
    return write_config(tmp_path / "data.yaml", values)


def test_run_from_prompts_to_shards_and_again(
    config: Path, values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
):
    with (tmp_path / "chinese.jsonl").open("a") as file:
        file.write('{"prompt": "", "note": "a line separator: \u2028"}\n')
    values["prompts"][3]["limit"] = 3
    values["write"]["eval_fraction"] = 0.5
    write_config(config, values)
    run("run", config)
    out = tmp_path / "out"
    sft, dpo = pl.read_parquet(out / "selection/sft.parquet"), pl.read_parquet(out / "selection/dpo.parquet")
    discarded = pl.read_parquet(out / "selection/discarded.parquet")
    assert len(sft) and len(dpo)
    # Every prompt is accounted for.
    ids = [*sft["prompt_id"], *dpo["prompt_id"], *discarded["prompt_id"]]
    assert set(ids) == set(pl.read_parquet(out / "prompts.parquet")["id"])
    for kind, table in (("sft", sft), ("dpo", dpo)):
        splits = [open_shards(f"{out}/{kind}/{split}") for split in ("train", "eval")]
        records = {record.id: record for split in splits for record in split}
        assert set(records) == set(table["prompt_id"]) and sum(map(len, splits)) == len(table)
        manifest = json.loads((out / kind / "manifest.json").read_text())
        assert manifest["models"].keys() == {"hot", "cool"} and manifest["config"]["seed"] == 0
        assert set(manifest["sandbox"]) == {"hot", "cool"} and None not in manifest["sandbox"].values()
        row = table.row(0, named=True)
        record = records[row["prompt_id"]]
        if kind == "sft":
            assert record.messages[-1] == {"role": "assistant", "content": row["text"]}
            assert record.messages[-2]["role"] == "user" and record.source_model == row["source"]
        else:
            assert record.chosen == [{"role": "assistant", "content": row["chosen"]}]
            assert record.rejected == [{"role": "assistant", "content": row["rejected"]}]
            assert record.chosen_score - record.rejected_score == pytest.approx(row["margin"], abs=1e-6)
    page = (out / "report.html").read_text()
    for reason, said in (("no_prompt", "has no prompt, or a blank one"), ("over_limit", "more than the configuration")):
        assert f">{reason} <small>{said}" in page
    assert page.count("<svg") >= 6
    assert not any(tag in page for tag in ("<script", "<link", "<img", "src=", 'href="http'))  # One file, no network.
    assert "| total |" in (out / "data_card.md").read_text()
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    run("run", config)
    assert all("up to date" in line for line in capsys.readouterr().out.splitlines())
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    run("select", config, "selection.instruction.sft_fraction=1.0")
    assert "up to date" not in capsys.readouterr().out


def test_same_seed_same_data_other_seed_other_data(config: Path, tmp_path: Path):
    tables = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("run", config, f"output_dir={tmp_path / name}", f"seed={seed}")
        tables.append([(tmp_path / name / "selection" / f"{kind}.parquet").read_bytes() for kind in ("sft", "dpo")])
    assert tables[0] == tables[1] != tables[2]


def test_score_judges_answers_of_another_program(config: Path, tmp_path: Path):
    run("prompts", config)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "samples").mkdir(parents=True)
    (tmp_path / "out/prompts.parquet").rename(elsewhere / "prompts.parquet")
    rows = [
        ("m0", r"\boxed{4}", "stop"),
        ("m1", r"\boxed{4}", "stop"),
        ("c1", "```python\ndef add1(a, b):\n    return a + b\n```", "stop"),
        ("c2", "```python\ndef add2(a, b):\n    return a - b\n```", "stop"),
        ("i0", "hello", "length"),
        ("i1", "", "error"),
        ("gone", "?", "stop"),
    ]
    samples = pl.DataFrame(rows, schema=["prompt_id", "text", "finish_reason"], orient="row").with_columns(
        source=pl.lit("sft"), sample_index=0
    )
    samples.write_parquet(elsewhere / "samples/sft.parquet")
    run("score", config, f"output_dir={elsewhere}")
    scores = pl.read_parquet(elsewhere / "scores/sft.parquet")
    assert scores.columns == [*samples.columns, *COLUMNS]
    assert scores["verdict"].to_list() == ["correct", "wrong", "correct", "wrong", "wrong", None, None]
    assert scores["reward"].null_count() == 2
    assert scores["detail"].to_list()[-2:] == ["not_sampled", "no_such_prompt"]


def test_a_failing_reward_is_counted(config: Path, tmp_path: Path):
    run("prompts", config)
    (tmp_path / "out/samples").mkdir()
    texts = ["fail", "nan", "fine", "surrogate"]
    pl.DataFrame(
        {"prompt_id": ["i0"] * 4, "source": "s", "sample_index": [0, 1, 2, 3], "text": texts, "finish_reason": "stop"}
    ).write_parquet(tmp_path / "out/samples/s.parquet")
    run("score", config, "scorers.instruction.reward=tests.data_pipeline.helpers:strange_reward")
    scores = pl.read_parquet(tmp_path / "out/scores/s.parquet")
    assert scores["reward"].is_nan().to_list() == [None, True, False, None]
    assert scores["verdict"].to_list() == ["unknown", "correct", "unknown", "unknown"]
    assert scores["detail"].to_list() == [
        "reward_failed: ZeroDivisionError: division by zero", None, "bad_verdict: 'perhaps'",
        "reward_failed: ValueError: ?",
    ]  # fmt: skip
    run("score", config, "scorers.instruction.reward=tests.data_pipeline.helpers:Reward")
    assert pl.read_parquet(tmp_path / "out/scores/s.parquet")["reward"].to_list() == pytest.approx(
        [0.09, 0.08, 0.09, 0.14]
    )


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        ("run", "max_new_tokns=3", "max_new_tokns: unknown key; did you mean 'max_new_tokens'?"),
        ("run", "seed=x", "seed: "),
        ("run", "scorers.math.reward=null", "scorers.math.reward: selecting math answers needs a reward"),
        (
            "run",
            "selection.chinese.source=nobody",
            "selection.chinese.source: 'nobody' is none of the sources with the domain chinese (hot)",
        ),
        ("run", "selection.chinese.source=cool", "'cool' is none of the sources with the domain chinese"),
        ("run", "scorers.math.correctness=null", "scorers.math.correctness: input should be 'math_verify' or 'code'"),
        ("run", "output_dir=s3://bucket/data", "output_dir: s3://bucket/data is neither a local path nor gs://BUCKET"),
        (
            "run",
            "sources=[{name: a, model: gs://b/m}]",
            "sources.0.model: gs://b/m: samplers read checkpoints from disk",
        ),
        ("run", "scorers.chinese.reward=no_such_module:f", "scorers.chinese.reward: cannot import 'no_such_module'"),
        ("run", "sources=[{name: gone, model: /no/such/model}]", "model /no/such/model: no such directory"),
        ("prompts", "prompts=[]", "prompts: there are none"),
        ("prompts", "output_dir=/dev/null/out", "cannot be made: Not a directory"),
        ("run", "selection.math.min_margin=0.5", "min_margin 0.5 exceeds max_margin 0.1"),
        ("sample", "", "prompts.parquet: no such file; run the stage 'prompts' first"),
        ("score", "", "prompts.parquet: no such file"),
        ("select", "", "prompts.parquet: no such file"),
        ("write", "", "sft.parquet: no such file; run the stage 'select' first"),
        ("report", "", "no such file; run the stage 'select' first"),
    ],
)
def test_users_mistakes_are_one_line(
    stage: str, override: str, message: str, config: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as exit_:
        cli.run(lambda: run(stage, config, *([override] if override else [])))
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.count("\n") == 1 and error.startswith("error: ") and message in error, error


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("nowhere", "'nowhere' is not of the form module:attribute"),
        ("no_such_module:score", "cannot import 'no_such_module'"),
        ("math:no_such_function", "module 'math' has no 'no_such_function'"),
        ("math:pi", "math:pi cannot be called"),
        ("broken_reward:f", "cannot import 'broken_reward': SyntaxError"),
    ],
)
def test_reward_that_leads_nowhere(
    reward: str, message: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken_reward.py").write_text("def f(:")
    monkeypatch.syspath_prepend(tmp_path)
    run("prompts", config)
    (tmp_path / "out/samples").mkdir()
    pl.DataFrame(
        {"prompt_id": ["i0"], "source": "s", "sample_index": 0, "text": "x", "finish_reason": "stop"}
    ).write_parquet(tmp_path / "out/samples/s.parquet")
    with pytest.raises(cli.UserError, match=message):
        run("score", config, f"scorers.instruction.reward={reward}")


def test_nothing_selected(config: Path, tmp_path: Path):
    with pytest.raises(cli.UserError, match=r"nothing was selected; discarded\.parquet"):
        run("run", config, "max_new_tokens=1", "samples_per_prompt.instruction=1")


@pytest.mark.slow
def test_commands_from_a_shell(config: Path, tmp_path: Path):
    """Exit status 2 with one line; and the whole program runs where JAX cannot be imported."""
    command = [sys.executable, "-m", "data_pipeline", "prompts", "--config", str(tmp_path / "missing.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: config {tmp_path / 'missing.yaml'}: No such file or directory\n"
    program = (
        "import sys; sys.modules['jax'] = sys.modules['flax'] = None\n"
        "from data_pipeline.__main__ import main\nmain(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", program, "run", "--config", str(config)], cwd=ROOT, text=True)
    assert done.returncode == 0
    assert (tmp_path / "out/report.html").exists()


def test_the_papers_config_is_valid():
    config = ROOT / "configs/fusechat3/data.yaml"
    # It gets as far as looking for its models on the Hub, whose address is nowhere here.
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline", "run", "--config", str(config)],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "domains.code.reward: model RLHFlow/ArmoRM-Llama3-8B-v0.1: no such directory, nor a model" in done.stderr
    loaded = cli.load_config(PipelineConfig, config, [])
    limits = [entry.limit for entry in loaded.prompts if entry.limit]
    assert sum(limits) == 158_667 - 3_113 - 12_892  # All but code, which has no limit.
