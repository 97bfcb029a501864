"""Kinds of data files: what they hold is read alike, and what is broken is one line."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.prompts import row_files
from fusejax.common.cli import UserError

ROWS = [{"prompt": f'é{n}\n, "x"', "answer": None if n == 2 else f"{n:02d}"} for n in range(5)]


def content(kind: str) -> bytes:
    if kind == ".jsonl":
        return "\r\n".join(json.dumps(row) for row in ROWS).encode("utf-8-sig")
    if kind == ".json":
        return json.dumps(ROWS, indent=1, ensure_ascii=False).encode("utf-8-sig")
    if kind == ".csv":
        return pl.DataFrame(ROWS).write_csv(line_terminator="\r\n").encode("utf-8-sig")
    file = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(file)
    return file.getvalue()


def read(path: Path, columns: tuple[str, ...] = ()) -> list[Any]:
    return [row for _, row in row_files.rows(epath.Path(path), "data", columns)]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind(tmp_path: Path, kind: str, packed: str):
    """With a byte order mark and line ends as Windows writes them; no type is guessed."""
    path = tmp_path / f"rows{kind}{packed}"
    path.write_bytes(gzip.compress(content(kind)) if packed else content(kind))
    assert row_files.is_row_file(path) and read(path) == ROWS


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('\n{"a": 1}\nbroken\n{"a": 3}', [{"a": 1}, "broken", {"a": 3}]),
        ('{"version": 1, "data": [{"a": 1}]}', [{"a": 1}]),
        ('{\n "data": [\n {"a": 1}, {"a": 2}]\n}\n', [{"a": 1}, {"a": 2}]),
        ('{"a": {"data": []}}', [{"a": {"data": []}}]),
        ("\n [] \n", []),
        ("", []),
    ],
)
def test_what_json_files_hold(tmp_path: Path, text: str, rows: list[Any]):
    (tmp_path / "x.json").write_text(text)
    assert read(tmp_path / "x.json") == rows


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.floats(allow_nan=False)) | st.integers()),
       st.integers(1, 50), st.sampled_from([None, 0, 3]))  # fmt: skip
def test_a_list_is_read_piece_by_piece(rows: list[Any], chunk: int, indent: int | None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "_CHUNK", chunk)
        assert list(row_files._items(io.StringIO(json.dumps(rows, indent=indent)))) == rows


def test_other_encodings_of_json(tmp_path: Path):
    (tmp_path / "x.json").write_text(json.dumps(ROWS), encoding="utf-16")
    assert read(tmp_path / "x.json") == ROWS


def test_long_cells_and_ragged_lines(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text(f"a,b\n{'x' * 200_000},1\n2\n3,4,5\n")
    assert read(path) == [{"a": "x" * 200_000, "b": "1"}, {"a": "2", "b": None}, {"a": "3", "b": "4", None: ["5"]}]


def test_large_tables_are_read_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_files, "_SLICE", 7)
    pl.DataFrame({"a": range(20), "b": range(20)}).write_parquet(tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet", ("a", "none")) == [{"a": n} for n in range(20)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b'[{"a": 1}, {"a": }]', "as JSON: item 1: Expecting value"),
        ("x.json", b'[{"a": 1} {"a": 2}]', "as JSON: item 0: no comma behind it"),
        ("x.json", b'[{"a": 1},', "as JSON: item 1: the list does not end"),
        ("x.json", b'{"a": 1', "as JSON: Expecting ',' delimiter: line 1"),
        ("x.json", '["é"]'.encode("latin-1"), "as JSON: not UTF-8"),
        ("x.csv", "a\né\n".encode("latin-1"), "as CSV: not UTF-8"),
        ("x.csv", b'a\n"never closed\n', "as CSV: unexpected end of data"),
        ("x.csv.gz", b"no gzip", "as CSV: Not a gzipped file"),
        ("x.parquet", b"no parquet", "as Parquet"),
        ("x.parquet.gz", gzip.compress(b"no parquet", mtime=0), "as Parquet"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"data: .*{name}: cannot be read {message}") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
