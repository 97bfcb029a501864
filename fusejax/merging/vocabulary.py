"""Whether two tokenizers give their tokens the same ids. Nothing else of them matters to a merge."""

from pathlib import Path
from typing import Any

from fusejax.common.cli import UserError
from fusejax.common.small_files import shown
from fusejax.models.huggingface.checkpoint_files import read_values

_FILE = "tokenizer.json"


def check_same_vocabulary(pivot: Path, target: Path, name: str) -> None:
    """Compares the vocabularies in `tokenizer.json`, where both have one; else the files `tokenizer.model`.

    Args:
      pivot: the directory of the pivot's files.
      target: that of a target's.
      name: of the target, for errors.

    Raises:
      UserError: they differ; one of the files is broken.
    """
    if (pivot / _FILE).exists() and (target / _FILE).exists():
        tokens, others = (_ids(folder / _FILE) for folder in (pivot, target))
        if tokens != others:
            token = min(token for token, _ in tokens.items() ^ others.items())
            raise UserError(
                f"target {name}: another vocabulary than the pivot's: token {shown(token)} is {_told(token, others)}, "
                f"and {_told(token, tokens)} in the pivot"
            )
        return
    models = [folder / "tokenizer.model" for folder in (pivot, target)]
    if all(model.exists() for model in models) and len({model.read_bytes() for model in models}) == 2:
        raise UserError(f"target {name}: its tokenizer.model is another than the pivot's")


def _told(token: str, ids: dict[str, int]) -> str:
    return f"number {ids[token]}" if token in ids else "missing"


def _ids(path: Path) -> dict[str, int]:
    """Every token's id, those of added tokens included."""
    values = read_values(path)
    vocabulary = values.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # of Unigram models: pairs of a token and its score, in the order of ids
        vocabulary = {pair[0]: number for number, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    if not isinstance(vocabulary, dict):
        raise UserError(f"{path}: its vocabulary {shown(vocabulary)} is neither an object nor a list")
    return vocabulary | {
        token["content"]: token["id"] for token in values.get("added_tokens") or [] if _is_added(token)
    }


def _is_added(token: Any) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int)
