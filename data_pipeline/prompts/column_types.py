"""Columns that change their type between the files of one folder, which make it no table."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from etils import epath

from data_pipeline.prompts import row_files
from fusejax.common.cli import UserError

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", type(None): "empty"}
_ORDER = ["text", "a number", "true or false", "a list", "an object"]
_NESTED = 4
"""Levels of lists and objects that are looked into."""


def change(files: Sequence[epath.Path], rows: int | None = None) -> str | None:
    """What changes, in words, naming the column and two files; None if nothing does.

    Args:
      files: of one folder, in order; those that are no files of rows are left out.
      rows: how many rows of each file to read; None for all.
    """
    found: dict[str, dict[str, epath.Path]] = {}
    columns: dict[str, epath.Path] = {}
    read: list[epath.Path] = []
    for file in filter(row_files.is_row_file, files):
        try:
            types = _kinds(file, rows)
        except UserError:
            continue
        read.append(file)
        for column, kind in types:
            found.setdefault(column, {}).setdefault(kind, file)
            columns.setdefault(column, file)
    for column, kinds_of in sorted(found.items()):
        kinds = [kind for kind in _ORDER if kind in kinds_of]
        if len({kinds_of[kind] for kind in kinds}) > 1:
            places = " and ".join(f"{kind} in {kinds_of[kind].name}" for kind in kinds)
            return f"the column {column!r} is {places}"
    return _missing(columns, found, read) if rows is None else None


def _missing(
    columns: dict[str, epath.Path], found: dict[str, dict[str, epath.Path]], read: list[epath.Path]
) -> str | None:
    """What the first file lacks: its rows decide what the others may have."""
    for column, file in sorted(columns.items()):
        if file != read[0] and "." not in column and "[]" not in column:
            return f"the column {column!r} is in {file.name}, but not in {read[0].name}"
        others = {kind: place for kind, place in found[column].items() if kind != "empty"}
        if found[column].get("empty") == read[0] and read[0] not in others.values() and others:
            kind, place = next(iter(others.items()))
            return f"the column {column!r} is empty in {read[0].name} and {kind} in {place.name}"
    return None


def _kinds(file: epath.Path, rows: int | None) -> set[tuple[str, str]]:
    """(column, type) of all that a file has; of a CSV file, a column is of numbers if all its cells are."""
    kinds: set[tuple[str, str]] = set()
    of_text = ".csv" in file.name
    for _, row in islice(row_files.rows(file, "data"), rows):
        if isinstance(row, dict):
            for column, value in row.items():
                kinds.update(_types(str(column), _cell(value) if of_text else value, 0))
    if of_text:
        numbers = {column for column, kind in kinds if kind == "a number"}
        texts = {column for column, kind in kinds if kind == "text"}
        kinds -= {(column, "a number") for column in numbers & texts}
    return kinds


def _cell(text: str | None) -> Any:
    try:
        return None if text is None else float(text)
    except (ValueError, TypeError):
        return text


def _types(column: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        yield column, "a list"
        parts = [(f"{column}[]", item) for item in value]
    elif isinstance(value, dict):
        yield column, "an object"
        parts = [(f"{column}.{name}", item) for name, item in value.items()]
    else:
        yield column, _KINDS.get(type(value), type(value).__name__)
        return
    if depth < _NESTED:
        for name, item in parts:
            yield from _types(name, item, depth + 1)
