"""Sidecars: what source models would have said at each place of the answers that are trained on, as shards.

The data pipeline's stage `distributions` writes them, one folder for each source: records of the kind `distributions`,
the source's `tokenizer.json`, and in `manifest.json` what the source is and which SFT shards the answers are of.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from etils import epath
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import local_copy
from fusejax.data.records import MANIFEST, Shards, open_shards


class _Facts(BaseModel):
    """What fusion needs of the manifest's `distributions`, for a split."""

    source: str
    tokenizer_sha256: str
    end_of_turn: list[int]
    data_fingerprint: str


@dataclasses.dataclass(frozen=True)
class Sidecar:
    shards: Shards
    source: str
    """The source's name."""
    tokenizer_file: epath.Path
    end_of_turn: list[int]
    """The source's ids that end a turn."""
    fingerprint: str
    """A hash of the records, the tokenizer and the ends of turns."""

    def tokenizer(self) -> PreTrainedTokenizerBase:
        with local_copy(self.tokenizer_file) as file:
            return PreTrainedTokenizerFast(tokenizer_file=str(file))


def open_sidecars(paths: Sequence[str], data: Shards) -> list[Sidecar]:
    """Opens the sidecars of a split of SFT data.

    Raises:
      UserError: one is none, is of other data, or of a source that another one is of.
    """
    sidecars = [_open(path, data) for path in paths]
    for i, each in enumerate(sidecars):
        if each.source in [before.source for before in sidecars[:i]]:
            raise UserError(f"fusion.sidecars {each.shards.name}: there is another one of the source {each.source}")
    return sidecars


def _open(path: str, data: Shards) -> Sidecar:
    where = f"fusion.sidecars {path}"
    try:
        shards = open_shards(path)
    except UserError as error:
        raise UserError(f"fusion.sidecars: {error}") from None
    if shards.kind != "distributions":
        raise UserError(f"{where} holds records of the kind {shards.kind}, not distributions")
    split = epath.Path(path)
    try:
        manifest = json.loads((split.parent / MANIFEST).read_text())
        facts = _Facts.model_validate(manifest["distributions"][split.name])
        tokenizer_file = split.parent / "tokenizer.json"
        found = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} is not as the stage distributions writes it: {one_line(error)}") from None
    if found != facts.tokenizer_sha256:
        raise UserError(f"{where}: {tokenizer_file} is not the one that it was made with (SHA-256)")
    if facts.data_fingerprint != data.fingerprint:
        raise UserError(f"{where} is about the answers of other data than data.train {data.name}: make it again")
    parts = json.dumps([shards.fingerprint, found, facts.end_of_turn])
    fingerprint = hashlib.sha256(parts.encode()).hexdigest()
    return Sidecar(shards, facts.source, tokenizer_file, facts.end_of_turn, fingerprint)
