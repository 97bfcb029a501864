"""Plans the training configurations on the slices that docs/tpu.md names, and writes the results there.

    python benchmarks/plan_configs.py [--check] [configs/fusechat3/llama3.1-8b-sft.yaml ...]

A row of the guide's table names a configuration, a slice and overrides, if any; its figures are replaced (a new row
begins with 0.0). Each configuration also says in its first lines which slice it fits as it is, in the figures of the
guide's row: `# Fits v5p-16: 18.4 of 102.8 GB a chip (python -m fusejax.plan).` With `--check`, nothing is written and a
figure that is off ends in exit status 1.
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

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "fusechat3"
GUIDE = ROOT / "docs" / "tpu.md"
ROW = re.compile(
    r"^\| `(?P<config>[\w.-]+\.yaml)` \| (?P<topology>\S+) \| (?P<overrides>[^|\n]*?) ?"
    r"\| (?P<total>[\d.]+) \| (?P<limit>[\d.]+) \|$",
    re.MULTILINE,
)
COMMENT = re.compile(r"^# Fits (?P<topology>\S+): .* \(python -m fusejax\.plan\)\.$", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    wanted = {file.name for file in arguments.configs}
    wrong = False
    for row in ROW.finditer(GUIDE.read_text()):
        if wanted and row["config"] not in wanted:
            continue
        file, overrides = CONFIGS / row["config"], row["overrides"].replace("`", "").split()
        total, limit = planned(file, row["topology"], overrides)
        written = f"| {total} | {limit} |".join(row[0].rsplit(f"| {row['total']} | {row['limit']} |", 1))
        print(written, flush=True)
        changes = [(GUIDE, row[0], written)]
        comment = COMMENT.search(file.read_text())
        if comment and comment["topology"] == row["topology"] and not overrides:
            text = f"# Fits {row['topology']}: {total} of {limit} GB a chip (python -m fusejax.plan)."
            changes.append((file, comment[0], text))
        for path, old, new in changes:
            wrong |= old != new
            if not arguments.check:
                path.write_text(path.read_text().replace(old, new))
    sys.exit(int(wrong and arguments.check))


def planned(file: Path, topology: str, overrides: list[str]) -> tuple[str, str]:
    """GB that a run takes on each device and what there is: memory alone, which compiles far sooner than the time."""
    config = load_config(TrainConfig, file, overrides)
    model, _ = find_architecture(config.model, file)
    planner = Planner(parse_topology(topology), model, workload(config, examples=None, tokens_per_example=None))
    found = [planner.hbm(config, task) for task in tasks(config)]
    most = max((hbm for hbm, _ in found), key=lambda hbm: hbm.total)
    total, limit = f"{most.total / 1e9:.1f}", f"{most.limit / 1e9:.1f}"
    if not all(fits for _, fits in found):
        sys.exit(f"{file} {' '.join(overrides)}: does not fit {topology}: {total} of {limit} GB")
    return total, limit


if __name__ == "__main__":
    main()
