"""`python -m examples.compare [--seeds 0 1 2]`: nine ways to fuse the quickstart's models, side by side.

Each seed is a whole experiment of its own, in `runs/compare/seed-N/`, and can be run alone, or stopped and run again.
The table and the page are of all seeds that are complete.
"""

import argparse
import json
import time
from pathlib import Path

from examples.compare.report import write_report
from examples.compare.results import text
from examples.compare.seed import Seed
from fusejax.common.cli import note, run

OUTPUT = Path("runs/compare")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.compare", description="Compares methods of fusion.")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="seeds to run, one after another"
    )
    arguments = parser.parse_args()
    for seed in dict.fromkeys(arguments.seeds):
        started = time.monotonic()
        note(f"\n=== seed {seed}")
        Seed(OUTPUT / f"seed-{seed}", seed).run()
        note(f"seed {seed}: {time.monotonic() - started:.0f} seconds")
    done = sorted(OUTPUT.glob("seed-*/results.json"), key=lambda path: int(path.parent.name.removeprefix("seed-")))
    folders = {int(path.parent.name.removeprefix("seed-")): path.parent for path in done}
    results = [json.loads(path.read_text()) for path in done]
    report = write_report(OUTPUT, folders, results)
    print(text(results))
    note(f"{report} shows it.")


if __name__ == "__main__":
    run(main)
