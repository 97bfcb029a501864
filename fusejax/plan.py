"""`python -m fusejax.plan --config FILE --topology v5p-16`: does a run fit a TPU slice, and how long will it take?

No TPU, weights or data are needed: the programs are compiled for the slice from their shapes. Exits with 0 also where
the run does not fit; `fits` says so.
"""

import argparse
import json
import os
from pathlib import Path

from fusejax.common.cli import config_parser, load_config, run
from fusejax.config import TrainConfig


def main() -> None:
    parser = config_parser("fusejax.plan", "Compiles a training run for a TPU slice, and tells what it will take.")
    parser.add_argument("--topology", required=True, metavar="NAME", help="such as v5e-16, v5p-128, 2xv6e-256")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--search", action="store_true", help="find the fastest remat and rows_per_device that fit")
    parser.add_argument("--examples", type=_positive, metavar="N", help="in data.train, if that is not there to look")
    parser.add_argument(
        "--tokens-per-example", type=_positive, metavar="N", help="on average; of both answers of a pair"
    )
    arguments = parser.parse_intermixed_args()
    config = load_config(TrainConfig, arguments.config, arguments.overrides)

    # JAX itself works on this machine's CPU, and leaves alone whatever accelerator there is.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from fusejax.planning.architecture import find_architecture
    from fusejax.planning.plan import Planner
    from fusejax.planning.report import plan_json, plan_table, search_table
    from fusejax.planning.search import choose, search
    from fusejax.planning.topology import parse_topology
    from fusejax.planning.workload import workload

    topology = parse_topology(arguments.topology)
    model, source = find_architecture(config.model, Path(arguments.config))
    work = workload(config, examples=arguments.examples, tokens_per_example=arguments.tokens_per_example)
    planner = Planner(topology, model, work)
    searched = search(planner, config) if arguments.search else None
    if searched and searched.best:
        config = choose(config, searched.best.remat, searched.best.rows_per_device)
    plans = planner.plan(config)
    if arguments.json:
        print(json.dumps(plan_json(planner, config, plans, source, searched), indent=2))
        return
    if searched:
        print(search_table(searched, topology.chip.hbm), end="\n\n")
    print(plan_table(planner, config, plans, source))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


if __name__ == "__main__":
    run(main)
