"""Fields of data files' rows, with errors that name file, row and field."""

from typing import Any

from data_pipeline.benchmarks.benchmark import Row
from fusejax.common.cli import UserError


def text(row: Row, name: str, file: str, place: int) -> str:
    """A text that is not empty; `place` is the row's, from 0.

    Raises:
      UserError: it is missing or something else.
    """
    value = _present(row, name, file, place)
    if not isinstance(value, str) or not value:
        raise UserError(f"{file}: row {place + 1}: {name} is no text")
    return value


def number(row: Row, name: str, file: str, place: int) -> float:
    """A number, or a text of one, as files of comma-separated values have.

    Raises:
      UserError: it is missing or something else.
    """
    try:
        return float(_present(row, name, file, place))
    except (TypeError, ValueError):
        raise UserError(f"{file}: row {place + 1}: {name} is no number") from None


def texts(row: Row, name: str, file: str, place: int, count: int) -> list[str]:
    """A list of exactly so many texts.

    Raises:
      UserError: it is missing or something else.
    """
    value = _present(row, name, file, place)
    if not isinstance(value, list) or len(value) != count or not all(isinstance(each, str) for each in value):
        raise UserError(f"{file}: row {place + 1}: {name} is no list of {count} texts")
    return value


def _present(row: Row, name: str, file: str, place: int) -> Any:
    if row.get(name) is None:
        raise UserError(f"{file}: row {place + 1}: no {name}; fields are {', '.join(row)}")
    return row[name]
