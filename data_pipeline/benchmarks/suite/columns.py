"""Columns of data files, which have several names in the wild."""

from collections.abc import Iterator, Mapping, Sequence

from data_pipeline.benchmarks.benchmark import DataFile, Row
from fusejax.common.cli import UserError


def numbered(
    benchmark: str, files: Mapping[str, DataFile], rows: Mapping[str, Sequence[Row]]
) -> Iterator[tuple[str, int, Row]]:
    """The rows of the first data file: (where, for errors; number from 0; row)."""
    name = next(iter(files))
    named = benchmark if name == benchmark else f"{benchmark}: {name}"
    for number, row in enumerate(rows[name]):
        yield at(named, number), number, row


def at(file: str, number: int) -> str:
    """A row, for errors; `number` is from 0."""
    return f"{file}: row {number + 1}"


def text(row: Row, where: str, *names: str) -> str:
    """The text in the first of these columns that holds one; numbers in figures, 27.0 as 27.

    Raises:
      UserError: none does.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value
    raise UserError(f"{where}: no text in {' or '.join(names)}; its columns are {', '.join(row) or 'none'}")


def number(row: Row, where: str, name: str) -> float:
    """A number, or a text of one, as files of comma-separated values have.

    Raises:
      UserError: it is missing or something else.
    """
    try:
        return float(row[name])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where}: no number in {name}; its columns are {', '.join(row) or 'none'}") from None


def texts(row: Row, where: str, name: str, count: int) -> list[str]:
    """A list of exactly so many texts.

    Raises:
      UserError: it is missing or something else.
    """
    value = row.get(name)
    if not isinstance(value, list) or len(value) != count or not all(isinstance(each, str) for each in value):
        raise UserError(f"{where}: no list of {count} texts in {name}; its columns are {', '.join(row) or 'none'}")
    return value


def identity(row: Row, number: int, taken: set[str], where: str, *names: str) -> str:
    """What a row is called in the first of these columns that it has, else its number; added to those taken.

    Raises:
      UserError: another row is called so.
    """
    value = next((row[name] for name in names if row.get(name) not in (None, "")), number)
    found = str(value)
    if found in taken:
        raise UserError(f"{where}: {found} has been the name of a row before")
    taken.add(found)
    return found
