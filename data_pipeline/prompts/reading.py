"""Rows of files and of Hub data sets, each with its location."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from data_pipeline.config import RowsConfig
from data_pipeline.prompts import column_types, row_files
from fusejax.common.cli import UserError, note, one_line
from fusejax.common.files import is_remote

FIRST_ROWS = 1000
"""Of each file of a folder, rows whose types are compared."""


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
    known = "known are .jsonl, .json, .csv and .parquet, each also .gz"
    if path.is_dir() and is_remote(path):
        raise UserError(f"{key}: {path} is a folder; give a file: {known}")
    if path.is_dir():
        yield from _data_set(source, key, columns)
    elif row_files.is_row_file(path) and path.exists():
        yield from row_files.rows(path, key, columns)
    elif path.exists():
        raise UserError(f"{key}: {path}: unknown kind of file; {known}")
    elif path.is_absolute() or is_remote(path) or row_files.is_row_file(path) or len(path.parts) > 2:
        raise UserError(f"{key}: {path}: no such file")
    else:
        note(f"loading {source.path} ({source.split}) from the Hub or its cache")
        yield from _data_set(source, key, columns)


def _data_set(source: RowsConfig, key: str, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    try:
        import datasets  # slow to import, and only here
    except ModuleNotFoundError:
        remedy = "folders and Hub ids are read by the package datasets: pip install 'fusejax[sample]'"
        raise UserError(f"{key}: {source.path}: {remedy}") from None
    try:
        table = datasets.load_dataset(source.path, source.subset, split=source.split, revision=source.revision)
        if changed := column_types.change(files(source), FIRST_ROWS):
            note(f"{key}: {source.path}: {changed}: one of the two was turned into the other")
        if present := [column for column in columns if column in table.column_names]:
            table = table.select_columns(present)
        yield from ((f"{source.path}:{source.split}:{number}", row) for number, row in enumerate(table))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # Of a failure while it prepares the files, `datasets` says why in the cause alone.
        problem = column_types.change(files(source)) or one_line(error)
        if error.__cause__ and problem == one_line(error):
            problem += f": {one_line(error.__cause__)}"
        raise UserError(f"{key}: {source.path}: no data set that can be read: {problem}") from None
