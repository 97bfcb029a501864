"""The command from a shell: its arguments, what it says, and a training run on what it made."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.__main__ import main
from fusejax.common.cli import UserError
from fusejax.data.records import open_shards
from fusejax.training.loop import train
from tests.data_pipeline.importing.fixtures import DPO, SFT, funnel, write
from tests.tiny_runs import run_config

ROOT = Path(__file__).parents[3]


def test_from_a_file_to_shards_in_a_fresh_process(tmp_path: Path):
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(10)]
    write(tmp_path / "chats.jsonl", rows)
    settings = ["columns.prompt=question", "columns.completion=answer", "limit=6", "write.eval_fraction=0.3", "seed=3"]
    command = [sys.executable, "-m", "data_pipeline", "import", "chats.jsonl", *settings, "--output", "data"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "import: sft/train 4, sft/eval 2; 4 of 10 rows dropped {'over_limit': 4}\n"
    assert done.stderr.splitlines() == [
        "chats.jsonl: SFT, prompt and completion (question, answer)",
        "to train on it: task: sft, data: {train: data/sft/train}",
    ]
    assert len(open_shards(tmp_path / "data/sft/train")) == 4
    mistake = subprocess.run(
        [*command[:5], "--output", "other"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert mistake.returncode == 2 and mistake.stdout == "" and not (tmp_path / "other/sft").exists()
    (line,) = mistake.stderr.splitlines()
    assert line.startswith("error: data.0: chats.jsonl: no format has the columns question, answer: name them")


def test_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", SFT["messages"][0])
    write(tmp_path / "b.csv", DPO["texts"][0])
    config = {"output_dir": "out", "data": [{"path": "a.jsonl", "limit": 5}, {"path": "b.csv"}]}
    (tmp_path / "import.yaml").write_text(yaml.safe_dump(config))
    main(["import", "--config", "import.yaml", "write.eval_fraction=0", "output_dir=elsewhere"])
    manifest = json.loads((tmp_path / "elsewhere/dpo/manifest.json").read_text())
    assert manifest["splits"]["train"]["examples"] == 10
    assert manifest["config"]["data"][0]["limit"] == 5 and manifest["imported"] == funnel(tmp_path / "elsewhere")
    assert [(entry["kind"], entry["kept"]) for entry in manifest["imported"]] == [("sft", 5), ("dpo", 10)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"name files, folders or Hub ids and --output DIR, or --config FILE"),
        (["limit=3"], r"name files"),
        (["a.jsonl"], r"import a.jsonl: where to\? give --output DIR"),
        (["a.jsonl", "--config", "x.yaml"], r"--config names the data and output_dir"),
        (["--config", "x.yaml", "--output", "out"], r"--config names the data and output_dir"),
        (["--config", "x.yaml"], r"config x.yaml: No such file"),
        (["a.jsonl", "--output", "out"], r"data.0: a.jsonl: no such file"),
        (["a.txt", "--output", "out"], r"a.txt: unknown kind of file; known are .jsonl, .json, .csv and .parquet"),
        (["a.jsonl", "--output", "out", "limt=3"], r"import: limt: unknown key; did you mean 'limit'\?"),
        (["a.jsonl", "--output", "out", "columns.promt=x"], r"import: data.0.columns.promt: unknown key; did you mean"),
        (["a.jsonl", "--output", "out", "limit=0"], r"import: data.0.limit: input should be greater than 0"),
        (["a.jsonl", "--output", "s3://x"], r"import: output_dir: s3://x is neither a local path nor gs://"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=message) as error:
        main(["import", *arguments])
    assert "\n" not in str(error.value) and not (tmp_path / "out/sft").exists()


def test_a_path_that_looks_like_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "date=today.jsonl", SFT["prompt"][0])
    main(["import", "date=today.jsonl", "--output", "out"])
    assert funnel(tmp_path / "out")[0]["dataset"] == "date=today"


@pytest.mark.parametrize(("kind", "formats"), [("sft", SFT), ("dpo", DPO)])
def test_two_steps_on_every_format(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, formats: dict[str, Any]
):
    monkeypatch.chdir(tmp_path)
    paths = [write(tmp_path / f"{name}.jsonl", rows).name for name, (rows, _) in formats.items()]
    main(["import", *paths, "--output", "data", "write.eval_fraction=0.1"])
    data = {"train": f"data/{kind}/train", "eval": f"data/{kind}/eval"}
    packing = {"row_length": 256, "rows_per_device": 2}
    train(run_config(world, tmp_path / "run", kind, data=data, max_steps=2, max_length=128, packing=packing))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert (tmp_path / "run/rejected.jsonl").read_text() == "", "what import lets through can be trained on"
