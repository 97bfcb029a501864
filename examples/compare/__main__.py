"""`python -m examples.compare [--seeds 0 1 2]`: eight ways to fuse the quickstart's models, side by side.

Each seed is a whole experiment of its own, in `runs/compare/seed-N/`, and can be run alone, or stopped and run again.
The table and the page are of all seeds that are complete.
"""

import argparse
import json
import time
from pathlib import Path

from examples.compare.methods import METHODS
from examples.compare.report import write_report
from examples.compare.results import Results, text
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
    folders, results = complete(OUTPUT)
    report = write_report(OUTPUT, folders, results)
    print(text(results))
    note(f"{report} shows it.")


def complete(output: Path) -> tuple[dict[int, Path], Results]:
    """The folders of the seeds that have results of all methods, and these."""
    found = {}
    for path in output.glob("seed-*/results.json"):
        seed = path.parent.name.removeprefix("seed-")
        results = json.loads(path.read_text())
        if seed.isdecimal() and METHODS.keys() <= results.keys():
            found[int(seed)] = path.parent, results
    return {seed: found[seed][0] for seed in sorted(found)}, [found[seed][1] for seed in sorted(found)]


if __name__ == "__main__":
    run(main)
