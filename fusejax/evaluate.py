"""`fusejax evaluate --config FILE [key.path=value ...]`: accuracy of models on held-out prompts."""

import argparse

from fusejax.common.cli import add_config_options, command_parser, load_config, run
from fusejax.config import EvaluateConfig

DESCRIPTION = """\
Lets models answer held-out prompts, and tells what share of the answers is right.

Reads   the models, the prompts, and the configuration of the pipeline for its scorers
Writes  output_dir/: every answer, and the results

Models that have answered are not asked again."""

EXAMPLE = """\
example:
  {program} --config configs/quickstart/evaluate.yaml"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser, EvaluateConfig)


def main(arguments: list[str] | None = None, program: str = "python -m fusejax.evaluate") -> None:
    parser = command_parser(program, DESCRIPTION, EXAMPLE)
    add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    config = load_config(EvaluateConfig, options.config, options.overrides)
    from fusejax.evaluation.evaluate import evaluate
    from fusejax.evaluation.results import table

    print(table(*evaluate(config)))


if __name__ == "__main__":
    run(main)
