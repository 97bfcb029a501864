"""What a run was made from, as hashes. A rerun or a sidecar that was made from anything else is refused."""

import hashlib
import json
from typing import Any

import pydantic
import yaml
from etils import epath
from transformers import PreTrainedTokenizerBase

from fusejax.common.cli import UserError
from fusejax.common.files import write_text
from fusejax.config import TrainConfig

# Keys that change neither what is computed nor its order.
_FREE_KEYS = (
    "output_dir",
    "mesh",
    "checkpoint.keep",
    "packing.rows_per_device",
    "remat",
    "preference.reference",
    "profile",
)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides a conversation's ids: vocabulary, rules, chat template, special tokens it names."""
    rules = tokenizer.backend_tokenizer.to_str()
    parts = [rules, tokenizer.get_chat_template(), tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def data_identity(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, **data: str) -> dict[str, str]:
    """What decides the run's token sequences, besides the model; `data` maps a split to its shards' fingerprint.

    It is compared with that of runs begun long ago. An entry that they do not have is a difference, so whatever is
    added here must be left out where it is as it was before.
    """
    return {
        **{f"{split} data": fingerprint for split, fingerprint in data.items()},
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_length": str(config.max_length),
        "max_prompt_length": str(config.prompt_limit),
    }


def claim(output_dir: epath.Path, config: TrainConfig, data: dict[str, str], *, resumes: bool) -> None:
    """Marks `output_dir` as this run's, or finds that it already is.

    A run that has no checkpoint yet (not `resumes`) has nothing to lose, and gives way to another.

    Raises:
      UserError: it holds checkpoints of a run with another configuration or other data.
    """
    path = output_dir / "run.yaml"
    mine = {"config": config.model_dump(), "data": data}
    found = yaml.safe_load(path.read_text()) if path.exists() else None
    differing = _differing(found, mine) if found else []
    if not resumes or not found:
        if differing or not found:
            (output_dir / "reference.npz").unlink(missing_ok=True)
        write_text(path, yaml.safe_dump(mine, sort_keys=False))
    elif differing:
        raise UserError(
            f"{output_dir} holds a run that differs in {', '.join(differing)}; "
            "choose another output_dir, or delete that run to start afresh"
        )


def _differing(found: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """What differs between the `run.yaml` of a run, perhaps of another release, and what this one would write."""
    new, old = _binding(mine["config"]), _binding(found["config"])
    try:
        # As this release reads it: a key that did not exist then has its default, one that was renamed its new name.
        read = TrainConfig.model_validate({**old, "output_dir": mine["config"]["output_dir"]})
    except pydantic.ValidationError as error:
        # It has what there no longer is, or lacks what has no default.
        differing = [".".join(map(str, each["loc"])) or each["msg"] for each in error.errors()]
    else:
        flat, theirs = _flatten(new), _flatten(_binding(read.model_dump()))
        differing = [key for key in flat | theirs if flat.get(key) != theirs.get(key)]
    data, other = mine["data"], found["data"]
    return differing + [f"the {key}" for key in data | other if data.get(key) != other.get(key)]


def _binding(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration without the keys that may change."""
    return {
        key: _binding(value, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in _FREE_KEYS
    }


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
