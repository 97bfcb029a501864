"""What a run is made from, for people: its base model and data, with their licences where they are named.

A run keeps it in `origin.json`, so that its export can say so in the model card, wherever data and base have gone by
then. Nothing is computed from it. Of a run that starts from another run, the earlier one is a stage before.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from etils import epath
from etils.epath.typing import PathLike

from fusejax.common import small_files
from fusejax.common.cli import UserError, one_line
from fusejax.common.files import write_text
from fusejax.common.small_files import ANYTHING, NULL, TEXT, Kind, either, list_of, object_of, whole
from fusejax.config import TrainConfig
from fusejax.data.records import MANIFEST
from fusejax.models.huggingface.export_files import CARD
from fusejax.training.start import StartingModel

NAME = "origin.json"
_MANIFEST_BYTES = 2**28
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def keep_origin(config: TrainConfig, model: StartingModel) -> None:
    """Writes `origin.json` into the run's folder.

    Args:
      config: the run's.
      model: what it starts from.
    """
    before = (
        read_origin(epath.Path(model.source))
        if model.is_run
        else {"base": describe(model.source, model.directory), "stages": []}
    )
    data = _data(epath.Path(config.data.train))
    if config.fusion is not None:
        data["fused"] = dict(_source(epath.Path(path), "distributions") for path in config.fusion.sidecars)
    if config.fused_reference is not None:
        split = epath.Path(config.data.train).name
        folders = map(epath.Path, config.fused_reference.sources)
        data["likelihoods"] = dict(_source(folder / split, "likelihoods") for folder in folders)
    stage = {"config": config.model_dump(mode="json"), "data": data}
    origin = {"base": before["base"], "stages": [*before["stages"], stage]}
    write_text(epath.Path(config.output_dir) / NAME, json.dumps(origin, indent=2, ensure_ascii=False) + "\n")


def read_origin(run: epath.Path) -> dict[str, Any]:
    """`{"base": {"name", "hub_id", "license"}, "stages": [{"config", "data"}, ...]}`, where what is not known is None.

    Of a run of an earlier release, which has no `origin.json`, it is what follows from its `run.yaml`.

    Raises:
      UserError: the file is broken.
    """
    path = run / NAME
    if path.exists():
        origin = small_files.read_object(path, _MANIFEST_BYTES)
        _check(path, origin, {"base": _OBJECT, "stages": list_of(_OBJECT)})
        _check(path, origin["base"], _BASE)
        for stage in origin["stages"]:
            _check(path, stage, {"config": _OBJECT, "data": _OBJECT})
            _check(path, {**dict.fromkeys(_DATA), **stage["data"]}, _DATA)
        return origin
    path = run / "run.yaml"
    if not path.exists():
        return {"base": {"name": None, "hub_id": None, "license": None}, "stages": []}
    try:
        values = yaml.safe_load(small_files.read_text(path))
        config = values["config"]
        name = str(config["model"])
    except (yaml.YAMLError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: not what a run writes ({one_line(error)})") from None
    return {
        "base": {"name": name.rstrip("/").rpartition("/")[2], "hub_id": _hub_id(name), "license": None},
        "stages": [{"config": config, "data": {}}],
    }


_OBJECT, _NAME = object_of(ANYTHING), either(TEXT, NULL)
_OBJECT_OR_NONE = either(_OBJECT, NULL)
_BASE = dict.fromkeys(("name", "hub_id", "license"), _NAME)
_DATA = {
    "examples": either(whole(0, 2**62), NULL),
    "by_dataset": _OBJECT_OR_NONE,
    "by_source_model": _OBJECT_OR_NONE,
    "models": _OBJECT_OR_NONE,
    "licenses": _OBJECT_OR_NONE,
    "hub_ids": either(list_of(TEXT), NULL),
    "license": _NAME,
    "card": _NAME,
}


def _check(path: epath.Path, values: dict[str, Any], kinds: dict[str, Kind]) -> None:
    if missing := kinds.keys() - values.keys():
        raise UserError(f"{path}: no {sorted(missing)[0]}")
    try:
        small_files.check(values, kinds)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def describe(source: str, directory: Path) -> dict[str, str | None]:
    """Name, Hub id and licence of a checkpoint, as far as they are known.

    Args:
      source: as a user named it.
      directory: where its files are.
    """
    named = small_files.read_object(directory / "config.json").get("_name_or_path")
    hub_id = _hub_id(source) or (_hub_id(named) if isinstance(named, str) else None)
    return {
        "name": hub_id or epath.Path(source.rstrip("/")).name,
        "hub_id": hub_id,
        "license": _license(directory / CARD),
    }


def _hub_id(source: str) -> str | None:
    """The source, if it is the Hub's name for something, rather than a path."""
    return source if _HUB_ID.fullmatch(source) and not source.startswith(".") and not Path(source).exists() else None


def _license(card: PathLike) -> str | None:
    """What the YAML between two lines of dashes at the beginning of a card names, if there is any that can be read."""
    try:
        text = small_files.read_text(card)
        values = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (FileNotFoundError, UserError, yaml.YAMLError, IndexError, RecursionError):
        return None
    named = (values.get("license_name") or values.get("license")) if isinstance(values, dict) else None
    return named if isinstance(named, str) else None


def _data(train: epath.Path) -> dict[str, Any]:
    """What manifest and data card say of a run's training data."""
    manifest = small_files.read_object(train.parent / MANIFEST, _MANIFEST_BYTES)
    split = manifest["splits"][train.name]
    config = _object(manifest.get("config"))
    entries = [entry for key in ("prompts", "data") if isinstance(config.get(key), list) for entry in config[key]]
    paths = {entry["path"] for entry in map(_object, entries) if isinstance(entry.get("path"), str)}
    card = train.parent.parent / "data_card.md"
    return {
        "examples": split["examples"],
        **{key: _object(split.get(key)) for key in ("by_dataset", "by_source_model")},
        **{key: _object(manifest.get(key)) for key in ("models", "licenses")},
        "hub_ids": sorted(filter(_hub_id, paths)),
        "license": _license(card),
        "card": small_files.read_text(card) if card.exists() else None,
    }


def _source(split: epath.Path, stage: str) -> tuple[str, str]:
    """Name and model of the source that a split is of, as the stage of the data pipeline wrote them."""
    facts = small_files.read_object(split.parent / MANIFEST, _MANIFEST_BYTES)[stage][split.name]
    return facts["source"], str(facts.get("model", facts["source"]))


def _object(value: Any) -> dict[str, Any]:
    """The value if it is an object; nothing else of a manifest is worth refusing data for."""
    return value if isinstance(value, dict) else {}
