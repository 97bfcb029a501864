"""Atomic writes of files, on disk and in `gs://` alike: a file is either whole or not there.

Paths are `epath.Path`, with pathlib's interface for both. Callers may rely only on what a bucket offers. It has objects
but no folders, so a folder exists while it holds something, creating one does nothing, and none can be renamed; a group
of files becomes valid with the one that is written last. An object is never seen in part: it appears, or replaces its
predecessor, when its upload ends. `fusejax.common.gcs` handles failures of the network.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from etils import epath
from etils.epath.typing import PathLike

from fusejax.common.cli import UserError

ROW_SUFFIXES = tuple(f"{kind}{packed}" for kind in (".jsonl", ".json", ".csv", ".parquet") for packed in ("", ".gz"))
"""How the names of data files end whose rows the data pipeline reads."""


def is_remote(path: PathLike) -> bool:
    """Whether it is in `gs://`."""
    return os.fspath(path).startswith("gs://")


def absolute(path: PathLike) -> epath.Path:
    """The absolute path; epath's own method would take `gs://` for a folder's name."""
    return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing, from first byte to last, that takes `path`'s place when the block ends well.

    A process killed at any moment leaves the old file or the new one, and so does an exception in the block. On disk
    it is a temporary file, renamed in the end; missing folders are made. To `gs://` it is sent while it is written, so
    that no file is too large.

    Raises:
      UserError: the folder cannot be made, or the bucket not be written; see `fusejax.common.gcs`.
    """
    if is_remote(path):
        with epath.Path(path).open("wb") as upload:
            yield cast(BinaryIO, upload)
        return
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent}: cannot be made: {error.strerror}") from None
    temporary = temporary_name(target)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Replaces the file's text, all or nothing."""
    with replacing(path) as file:
        file.write(text.encode())


def copy(source: PathLike, target: PathLike) -> None:
    """Replaces the file `target` by a copy of `source`, all or nothing, from disk or bucket to disk or bucket."""
    with epath.Path(source).open("rb") as original, replacing(target) as file:
        shutil.copyfileobj(original, file, 2**24)


@contextlib.contextmanager
def local_copy(path: PathLike) -> Iterator[Path]:
    """The file itself if it is on disk; else a copy there, for as long as the block lasts.

    For random access to a file, and for libraries that cannot read from buckets.

    Raises:
      FileNotFoundError: a file of a bucket is not there.
    """
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="fusejax-") as folder:
        copied = Path(folder) / epath.Path(path).name
        copy(path, copied)
        yield copied


@contextlib.contextmanager
def local_copies(folder: PathLike, patterns: Sequence[str]) -> Iterator[Path]:
    """The folder itself if it is on disk; else a temporary one with those of its files that match a pattern."""
    if not is_remote(folder):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="fusejax-") as copied:
        for path in dict.fromkeys(path for pattern in patterns for path in epath.Path(folder).glob(pattern)):
            if not path.is_dir():
                copy(path, Path(copied) / path.relative_to(epath.Path(folder)))
        yield Path(copied)


@contextlib.contextmanager
def temporary_folder(beside: PathLike) -> Iterator[Path]:
    """A folder on disk for as long as the block lasts; in the folder `beside`, for renaming, if that is on disk too."""
    if not is_remote(beside):
        Path(beside).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fusejax-", dir=None if is_remote(beside) else beside) as folder:
        yield Path(folder)


def temporary_name(path: Path) -> Path:
    """A name for a temporary file that will be renamed to `path`: hidden, and different in each process."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def check_writable(folder: PathLike, what: str) -> None:
    """Finds out, before slow work, whether files can be written below `folder`, without creating it.

    Args:
      folder: the folder, which need not exist.
      what: names it in the error, such as "output_dir".

    Raises:
      UserError: it or the folder that it would be made in is a file, or must not be written.
    """
    if is_remote(folder):
        from fusejax.common import gcs

        try:
            gcs.check_writable(epath.Path(folder) / ".writable")
        except UserError as error:
            raise UserError(f"{what} {error}") from error
        return
    path = Path(folder)
    existing = next(path for path in (path, *path.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{what} {folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{what} {folder}: {existing} cannot be written")
