"""`fusejax plan --config FILE --topology v5p-16`: does a run fit a TPU slice, and how long will it take?

No TPU, weights or data are needed: the programs are compiled for the slice from their shapes. Exits with 0 also where
the run does not fit; `fits` says so.
"""

import argparse
import json
from pathlib import Path

from fusejax.common.cli import add_config_options, command_parser, load_config, run
from fusejax.config import TrainConfig

DESCRIPTION = """\
Tells whether a training run fits a TPU slice, how long it will take and what takes the memory.

Reads   the configuration and the model's architecture; the data, where they are there, to count
Writes  a table, or JSON, to standard output

The run's own programs are compiled for the slice: no TPU and no weights are needed, but the extra `tpu`."""

EXAMPLE = """\
example:
  {program} --config configs/fusechat3/llama3.1-8b-sft.yaml --topology v5p-16 --search"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser, TrainConfig)
    parser.add_argument("--topology", required=True, metavar="NAME", help="such as v5e-8, 2xv5p-128, ct6e-standard-8t")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--search", action="store_true", help="find the fastest remat and rows_per_device that fit")
    parser.add_argument("--examples", type=_positive, metavar="N", help="in data.train, if that is not there to look")
    parser.add_argument(
        "--tokens-per-example", type=_positive, metavar="N", help="on average; of all answers of a pair or triple"
    )


def main(arguments: list[str] | None = None, program: str = "python -m fusejax.plan") -> None:
    parser = command_parser(program, DESCRIPTION, EXAMPLE)
    add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    config = load_config(TrainConfig, options.config, options.overrides)

    import jax

    # JAX itself works on this machine's CPU, and leaves alone whatever accelerator there is.
    jax.config.update("jax_platforms", "cpu")
    from fusejax.planning.architecture import find_architecture
    from fusejax.planning.plan import Planner
    from fusejax.planning.report import plan_json, plan_table, search_table
    from fusejax.planning.search import choose, search
    from fusejax.planning.topology import parse_topology
    from fusejax.planning.workload import workload

    topology = parse_topology(options.topology)
    model, source = find_architecture(config.model, Path(options.config))
    work = workload(config, examples=options.examples, tokens_per_example=options.tokens_per_example)
    planner = Planner(topology, model, work)
    searched = search(planner, config) if options.search else None
    if searched and searched.best:
        config = choose(config, searched.best.remat, searched.best.rows_per_device)
    plans = planner.plan(config)
    if options.json:
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
