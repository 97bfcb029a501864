"""`fusejax train --config FILE [key.path=value ...]`: SFT or DPO, as the configuration says.

On several hosts the same command runs on each. Those of a TPU pod find each other; on other machines each is told
`--coordinator HOST:PORT --num-hosts N --host-index I`. Exit statuses: see `fusejax.distributed.hosts`.
"""

import argparse
import time

from fusejax.common.cli import add_config_options, add_host_options, command_parser, load_config, run
from fusejax.config import TrainConfig

DESCRIPTION = """\
Trains a model on the shards of the data pipeline, by SFT or preference optimization.

Reads   the model and the data that the configuration names
Writes  output_dir/: checkpoints, metrics.jsonl, tensorboard/; for pairs reference.npz

The same command goes on from the last checkpoint, whatever ended the run."""

EXAMPLE = """\
example:
  {program} --config configs/fusechat3/llama3.1-8b-sft.yaml batch_size=64"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser, TrainConfig)
    add_host_options(parser)


def main(arguments: list[str] | None = None, program: str = "python -m fusejax.train") -> None:
    began = time.monotonic()
    parser = command_parser(program, DESCRIPTION, EXAMPLE)
    add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    config = load_config(TrainConfig, options.config, options.overrides)
    # After the configuration is known to be good: JAX takes seconds to import.
    from fusejax.distributed.hosts import join
    from fusejax.training.goodput import Clock
    from fusejax.training.loop import train

    with join(options.coordinator, options.num_hosts, options.host_index) as hosts:
        train(config, hosts, Clock(began))


if __name__ == "__main__":
    run(main)
