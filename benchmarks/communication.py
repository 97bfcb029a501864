"""How much of a step's communication nothing hides, of the paper's models on slices of all sizes, by `fusejax plan`.

    python -m benchmarks.communication [--plain] [--tasks sft dpo] [--only v5e-16 ...]

Rows are 2048 tokens long, in DPO 4096 for a pair, `remat` is `full`, a step is one microbatch and the update. GB, ms
and the share are of a chip and a step; HBM is the plan's total. `--plain` leaves out what hides communication, and
larger tiles (`fusejax/distributed/tuning.py`): the compiler's own choices, with reduce-scatters as it makes them.
"""

import argparse
import os
from pathlib import Path
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"  # the programs are for devices that are not here

from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.distributed.tuning import Tuning
from fusejax.planning.architecture import find_architecture
from fusejax.planning.plan import Planner
from fusejax.planning.topology import parse_topology
from fusejax.planning.workload import workload

CONFIGS = Path(__file__).parents[1] / "configs" / "fusechat3"
CASES = (
    ("llama3.1-8b", "v5p-16", 4),
    ("llama3.1-8b", "v5p-128", 4),
    ("llama3.1-8b", "v6e-16", 4),
    ("llama3.1-8b", "v6e-256", 4),
    ("llama3.1-8b", "v5e-16", 2),
    ("gemma2-9b", "v5p-16", 4),
    ("llama3.2-1b", "v5e-8", 2),
)
"""Model, slice, rows of 2048 on each chip."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--tasks", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    parser.add_argument("--only", nargs="+", metavar="SLICE")
    arguments = parser.parse_args()
    print(f"{'':<34}{'GB':>7}{'ms':>7}{'exposed':>9}{'share':>7}{'step, s':>9}{'HBM, GB':>9}", flush=True)
    for model, name, rows in CASES:
        for task in arguments.tasks:
            if arguments.only and name not in arguments.only:
                continue
            if arguments.plain:
                with mock.patch("fusejax.training.programs.tuning", lambda mesh: Tuning()):
                    line = planned(model, name, rows, task)
            else:
                line = planned(model, name, rows, task)
            print(f"{model + ', ' + task + ', ' + name:<34}{line}", flush=True)


def planned(model: str, name: str, rows: int, task: str) -> str:
    """The figures of a line."""
    file, topology = CONFIGS / f"{model}-{task}.yaml", parse_topology(name)
    pairs = task == "dpo"
    examples = rows // 2 * topology.chips if pairs else rows * topology.chips
    packing = [
        f"packing.row_length={4096 if pairs else 2048}",
        f"packing.rows_per_device={rows // 2 if pairs else rows}",
    ]
    overrides = [*packing, "packing.attention_length=null", "remat=full", f"batch_size={examples}"]
    config = load_config(TrainConfig, file, overrides)
    # Examples of nearly a row: a step is one microbatch.
    work = workload(config, examples=examples, tokens_per_example=0.99 * config.row_length)
    plan = Planner(topology, find_architecture(config.model, file)[0], work).plan(config)[task]
    if plan.speed is None:
        return "does not fit"
    assert plan.microbatches == 1
    found, step = plan.speed.communication, plan.speed.step_seconds
    times = f"{1e3 * found.seconds:>7.0f}{1e3 * found.exposed_seconds:>9.1f}{found.exposed_seconds / step:>7.1%}"
    return f"{found.bytes / 1e9:>7.1f}{times}{step:>9.3f}{plan.hbm.total / 1e9:>9.1f}"


if __name__ == "__main__":
    main()
