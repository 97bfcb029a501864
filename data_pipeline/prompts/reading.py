"""Rows of files and of Hub data sets, each with its location."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import RowsConfig
from fusejax.common.cli import UserError, note, one_line
from fusejax.common.files import is_remote, local_copy

LOCAL_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def files(source: RowsConfig) -> list[epath.Path]:
    """The files on disk or in a bucket that the rows come from, in order; none if they come from the Hub."""
    if not is_remote(source.path) and Path(source.path).is_dir():
        found = sorted(file for file in Path(source.path).rglob("*") if file.is_file())
        return [epath.Path(file) for file in found]
    path = epath.Path(source.path)
    return [path] if path.is_file() else []


def rows(source: RowsConfig, key: str, columns: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Pairs of (location, row); a line that is not JSON comes as plain text.

    Args:
      source: a file, or a Hub data set or a folder with its files.
      key: names the part of the config in errors.
      columns: the columns needed, if known: Parquet files and Hub data sets are then read without the others.

    Raises:
      UserError: no such file or data set, or it cannot be read.
    """
    path = epath.Path(source.path)
    if path.is_dir() and is_remote(path):
        raise UserError(f"{key}: {path} is a folder; give a file ({', '.join(LOCAL_SUFFIXES)})")
    if path.is_dir():
        yield from _data_set(source, key, columns)
    elif path.name.endswith((".jsonl", ".jsonl.gz")) and path.exists():
        try:
            with local_copy(path) as local, gzip.open(local) if path.suffix == ".gz" else local.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield f"{path}:{number}", _json(line)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{key}: {path}: cannot be read: {one_line(error)}") from None
    elif path.suffix == ".parquet" and path.exists():
        frame = stage_files.read_parquet(path, [], made_by="prompts")
        frame = frame.select([column for column in columns if column in frame.columns] or pl.all())
        yield from ((f"{path}:{number}", row) for number, row in enumerate(frame.iter_rows(named=True)))
    elif path.exists():
        raise UserError(f"{key}: {path}: unknown kind of file; known are {', '.join(LOCAL_SUFFIXES)}")
    elif path.is_absolute() or is_remote(path) or path.name.endswith(LOCAL_SUFFIXES) or len(path.parts) > 2:
        raise UserError(f"{key}: {path}: no such file")
    else:
        note(f"loading {source.path} ({source.split}) from the Hub or its cache")
        yield from _data_set(source, key, columns)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line.decode(errors="replace").rstrip("\n")


def _data_set(source: RowsConfig, key: str, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    import datasets  # slow to import, and only here

    try:
        table = datasets.load_dataset(source.path, source.subset, split=source.split, revision=source.revision)
        if present := [column for column in columns if column in table.column_names]:
            table = table.select_columns(present)
        yield from ((f"{source.path}:{source.split}:{number}", row) for number, row in enumerate(table))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        problem = one_line(error)
        raise UserError(f"{key}: {source.path}: no data set that can be read: {problem}") from None
