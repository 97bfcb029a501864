"""`python -m fusejax.train --config FILE [key.path=value ...]`: SFT or DPO, as the configuration says.

On several hosts the same command runs on each. Those of a TPU pod find each other; on other machines each is told
`--coordinator HOST:PORT --num-hosts N --host-index I`. Exit statuses: see `fusejax.distributed.hosts`.
"""

from fusejax.common.cli import add_host_options, config_parser, load_config, run
from fusejax.config import TrainConfig


def main() -> None:
    parser = config_parser("fusejax.train", "Trains a model on preference shards.")
    add_host_options(parser)
    arguments = parser.parse_args()
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    # After the configuration is known to be good: JAX takes seconds to import.
    from fusejax.distributed.hosts import join
    from fusejax.training.loop import train

    with join(arguments.coordinator, arguments.num_hosts, arguments.host_index) as hosts:
        train(config, hosts)


if __name__ == "__main__":
    run(main)
