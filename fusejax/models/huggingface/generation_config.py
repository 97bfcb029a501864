"""Which tokens begin, end and pad an answer, as a checkpoint's files say."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fusejax.common.cli import UserError
from fusejax.models.huggingface.checkpoint import read_json

_NAME = "generation_config.json"


def named_ends(directory: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer by the checkpoint's files, and the tokenizer's EOS; of a base model, maybe none.

    Raises:
      UserError: a file is broken.
    """
    found: set[Any] = {tokenizer.eos_token_id}
    for name in ("config.json", _NAME):
        path = directory / name
        named = read_json(path).get("eos_token_id") if path.is_file() else None
        found |= set(named if isinstance(named, list) else [named])
    found.discard(None)
    return found


def stop_ids(directory: Path, tokenizer: PreTrainedTokenizerBase, turn_end: int | None) -> set[int]:
    """Every token that ends an answer.

    Args:
      turn_end: the token that ends answers in training, `fusejax.data.chat.turn_end`. A base model's files may name
        another end than the chat template that it is trained with.

    Raises:
      UserError: there is none, or a file is broken.
    """
    found = named_ends(directory, tokenizer) | ({turn_end} if turn_end is not None else set())
    if not found:
        raise UserError(f"{directory}: neither tokenizer nor config.json nor {_NAME} names an EOS token")
    return found


def generation_config(directory: Path, tokenizer: PreTrainedTokenizerBase, turn_end: int | None) -> dict[str, Any]:
    """The checkpoint's `generation_config.json`, or where it has none, what follows from its other files.

    Either way `eos_token_id` holds `turn_end`, see `stop_ids`: a model that does not know it would never stop.

    Raises:
      UserError: as `stop_ids`, or the file is not JSON.
    """
    if (directory / _NAME).is_file():
        values = read_json(directory / _NAME)
        named = values.get("eos_token_id")
        ends = named if isinstance(named, list) else [] if named is None else [named]
        if not ends:
            ends = sorted(stop_ids(directory, tokenizer, turn_end))
        elif turn_end is not None and turn_end not in ends:
            ends = [*ends, turn_end]
        return {**values, "eos_token_id": ends[0] if len(ends) == 1 and not isinstance(named, list) else ends}
    config = read_json(directory / "config.json")
    values = {
        name: getattr(tokenizer, name) if config.get(name) is None else config[name]
        for name in ("bos_token_id", "pad_token_id")
    }
    ends = sorted(stop_ids(directory, tokenizer, turn_end))
    values["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return {name: value for name, value in values.items() if value is not None}
