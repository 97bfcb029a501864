"""Folders whose files disagree on a column's type: one line says which column, in which files."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipeline.config import PromptsConfig
from data_pipeline.prompts import reading
from fusejax.common.cli import UserError

NUMBER, TEXT = [{"q": "x", "n": 1}], [{"q": "y", "n": "z"}]


def write(folder: Path, files: dict[str, Any]) -> PromptsConfig:
    for name, rows in files.items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".csv"):
            pl.DataFrame(rows).write_csv(path)
        elif name.endswith(".parquet"):
            pl.DataFrame(rows).write_parquet(path)
        elif name.endswith(".json"):
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptsConfig(path=str(folder / "data"), dataset="d", domain="math")


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a.jsonl": NUMBER, "b.jsonl": TEXT}, "the column 'n' is text in b.jsonl and a number in a.jsonl"),
        ({"a.json": NUMBER, "b.json": TEXT}, "the column 'n' is text in b.json and a number in a.json"),
        ({"a.csv": NUMBER, "b.csv": TEXT}, "the column 'n' is text in b.csv and a number in a.csv"),
        ({"a.parquet": NUMBER, "b.parquet": TEXT}, "the column 'n' is text in b.parquet and a number in a.parquet"),
        ({"a.jsonl": [{"n": ["x"]}], "b.jsonl": [{"n": "x"}]}, "'n' is text in b.jsonl and a list in a.jsonl"),
        ({"a.jsonl": [{"n": {"k": 1}}], "b.jsonl": [{"n": {"k": "x"}}]}, "'n.k' is text in b.jsonl and a number in a"),
        ({"a.jsonl": [{"n": [{"k": 1}]}], "b.jsonl": [{"n": [{"k": "x"}]}]}, r"'n\[\].k' is text in b.jsonl and a"),
        ({"a.jsonl": NUMBER * 2000, "b.jsonl": NUMBER * 2000 + TEXT}, "'n' is text in b.jsonl and a number in a.jsonl"),
        ({"a.jsonl": [{"n": None}], "b.jsonl": [{"n": "x"}]}, "'n' is empty in a.jsonl and text in b.jsonl"),
        ({"a.jsonl": [{"q": "x"}], "b.jsonl": NUMBER}, "'n' is in b.jsonl, but not in a.jsonl"),
    ],
)
def test_what_changes_is_named(tmp_path: Path, files: dict[str, Any], problem: str):
    with pytest.raises(UserError, match=rf"^prompts\[0\]: .*data: no data set that can be read: .*{problem}") as error:
        list(reading.rows(write(tmp_path, files), "prompts[0]"))
    assert "\n" not in str(error.value)


def test_a_type_that_is_changed_in_silence_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = write(tmp_path, {"a.jsonl": NUMBER, "b.jsonl": [{"q": "y", "n": "007"}]})
    assert [row["n"] for _, row in reading.rows(config, "prompts[0]")] == [1, 7]
    said = capsys.readouterr()
    assert "'n' is text in b.jsonl and a number in a.jsonl" in said.out + said.err


def test_what_does_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"q": "x", "n": 1.5, "m": [], "o": None}, {"q": "y", "n": 2, "m": ["k"], "o": None}]
    config = write(tmp_path, {"a.jsonl": rows, "b.jsonl": rows[1:], "readme.txt": []})
    assert len(list(reading.rows(config, "prompts[0]"))) == 3
    said = capsys.readouterr()
    assert "column" not in said.out + said.err
