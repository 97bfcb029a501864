"""Rows of one data file: JSON Lines, JSON, CSV or Parquet, each also gzipped.

Only Parquet knows types. A cell of a CSV file is text, or None if it is empty: whether `7` is a number, and what a
number looked like, only the reader of the column can know.
"""

import contextlib
import csv
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from etils import epath

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import ROW_SUFFIXES, local_copy

_KINDS = {".jsonl": "JSON Lines", ".json": "JSON", ".csv": "CSV", ".parquet": "Parquet"}
_CHUNK = 2**20
"""Characters of a JSON list read at a time."""
_SLICE = 65_536
"""Rows of a Parquet file held at a time."""
_BLANK = re.compile(r"[ \t\r\n]*")
_File = io.BufferedReader | gzip.GzipFile


def is_row_file(path: epath.Path | Path) -> bool:
    """Whether the file's name is that of a kind of file that `rows` reads."""
    return path.name.endswith(ROW_SUFFIXES)


def rows(path: epath.Path, key: str, columns: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Pairs of (location, row); a line that is not JSON comes as plain text.

    Args:
      path: the file, on disk or in a bucket.
      key: names the part of the config in errors.
      columns: the columns needed, if known: of a Parquet file, no others are then read.

    Raises:
      UserError: it cannot be read.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    try:
        with local_copy(path) as local:
            if kind == ".parquet":
                with _unpacked(local) as plain:
                    found = enumerate(_parquet(plain, columns))
                    yield from ((f"{path}:{number}", row) for number, row in found)
                return
            with _opened(local) as file:
                read = {".jsonl": _lines, ".json": _json, ".csv": _csv}[kind]
                yield from ((f"{path}:{number}", row) for number, row in read(file))
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path}: cannot be read as {_KINDS[kind]}: not UTF-8: {one_line(error)}") from None
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, _BrokenList, pl.exceptions.PolarsError) as error:
        raise UserError(f"{key}: {path}: cannot be read as {_KINDS[kind]}: {one_line(error)}") from None


def _opened(path: Path) -> _File:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A file for random access: itself, or what is gzipped in it, for as long as the block lasts."""
    if path.suffix != ".gz":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fusejax-") as folder:
        plain = Path(folder) / path.stem
        with gzip.open(path) as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file, 2**24)
        yield plain


def _lines(file: _File) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _value(line)


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line.decode(errors="replace").rstrip("\r\n")


def _json(file: _File) -> Iterator[tuple[int, Any]]:
    """The items of a list; or of an object's list `data`; or the object itself.

    Many a file of this name holds JSON Lines, so these are read as well.
    """
    head = file.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"["):
        yield from enumerate(_items(io.TextIOWrapper(file, "utf-8-sig")))
        return
    first = next((line for line in file if line.strip()), b"")
    rest = (line for line in file if line.strip())
    if isinstance(_value(first), dict) and (second := next(rest, None)) is not None:
        yield from enumerate(map(_value, [first, second]))
        yield from enumerate(map(_value, rest), 2)
    elif first:
        whole = json.loads(first + b"".join(rest))
        items = whole.get("data") if isinstance(whole, dict) else whole
        yield from enumerate(items if isinstance(items, list) else [whole])


class _BrokenList(Exception):
    """What is wrong with a JSON list, and where; the decoder's own places count from somewhere in the middle."""


def _items(text: io.TextIOBase) -> Iterator[Any]:
    """The items of the JSON list that the text is, in memory one at a time."""
    decoder, number = json.JSONDecoder(), 0
    buffer, at = text.read(_CHUNK), 0

    def skip_blank(start: int) -> int:
        """Where the next sign is; reads more if it is not there yet, and raises if it never comes."""
        nonlocal buffer
        while (found := _BLANK.match(buffer, start).end()) == len(buffer):  # type: ignore[union-attr]
            if not (more := text.read(_CHUNK)):
                raise _BrokenList("the list does not end")
            buffer += more
        return found

    at = skip_blank(skip_blank(at) + 1)  # behind the bracket
    if buffer[at] == "]":
        return
    decoded = 0
    while True:
        try:
            at = skip_blank(at)
            decoded = len(buffer)
            value, end = decoder.raw_decode(buffer, at)
            end = skip_blank(end)
            if buffer[end] not in ",]":
                raise _BrokenList("no comma behind it")
        except (json.JSONDecodeError, _BrokenList) as error:
            # Perhaps only the item's beginning had been read.
            grown = len(buffer) > decoded
            buffer, at = buffer[at:], 0
            if (more := text.read(max(_CHUNK, len(buffer)))) or grown:
                buffer += more
                continue
            raise _BrokenList(f"item {number}: {getattr(error, 'msg', error)}") from None
        yield value
        number += 1
        if buffer[end] == "]":
            return
        at = end + 1


def _csv(file: _File) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)  # by default a cell has at most 131,072 characters
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
    for row in reader:
        yield reader.line_num, {column: cell if cell != "" else None for column, cell in row.items()}


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    present = pl.read_parquet_schema(path)
    table = pl.scan_parquet(path, glob=False).select([name for name in columns if name in present] or pl.all())
    height = table.select(pl.len()).collect().item()
    for start in range(0, height, _SLICE):
        yield from table.slice(start, _SLICE).collect().iter_rows(named=True)
