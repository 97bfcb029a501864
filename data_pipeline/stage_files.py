"""The files between stages: written whole or not at all, read with clear errors, made again only when their inputs have
changed. All of them may be in `gs://`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import polars as pl
from etils import epath

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import local_copy, replacing, write_text

ROWS_A_GROUP = 16_384
"""Rows of a Parquet row group, the least that a reader holds in memory: with long texts, Polars' default of 262,144
rows would be most of a gigabyte."""


def write_parquet(frame: pl.DataFrame, path: epath.Path) -> None:
    with replacing(path) as file:
        frame.write_parquet(file, row_group_size=ROWS_A_GROUP)


def read_parquet(path: epath.Path, columns: Sequence[str], made_by: str) -> pl.DataFrame:
    """All columns of a table that must have at least `columns`.

    Raises:
      UserError: no such file, no Parquet, or a column is missing.
    """
    check_parquet(path, columns, made_by)
    try:
        with local_copy(path) as local:
            return pl.read_parquet(local, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {one_line(error)}") from None


def check_parquet(path: epath.Path, columns: Sequence[str], made_by: str) -> None:
    """Raises the errors of `read_parquet` that the file's metadata shows, without reading the rows."""
    if not path.exists():
        raise UserError(f"{path}: no such file; run the stage {made_by!r} first")
    try:
        with local_copy(path) as local:
            present = pl.read_parquet_schema(local)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {one_line(error)}") from None
    missing = [column for column in columns if column not in present]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; columns are {', '.join(present)}")


def fingerprint(*parts: Any) -> str:
    """SHA-256 of JSON values and of the contents of files given as paths."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, PurePath):
            with local_copy(part) as local, local.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(json.dumps(part, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def once(
    output_dir: epath.Path, step: str, inputs: str, outputs: Sequence[epath.Path], work: Callable[[], str]
) -> None:
    """Runs `work` and prints the summary that it returns, unless it ran before with the same inputs.

    Args:
      output_dir: the run's directory; `.state/{step}.json` in it records the inputs.
      step: name of the stage, or of a part of it.
      inputs: a `fingerprint` of everything that the outputs depend on.
      outputs: files that exist when the step is done.
    """
    state = output_dir / ".state" / f"{step}.json"
    if state.exists() and all(path.exists() for path in outputs):
        done = json.loads(state.read_text())
        if done["inputs"] == inputs:
            print(f"{step}: up to date: {done['summary']}", flush=True)
            return
    if state.exists():
        state.unlink()
    summary = work()
    write_text(state, json.dumps({"inputs": inputs, "summary": summary}, ensure_ascii=False))
    print(f"{step}: {summary}", flush=True)


def forget(output_dir: epath.Path, step: str) -> None:
    """Has `once` run the step again next time, with whatever inputs."""
    (output_dir / ".state" / f"{step}.json").unlink(missing_ok=True)


def stable_hash(seed: int, *names: str) -> int:
    """A random 63-bit number that depends on the arguments alone: the same on any machine, in any order."""
    key = "\0".join((str(seed), *names)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
