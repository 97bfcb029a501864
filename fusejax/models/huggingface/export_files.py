"""What an export holds beside its weights: files that mean the same wherever they are."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from etils.epath.typing import PathLike

from fusejax.common.files import copy, write_text
from fusejax.models.decoder.config import ARCHITECTURES, language_model
from fusejax.models.huggingface.checkpoint_files import read_values, tokenizer_files

CARD = "README.md"
_REWRITTEN = ("tokenizer_config.json", "generation_config.json")
_LOCAL = re.compile(r"(/|~/|file:|gs://|[A-Za-z]:[\\/])\S")


def exported_config(hf_config: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
    """The `config.json` of an export: the decoder's own class, one dtype, nothing of the machine it came from.

    The dtype is `torch_dtype`: transformers 5 and vLLM read that as well as `dtype`, transformers before 4.56 nothing
    else.

    Args:
      hf_config: of the model that was started from; of a model of text and images, its language model's part is taken.
      dtype: of the weights.
    """
    values = portable(language_model(dict(hf_config)))
    values = {key: value for key, value in values.items() if key not in ("dtype", "torch_dtype")}
    return values | {"architectures": [ARCHITECTURES[values["model_type"]]], "torch_dtype": dtype.name}


def portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without `auto_map`, whose code is not exported, and without names of files and folders.

    >>> portable({"_name_or_path": "runs/a", "tokenizer_file": "/home/me/tokenizer.json", "eos_token": "</s>"})
    {'eos_token': '</s>'}
    """
    return {key: value for key, value in values.items() if key != "auto_map" and not _is_local(key, value)}


def _is_local(key: str, value: Any) -> bool:
    if key.endswith("name_or_path"):
        return True
    if not isinstance(value, str):
        return False
    if key.endswith(("_file", "_path", "_dir")):
        return "/" in value or "\\" in value
    return not key.endswith(("_token", "template")) and _LOCAL.match(value) is not None


def write_tokenizer(source: str | Path, target: PathLike) -> None:
    """Writes the tokenizer's files, with the chat template and `generation_config.json`, where there are any.

    They are copies, but for values that are not `portable`.

    Args:
      source: a directory on disk.
      target: a directory on disk or in a bucket.
    """
    for path in tokenizer_files(Path(source)):
        written = epath.Path(target) / path.relative_to(source)
        values = read_values(path) if path.name in _REWRITTEN else {}
        if portable(values) != values:
            write_json(written, portable(values))
        else:
            copy(path, written)


def write_json(path: PathLike, values: Mapping[str, Any]) -> None:
    """Writes an object as transformers does, but for the order of its keys."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
