"""`python -m data_pipeline import`: its arguments, and the configuration that they make."""

import argparse
import re
from pathlib import Path

from data_pipeline.importing.config import ImportConfig, ImportDataConfig
from fusejax.common import cli
from fusejax.common.cli import UserError

EXAMPLE = """\
examples:
  {program} chats.jsonl --output data
  {program} pairs.csv --output data columns.prompt=question source_model=people
  {program} HuggingFaceH4/ultrafeedback_binarized --output data limit=10000
  {program} --config import.yaml"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file, for several data sets with settings of their own")
    parser.add_argument("--output", metavar="DIR", help="where the shards are written; instead of --config")
    arguments = parser.add_argument(
        "arguments",
        nargs="*",
        metavar="PATH | key.path=value",
        help="files, folders and Hub ids; and settings of all of them (limit, columns.prompt) or of the import (seed)",
    )
    keys = [*cli.key_paths(ImportDataConfig), *cli.key_paths(ImportConfig)]
    arguments.completer = lambda **_: [f"{key}=" for key in keys]  # type: ignore[attr-defined]


def load(options: argparse.Namespace) -> ImportConfig:
    """The configuration, from a file or from arguments alone.

    Raises:
      UserError: it is not one, or something is missing.
    """
    overrides = [argument for argument in options.arguments if _is_setting(argument)]
    paths = [argument for argument in options.arguments if not _is_setting(argument)]
    if options.config is not None:
        if paths or options.output is not None:
            raise UserError("import: --config names the data and output_dir; beside it only key.path=value can stand")
        return cli.load_config(ImportConfig, options.config, overrides)
    if not paths:
        raise UserError("import: name files, folders or Hub ids and --output DIR, or --config FILE")
    if options.output is None:
        raise UserError(f"import {paths[0]}: where to? give --output DIR")
    values: dict = {"output_dir": options.output}
    entry: dict = {}
    for override in overrides:
        of_data = re.split(r"[.=]", override)[0] in ImportDataConfig.model_fields
        cli.apply_override(entry if of_data else values, override)
    values["data"] = [{**entry, "path": path} for path in paths]
    return cli.checked(ImportConfig, values, "import")


def _is_setting(argument: str) -> bool:
    """Whether it is `key.path=value`; a file whose name looks so is a file."""
    return re.match(r"[a-z_.]+=", argument) is not None and not Path(argument).exists()
