"""What soft targets add to a step of SFT and to its memory, of Llama-3.1-8B, by `fusejax plan`.

    python -m benchmarks.soft_targets [--slices v5p-16 v6e-16 ...] [--top-k 0 10 20]

Rows are 2048 tokens long, four on each chip, `remat` is `full`, a step is one microbatch and the update. A `top_k` of 0
is plain SFT.
"""

import argparse
import os

os.environ["JAX_PLATFORMS"] = "cpu"  # the programs are for devices that are not here

from benchmarks.communication import CONFIGS
from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.planning.architecture import find_architecture
from fusejax.planning.plan import Planner
from fusejax.planning.topology import parse_topology
from fusejax.planning.workload import workload

FILE = CONFIGS / "llama3.1-8b-sft.yaml"
ROWS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", nargs="+", default=["v5p-16", "v6e-16"], metavar="SLICE")
    parser.add_argument("--top-k", nargs="+", type=int, default=[0, 10, 20], metavar="K")
    arguments = parser.parse_args()
    for name in arguments.slices:
        for k in arguments.top_k:
            seconds, memory = planned(name, k)
            print(f"{name:<10}top_k {k:<4}{seconds:.4f} s a step, {memory / 1e9:.3f} GB", flush=True)


def planned(name: str, k: int) -> tuple[float, int]:
    """Seconds of a step, and bytes of HBM on each chip."""
    topology = parse_topology(name)
    examples = ROWS * topology.chips
    packing = ["packing.row_length=2048", f"packing.rows_per_device={ROWS}", "packing.attention_length=null"]
    overrides = [*packing, "remat=full", f"batch_size={examples}"]
    if k:
        overrides += [f"fusion={{sidecars: [source/train], top_k: {k}}}"]
    config = load_config(TrainConfig, FILE, overrides)
    work = workload(config, examples=examples, tokens_per_example=0.99 * config.row_length)
    plan = Planner(topology, find_architecture(config.model, FILE)[0], work).plan(config)["sft"]
    assert plan.microbatches == 1
    assert plan.speed is not None
    return plan.speed.step_seconds, plan.hbm.total


if __name__ == "__main__":
    main()
