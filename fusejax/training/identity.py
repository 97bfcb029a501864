"""What a run was made from, as hashes. A rerun or a sidecar that was made from anything else is refused."""

import hashlib
import json
from typing import Any

import pydantic
import yaml
from etils import epath
from transformers import PreTrainedTokenizerBase

from fusejax.common.chat_template import DEFAULT_DATE, writes_date
from fusejax.common.cli import UserError, note
from fusejax.common.files import write_text
from fusejax.config import TrainConfig

# Keys that change neither what is computed nor its order.
_FREE_KEYS = (
    "output_dir",
    "mesh",
    "checkpoint.every_minutes",
    "checkpoint.keep",
    "packing.rows_per_device",
    "remat",
    "preference.reference",
    "fusion.sidecars",  # what they hold is compared instead
    "profile",
)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides a conversation's token ids: vocabulary, rules, chat template, named special tokens."""
    rules = tokenizer.backend_tokenizer.to_str()
    parts = [rules, tokenizer.get_chat_template(), tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def data_identity(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, **data: str) -> dict[str, str]:
    """What decides the run's token sequences, besides the model; `data` maps a split to its shards' fingerprint.

    It is compared with the identity that a run of an earlier release has stored, where a new entry would count as a
    difference. So an entry that is added here must be left out where it has the value implied before.
    """
    date = config.chat.date
    return {
        **{f"{split} data": fingerprint for split, fingerprint in data.items()},
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_length": str(config.max_length),
        "max_prompt_length": str(config.prompt_limit),
        **({"chat.date": str(date)} if date != DEFAULT_DATE and writes_date(tokenizer) else {}),
        **({"pairs": "ordered ones only"} if config.drop_unordered_pairs else {}),
    }


def claim(output_dir: epath.Path, config: TrainConfig, data: dict[str, str], *, resumes: bool) -> None:
    """Marks `output_dir` as this run's, or checks that it already is.

    A run without a checkpoint (not `resumes`) has nothing to lose, and is replaced by this one.

    Raises:
      UserError: `output_dir` holds checkpoints of a run with another configuration or other data.
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
        remedy = "choose another output_dir, or delete that run to start afresh"
        if differing == ["optimizer.weight_decay_on"]:
            kept = _as_it_was(found["config"])["optimizer"]["weight_decay_on"]
            remedy = f"with optimizer.weight_decay_on={kept} it goes on as it began; or {remedy}"
        raise UserError(f"{output_dir} holds a run that differs in {', '.join(differing)}; {remedy}")
    elif config.dtype.params == "bfloat16" and "moments" not in found["config"]["optimizer"]:
        note(
            f"{output_dir}: begun by a release that rounded bfloat16 parameters to nearest; from here on they are "
            "rounded stochastically"
        )


def _differing(found: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """What differs between the `run.yaml` of a run, perhaps of another release, and what this one would write."""
    new, old = _binding(mine["config"]), _binding(_as_it_was(found["config"]))
    # Keys that may change, but without which there is no configuration.
    old["output_dir"] = mine["config"]["output_dir"]
    if old.get("fusion"):
        old["fusion"]["sidecars"] = found["config"]["fusion"]["sidecars"]
    try:
        # The old configuration as this release reads it: missing keys get their defaults, renamed keys their new names.
        read = TrainConfig.model_validate(old)
    except pydantic.ValidationError as error:
        # It has keys or values that no longer exist, or lacks a required key.
        differing = [".".join(map(str, each["loc"])) or each["msg"] for each in error.errors()]
    else:
        flat, theirs = _flatten(new), _flatten(_binding(read.model_dump()))
        differing = [key for key in flat | theirs if flat.get(key) != theirs.get(key)]
    data, other = mine["data"], found["data"]
    return differing + [f"the {key}" for key in data | other if data.get(key) != other.get(key)]


def _as_it_was(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run with what an earlier release did where today's default is something else."""
    optimizer = config["optimizer"]
    if optimizer.get("weight_decay"):  # on norms and biases too; without any, there is nothing to tell
        optimizer = {"weight_decay_on": "all", **optimizer}
    return {**config, "optimizer": optimizer}


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
