"""What a checkpoint holds beside its weights, all of it checked before anything else reads it.

The table below names the files, how large each may be, and the values of those of their keys that are read here or by
transformers.
"""

import dataclasses
from pathlib import Path
from typing import Any

from etils.epath.typing import PathLike

from fusejax.common import small_files
from fusejax.common.cli import UserError
from fusejax.common.small_files import ANYTHING, FLAG, NULL, TEXT, Kind, either, list_of, number, object_of, whole
from fusejax.models.decoder.config import KINDS, TOKEN_IDS

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "generation_config.json",
)
"""What belongs to a tokenizer, or to generating with it; everything else of a checkpoint is weights and config.json."""

_VOCABULARY = 2**28
"""Bytes of a file with a vocabulary; the largest that are published have 35 million."""


@dataclasses.dataclass(frozen=True)
class _Json:
    """A JSON file: the kinds of its values, by key or of all keys, and its size in bytes."""

    kinds: dict[str, Kind] | Kind
    limit: int = small_files.LIMIT


_TOKEN = either(TEXT, object_of(ANYTHING), NULL)
_TOKENS = either(list_of(either(TEXT, object_of(ANYTHING))), object_of(ANYTHING), NULL)
_COUNT = either(whole(0, 2**31 - 1), NULL)
_JSON_FILES = {
    "config.json": _Json(KINDS),
    "generation_config.json": _Json(
        {
            "bos_token_id": TOKEN_IDS,
            "eos_token_id": TOKEN_IDS,
            "pad_token_id": either(whole(-1, 2**31 - 1), NULL),
            "do_sample": either(FLAG, NULL),
            "temperature": either(number(0, 1e6), NULL),
            "top_k": either(whole(-1, 2**31 - 1), NULL),
            "top_p": either(number(0, 1), NULL),
            "repetition_penalty": either(number(0, 1e6, above=True), NULL),
            "max_length": _COUNT,
            "max_new_tokens": _COUNT,
        }
    ),
    "tokenizer_config.json": _Json(
        {
            **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token", "mask_token"), _TOKEN),
            "additional_special_tokens": _TOKENS,
            "extra_special_tokens": _TOKENS,
            "added_tokens_decoder": either(object_of(object_of(ANYTHING)), NULL),
            "add_bos_token": either(FLAG, NULL),
            "add_eos_token": either(FLAG, NULL),
            "chat_template": either(TEXT, list_of(object_of(TEXT)), object_of(TEXT), NULL),
            "model_max_length": either(number(-1, 1e40), NULL),
            "tokenizer_class": either(TEXT, NULL),
        }
    ),
    "special_tokens_map.json": _Json(either(_TOKEN, _TOKENS)),
    "added_tokens.json": _Json(whole(0, 2**31 - 1)),
    "tokenizer.json": _Json({"model": object_of(ANYTHING), "added_tokens": either(list_of(_TOKEN), NULL)}, _VOCABULARY),
    "vocab.json": _Json(whole(0, 2**31 - 1), _VOCABULARY),
}


def check_files(directory: Path) -> None:
    """Checks every file of a checkpoint that a tokenizer is made of, and `generation_config.json`.

    Raises:
      UserError: one is not what its name says.
    """
    for path in tokenizer_files(directory):
        try:
            if path.name in _JSON_FILES:
                read_values(path)
            elif path.suffix in (".jinja", ".txt"):
                small_files.read_text(path, _VOCABULARY if path.suffix == ".txt" else small_files.LIMIT)
            elif not path.is_file() or path.stat().st_size > _VOCABULARY:
                raise UserError(f"{path}: not a regular file, or one of more than {_VOCABULARY:,} bytes")
        except FileNotFoundError:
            raise UserError(f"{path}: a link to nothing") from None
    if (directory / "tokenizer.model").exists() and not (directory / "tokenizer.json").exists():
        _check_sentencepiece(directory)


def _check_sentencepiece(directory: Path) -> None:
    """Checks that transformers can make a tokenizer of `tokenizer.model` alone, and the right one.

    Without its class it would split text in another way than the model has learned, and say nothing.
    """
    path = directory / "tokenizer.model"
    try:
        import sentencepiece  # noqa: F401
    except ImportError:
        raise UserError(f"{path}: without tokenizer.json it needs a package: pip install sentencepiece") from None
    names = [directory / name for name in ("tokenizer_config.json", "config.json")]
    if not any(read_values(name).get("tokenizer_class") for name in names if name.exists()):
        raise UserError(f"{path}: without tokenizer.json, its tokenizer_class must be named in tokenizer_config.json")


def tokenizer_files(directory: Path) -> list[Path]:
    """Those of a checkpoint's files that match `TOKENIZER_FILES`, but for folders of such names, and programs."""
    found = {path for pattern in TOKENIZER_FILES for path in directory.glob(pattern)}
    return sorted(path for path in found if not path.is_dir() and path.suffix != ".py")


def read_values(path: PathLike) -> dict[str, Any]:
    """The object in one of a checkpoint's JSON files, its values checked if the table has the file's name.

    Raises:
      FileNotFoundError: no such file.
      UserError: no JSON object is in it, or a value is wrong.
    """
    table = _JSON_FILES.get(Path(path).name, _Json({}))
    values = small_files.read_object(path, table.limit)
    kinds = dict.fromkeys(values, table.kinds) if isinstance(table.kinds, Kind) else table.kinds
    try:
        small_files.check(values, kinds)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return values
