"""`python -m fusejax.train --config FILE [key.path=value ...]`: SFT or DPO, as the configuration says.

On several hosts the same command runs on each. Those of a TPU pod find each other; on other machines each is told
`--coordinator HOST:PORT --num-hosts N --host-index I`. Exit statuses: see `fusejax.distributed.hosts`.
"""

from fusejax.cli import config_parser, load_config, run
from fusejax.config import TrainConfig


def main() -> None:
    parser = config_parser("fusejax.train", "Trains a model on preference shards.")
    group = parser.add_argument_group("several hosts", "On TPU pods none of these is needed.")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="host 0, and a port that is free there")
    group.add_argument("--num-hosts", type=int, metavar="N", help="how many hosts run this command")
    group.add_argument("--host-index", type=int, metavar="I", help="which of them this is, from 0")
    arguments = parser.parse_args()
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    # After the configuration is known to be good: JAX takes seconds to import.
    from fusejax.distributed.hosts import join
    from fusejax.training.loop import train

    with join(arguments.coordinator, arguments.num_hosts, arguments.host_index) as hosts:
        train(config, hosts)


if __name__ == "__main__":
    run(main)
