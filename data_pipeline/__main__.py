"""python -m data_pipeline {prompts|sample|score|select|write|run|report} --config FILE [key.path=value ...]

`sample --dry-run` only tells what it will ask. With `--allow-unsafe`, `score` and `run` run programs even where no
sandbox holds.
"""

import argparse
import importlib
import sys

from data_pipeline.config import PipelineConfig
from data_pipeline.domains import todays_key
from fusejax.common import cli

STAGES = {
    "prompts": "prompts",
    "sample": "sampling",
    "score": "scoring",
    "select": "selection",
    "write": "shards",
    "report": "report",
}
"""Name of a stage -> its folder, in order."""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m data_pipeline", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "run"], help="`run` is all of them in order")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="--config FILE [key.path=value ...]")
    stage = parser.parse_args(arguments[:1]).stage
    rest = cli.config_parser(f"data_pipeline {stage}", f"stage {stage} of the data pipeline")
    if stage == "sample":
        rest.add_argument("--dry-run", action="store_true", help="only tell what will be asked, and what it will take")
    if stage in ("score", "run"):
        rest.add_argument("--allow-unsafe", action="store_true", help="run programs even where no sandbox holds")
    options = rest.parse_intermixed_args(arguments[1:])
    unsafe = ["scorers.allow_unsafe=true"] if getattr(options, "allow_unsafe", False) else []
    config = cli.load_config(PipelineConfig, options.config, [*options.overrides, *unsafe], rename=todays_key)
    if getattr(options, "dry_run", False):
        importlib.import_module("data_pipeline.sampling.estimate").run(config)
        return
    if stage == "run":
        from data_pipeline.sampling import stage as sample
        from data_pipeline.scoring import scorers
        from data_pipeline.selection import stage as select

        # Before hours of sampling, not after.
        domains = {entry.domain for entry in config.prompts}
        select.require_judges(config, domains)
        scorers.build(config, domains)
        sample.locate(config)
    for name in STAGES if stage == "run" else [stage]:
        # Only now: the environment in which vLLM samples has not all that the other stages need.
        importlib.import_module(f"data_pipeline.{STAGES[name]}.stage").run(config)


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
