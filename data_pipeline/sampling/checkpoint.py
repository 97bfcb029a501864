"""Where a source model is on disk, and which revision it is."""

import hashlib
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from fusejax.common.cli import UserError, one_line

WHOLE = 2**22
"""Bytes of a file that are hashed: all of a smaller file, samples of a larger one, since 145 GB take long to read."""
SAMPLES = 64


def locate(model: str, revision: str | None = None, weights: bool = True) -> Path:
    """The directory of a local checkpoint, or of the Hub's snapshot of one.

    Args:
      model: directory or Hub id.
      revision: of a Hub id: branch, tag or commit.
      weights: whether weights are needed, besides tokenizer and configuration.

    Raises:
      UserError: neither exists, or a directory is given a revision.
    """
    path = Path(model)
    if path.is_dir():
        if revision is not None:
            raise UserError(f"model {model}: a directory has no revision")
        if not (path / "config.json").exists():
            raise UserError(f"model {model}: the directory has no config.json")
        return path
    if path.exists() or path.is_absolute() or len(path.parts) != 2:
        raise UserError(f"model {model}: no such directory")
    patterns = ["*.json", "*.jinja", "*.model", "*.txt", *(["*.safetensors"] if weights else [])]
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        problem = one_line(error)
        raise UserError(f"model {model}: no such directory, nor a model that the Hub gives: {problem}") from None


def revision(directory: Path, served_as: str | None = None) -> str:
    """What identifies a model: the commit of a Hub snapshot; the fingerprint of any other directory.

    A directory without weights says nothing about the weights on a server: there, the server's name for them is added.

    Args:
      directory: where the checkpoint is.
      served_as: the model's name on its server, if it has one of its own.
    """
    if directory.parent.name == "snapshots":
        return directory.name
    weights = any(path.suffix in (".safetensors", ".bin") for path in directory.iterdir())
    return fingerprint(directory) if weights or served_as is None else f"{fingerprint(directory)} {served_as}"


def fingerprint(directory: Path) -> str:
    """A hash that changes when a file of the checkpoint changes: names, sizes, and contents.

    Large files count by samples spread over them, together with the name that the Hub's cache gives their contents, or
    else the time of their last change.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt", ".bin"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
                continue
            digest.update((path.resolve().name if path.is_symlink() else str(path.stat().st_mtime_ns)).encode())
            length = WHOLE // SAMPLES
            for sample in range(SAMPLES):
                file.seek((size - length) * sample // (SAMPLES - 1))
                digest.update(file.read(length))
    return digest.hexdigest()
