"""`fusejax merge --config FILE [key.path=value ...]`: models trained from one pivot, merged into one."""

import argparse

from fusejax.common.cli import add_config_options, command_parser, load_config, note, run
from fusejax.config import MergeConfig

DESCRIPTION = """\
Merges models of one architecture, trained from one pivot, into one, without training.

Reads   the pivot and the targets: Hugging Face checkpoints
Writes  output: weights in safetensors, config.json, the pivot's tokenizer, a model card; whole or not at all

Nothing is computed on accelerators. One tensor of all models is in memory at a time."""

EXAMPLE = """\
example:
  {program} --config configs/fusechat2/merge.yaml method.select=deltas"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser, MergeConfig)


def main(arguments: list[str] | None = None, program: str = "python -m fusejax.merge") -> None:
    parser = command_parser(program, DESCRIPTION, EXAMPLE)
    add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    config = load_config(MergeConfig, options.config, options.overrides, named={"method"})
    import jax

    from fusejax.merging.merge import merge

    jax.config.update("jax_platforms", "cpu")  # it is NumPy that computes; accelerators stay free for a run
    merge(config)
    note(f"merged into {config.output}")


if __name__ == "__main__":
    run(main)
