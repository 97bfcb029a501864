"""Plans every training configuration on its slice, and writes the result into the configuration's comment.

    python benchmarks/plan_configs.py [--check] [configs/fusechat3/llama3.1-8b-sft.yaml ...]

The comment names the slice: `# Fits v5p-16: 18.4 of 102.8 GB a chip (python -m fusejax.plan).` is planned on v5p-16,
and its figures are replaced. With `--check`, nothing is written and a figure that is off ends in exit status 1.
"""

import argparse
import os
import re
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # the programs are for devices that are not here

from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.planning.architecture import find_architecture
from fusejax.planning.plan import Planner, tasks
from fusejax.planning.topology import parse_topology
from fusejax.planning.workload import workload

CONFIGS = Path(__file__).parents[1] / "configs" / "fusechat3"
COMMENT = re.compile(r"^# Fits (?P<topology>\S+): .* \(python -m fusejax\.plan\)\.$", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    wrong = False
    for file in arguments.configs or sorted(CONFIGS.glob("*-*.yaml")):
        text = file.read_text()
        match = COMMENT.search(text)
        if match is None:
            sys.exit(f"{file}: no comment names a slice to plan it on")
        comment = planned(file, match["topology"])
        print(f"{file.stem:<20} {comment}", flush=True)
        if comment != match[0]:
            wrong = True
            if not arguments.check:
                file.write_text(text.replace(match[0], comment))
    sys.exit(int(wrong and arguments.check))


def planned(file: Path, topology_name: str) -> str:
    """The comment that belongs into `file`: memory alone, which is compiled far sooner than what tells the time."""
    config = load_config(TrainConfig, file, [])
    model, _ = find_architecture(config.model, file)
    topology = parse_topology(topology_name)
    planner = Planner(topology, model, workload(config, examples=None, tokens_per_example=None))
    found = [planner.hbm(config, task) for task in tasks(config)]
    most = max((hbm for hbm, _ in found), key=lambda hbm: hbm.total)
    total, limit = most.total / 1e9, most.limit / 1e9
    if not all(fits for _, fits in found):
        sys.exit(f"{file}: does not fit {topology_name}: {total:.1f} of {limit:.1f} GB a chip")
    return f"# Fits {topology_name}: {total:.1f} of {limit:.1f} GB a chip (python -m fusejax.plan)."


if __name__ == "__main__":
    main()
