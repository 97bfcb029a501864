"""Files that are either whole or not there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fusejax.cli import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing that takes `path`'s place when the block ends without an exception.

    A process killed at any moment leaves the old file or the new one. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces the file's text, all or nothing."""
    with replacing(path) as file:
        file.write(text.encode())


def temporary_name(path: Path) -> Path:
    """Where to write what will be renamed to `path`: hidden, and another name in each process."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def check_writable(folder: Path, what: str) -> None:
    """Finds out, before slow work, whether files can be written below `folder`. It is not made yet.

    Args:
      folder: the folder, which need not exist.
      what: names it in the error, such as "output_dir".

    Raises:
      UserError: it or the folder that it would be made in is a file, or must not be written.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{what} {folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{what} {folder}: {existing} cannot be written")
