"""The answers of one source, kept for good under their keys, whether the current config uses them or not.

The store is a folder of Parquet part files, which are added and never changed. On disk, each answer is first appended
to a journal beside them the moment it is finished, a line of JSON for each list of rows; every so often, and when the
store is opened or closed, the journal becomes a part file. A process killed at any moment leaves a journal whose last
line may be torn. That line is dropped: its answers were not yet reported as kept. A process killed between writing the
part file and deleting the journal leaves both, with the same rows; readers take each key once.

Objects in a bucket cannot be appended to: there, part files are written every minute, and a killed run loses that much.
"""

import fcntl
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import polars as pl
from etils import epath

from data_pipeline import stage_files
from fusejax.common.cli import UserError
from fusejax.common.files import is_remote

PART_ROWS = 4096
REMOTE_SECONDS = 60.0


class AnswerStore:
    """A source's answers: the keys there are, more of them, and their table. To be used in a `with` block."""

    def __init__(self, folder: epath.Path, schema: pl.Schema, sometimes: pl.Schema | None = None):
        """Opens the folder, which need not exist, and recovers what a killed process left.

        Args:
          folder: of this source alone.
          schema: of the rows; `key` is one of the columns.
          sometimes: columns that rows may lack; a table has those in which one of its rows has a value.

        Raises:
          UserError: another process has it open, or a part file is not of this schema.
        """
        self._folder, self._schema, self._sometimes = folder, schema, sometimes or pl.Schema()
        self._rows: list[dict[str, Any]] = []
        self._sealed_at = time.monotonic()
        self._journal: Path | None = None
        self._lock: TextIO | None = None
        if not is_remote(folder):
            local = Path(folder)
            local.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(local / ".lock")
            self._journal = local / "journal.jsonl"
            self._recover(self._journal)
        self.keys: set[str] = set()
        for path in folder.glob("*.parquet"):
            self.keys.update(_part(path, schema, self._sometimes)["key"])

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Keeps all of the rows, or none if the process is killed meanwhile; their keys are new."""
        text = json.dumps(rows, ensure_ascii=False) + "\n"
        try:
            line = text.encode()
        except UnicodeEncodeError:  # Half of a surrogate pair: JSON from a server can hold it, UTF-8 cannot.
            line = text.encode(errors="replace")
            rows = json.loads(line)
        if self._journal is not None:
            # No fsync per line: what the operating system has got survives the process, though not a power cut.
            with self._journal.open("ab", buffering=0) as file:
                while line:
                    line = line[file.write(line) :]
        self._rows += rows
        self.keys.update(row["key"] for row in rows)
        waited = is_remote(self._folder) and time.monotonic() - self._sealed_at > REMOTE_SECONDS
        if len(self._rows) >= PART_ROWS or waited:
            self._seal()

    def adopt(self, frame: pl.DataFrame) -> None:
        """Takes over the rows of a table whose keys are new here."""
        new = frame.filter(~pl.col("key").is_in(list(self.keys)))
        if len(new):
            self._write_part(new)
            self.keys.update(new["key"])

    def table(self) -> pl.DataFrame:
        """All rows, each key once."""
        self._seal()
        return read(self._folder, self._schema, self._sometimes)

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            self._seal()
        finally:
            if self._lock is not None:
                self._lock.close()

    def _recover(self, journal: Path) -> None:
        self._rows = _journalled(journal)
        self._seal()
        journal.unlink(missing_ok=True)

    def _seal(self) -> None:
        self._sealed_at = time.monotonic()
        if not self._rows:
            return
        self._write_part(_table(self._rows, self._schema, self._sometimes))
        self._rows = []
        if self._journal is not None:
            self._journal.unlink()

    def _write_part(self, frame: pl.DataFrame) -> None:
        # Named by what is in it: the same rows, moved twice, are one file.
        stage_files.write_parquet(
            frame, self._folder / f"{stage_files.fingerprint(frame['key'].to_list())[:32]}.parquet"
        )


def read(folder: epath.Path, schema: pl.Schema, sometimes: pl.Schema | None = None) -> pl.DataFrame:
    """All rows of a store, each key once, in no order; none if there is no store. Another process may be adding to it.

    Args:
      folder: of the source.
      schema: of the rows.
      sometimes: as of the store.

    Raises:
      UserError: a part file is not of this schema.
    """
    more = sometimes or pl.Schema()
    # The journal first: rows that become a part meanwhile are then found twice, not missed.
    rows = [] if is_remote(folder) else _journalled(Path(folder) / "journal.jsonl")
    parts = [_part(path, schema, more) for path in sorted(folder.glob("*.parquet"))] if folder.exists() else []
    return pl.concat([_table(rows, schema, more), *parts], how="diagonal").unique("key", keep="first")


def _table(rows: list[dict[str, Any]], schema: pl.Schema, sometimes: pl.Schema) -> pl.DataFrame:
    some = {name: kind for name, kind in sometimes.items() if any(row.get(name) is not None for row in rows)}
    return pl.DataFrame(rows, schema=pl.Schema({**schema, **some}))


def _journalled(journal: Path) -> list[dict[str, Any]]:
    """The rows of the lines that are whole."""
    rows: list[dict[str, Any]] = []
    try:
        *lines, _ = journal.read_bytes().split(b"\n")
    except FileNotFoundError:
        return rows
    for line in lines:
        try:
            rows += json.loads(line)
        except ValueError:
            break  # Only what was written last can be damaged, by a power cut.
    # Earlier versions kept whatever count of tokens a server told.
    return [row for row in rows if not any(isinstance(value, int) and abs(value) >= 2**63 for value in row.values())]


def _part(path: epath.Path, schema: pl.Schema, sometimes: pl.Schema) -> pl.DataFrame:
    part = stage_files.read_parquet(path, schema.names(), made_by="sample")
    return part.select([*schema, *(name for name in sometimes if name in part.columns)])


def _locked(path: Path) -> TextIO:
    file = path.open("w")
    try:
        # A lock that forked processes do not inherit: an engine may outlive this process for a while.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"{path.parent}: another process is sampling this source") from None
    return file
