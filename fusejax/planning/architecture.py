"""The architecture that a configuration trains, found without loading weights and, for known targets, without the Hub.

`configs/models/*.json` are the `config.json` of published models; `_name_or_path` in each is its Hub id.
"""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from etils import epath
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fusejax.common.cli import UserError, one_line
from fusejax.configs import configs_folder
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.huggingface.checkpoint import read_config_file


def find_architecture(model: str, config_file: Path) -> tuple[DecoderConfig, str]:
    """The decoder's shape, and where it was found.

    Args:
      model: the key `model` of a run: the directory of a checkpoint or of a run, a `config.json` itself, the Hub id of
        a model, or the `output_dir` of a run that has not been started but whose configuration is in the folder of
        `config_file`: then the architecture is that of the model which that run starts from.
      config_file: the run's configuration.

    Raises:
      UserError: `model` is none of these, or has an architecture that the decoder does not have.
    """
    path = epath.Path(model)
    # A run keeps its model's files in a folder of their own.
    for file in (path, path / "config.json", path / "model" / "config.json"):
        if file.suffix == ".json" and file.exists():
            return _read(file)
    if known := known_architectures().get(model):
        return _read(epath.Path(known))
    if start := _start_of(model, config_file):
        return find_architecture(start, config_file)
    try:
        return _read(epath.Path(huggingface_hub.hf_hub_download(model, "config.json")))
    except HFValidationError:
        pass
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"model {model}: not to be had from the Hub ({one_line(error)}); {_REMEDY}") from None
    raise UserError(
        f"model {model}: no such directory, and no configuration beside {config_file} has it as output_dir; {_REMEDY}"
    )


_REMEDY = f"name its architecture instead, for example model={configs_folder()}/models/llama3.1-8b.json"


def known_architectures() -> dict[str, Path]:
    """Hub id -> its `config.json` among those that come with this project."""
    files = sorted((configs_folder() / "models").glob("*.json"))
    return {json.loads(file.read_text())["_name_or_path"]: file for file in files}


def _start_of(output_dir: str, config_file: Path) -> str | None:
    """The model that the run with this `output_dir` starts from, found in the configurations beside `config_file`."""
    starts: dict[str, str] = {}
    for file in sorted(config_file.parent.glob("*.yaml")):
        try:
            values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(values, dict) and {"model", "output_dir"} <= values.keys():
            starts[str(values["output_dir"])] = str(values["model"])
    passed = []
    while output_dir in starts:
        if output_dir in passed:
            raise UserError(f"model {output_dir}: the runs beside {config_file} start from each other; {_REMEDY}")
        passed.append(output_dir)
        output_dir = starts[output_dir]
    return output_dir if passed else None


def _read(file: epath.Path) -> tuple[DecoderConfig, str]:
    try:
        return read_config_file(file), str(file)
    except UserError as error:
        raise UserError(f"model {error}") from None
