"""`python -m fusejax.train --config FILE [key.path=value ...]`: SFT or DPO, as the configuration says."""

from fusejax.cli import config_parser, load_config, run
from fusejax.config import TrainConfig


def main() -> None:
    arguments = config_parser("fusejax.train", "Trains a model on preference shards.").parse_args()
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    # After the configuration is known to be good: JAX takes seconds to import.
    from fusejax.training.loop import train

    train(config)


if __name__ == "__main__":
    run(main)
