"""Which tokens begin, end and pad an answer, as a checkpoint's files say."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fusejax.common.cli import UserError
from fusejax.models.huggingface.checkpoint import read_json

_NAME = "generation_config.json"


def stop_ids(directory: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends an answer: the tokenizer's EOS and those that the checkpoint's files name.

    Raises:
      UserError: there is none, or a file is broken.
    """
    found: set[Any] = {tokenizer.eos_token_id}
    for name in ("config.json", _NAME):
        path = directory / name
        named = read_json(path).get("eos_token_id") if path.is_file() else None
        found |= set(named if isinstance(named, list) else [named])
    found.discard(None)
    if not found:
        raise UserError(f"{directory}: neither tokenizer nor config.json nor {_NAME} names an EOS token")
    return found


def generation_config(directory: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The checkpoint's `generation_config.json`, or where it has none, what follows from its other files.

    Raises:
      UserError: as `stop_ids`, or the file is not JSON.
    """
    if (directory / _NAME).is_file():
        return read_json(directory / _NAME)
    config = read_json(directory / "config.json")
    values = {
        name: getattr(tokenizer, name) if config.get(name) is None else config[name]
        for name in ("bos_token_id", "pad_token_id")
    }
    ends = sorted(stop_ids(directory, tokenizer))
    values["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return {name: value for name, value in values.items() if value is not None}
