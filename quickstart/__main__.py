"""`python -m quickstart [--seed N]`: the whole fusion on one CPU machine, with the public commands alone.

Makes four tiny source models and a target in runs/quickstart/, trains the sources unequally, and then runs what a user
runs: data pipeline, SFT, DPO, export, evaluation. Every command is printed before it runs and can be run again by hand.
What is complete is not done again, so an interrupted quickstart goes on where it stopped.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fusejax.common.cli import UserError, note, run
from fusejax.common.commands import command
from quickstart import lessons
from quickstart.models import SOURCES
from quickstart.report import write_report

OUTPUT = Path("runs/quickstart")
CONFIGS = Path("configs/quickstart")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quickstart", description="Fuses four tiny models into one.")
    parser.add_argument("--seed", type=int, default=0, help="of weights, tasks, data order and sampling")
    seed = parser.parse_args().seed
    started = time.monotonic()
    _claim(seed)
    # Tiny programs, many processes: compile each program once.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((OUTPUT / "cache").absolute()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

    _heading("Four sources and a target: random weights, five tokenizers, lessons of unequal quality")
    lessons.prepare(OUTPUT, seed)

    _heading("The sources learn, each something else best; the target learns a little of everything")
    with ThreadPoolExecutor(max_workers=2) as two:  # tiny models cannot use more than a core each
        list(two.map(lambda name: _school(name, seed), [*SOURCES, "target"]))

    _heading("The sources answer; answers are scored, the best selected, pairs formed, shards written")
    command("data_pipeline", "run", "--config", f"{CONFIGS}/data.yaml", f"seed={seed}")

    _heading("The target learns from the best answers, then from pairs")
    for task in ("sft", "dpo"):
        command("fusejax.train", "--config", f"{CONFIGS}/{task}.yaml", f"seed={seed}")
        _export(OUTPUT / task, OUTPUT / "export" / task)

    _heading("Base, SFT and DPO on prompts that none of them has seen")
    command("fusejax.evaluate", "--config", f"{CONFIGS}/evaluate.yaml")
    report = write_report(OUTPUT)
    note(f"\n{OUTPUT}/results.json and {report} hold the whole story. {time.monotonic() - started:.0f} seconds.")


def _claim(seed: int) -> None:
    """One folder holds one seed's run: steps already done would otherwise be taken over from another."""
    path = OUTPUT / "seed.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found != seed:
            raise UserError(f"{OUTPUT} holds the run of seed {found}; remove it, or run with --seed {found}")
        return
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(seed))


def _school(name: str, seed: int) -> None:
    folder = OUTPUT / "models" / name
    if name == "target":
        command("fusejax.train", "--config", f"{CONFIGS}/base.yaml", f"seed={seed}", quiet=True)
    else:
        overrides = [f"model={folder}/init", f"data.train={folder}/lessons/train", f"output_dir={folder}/run"]
        command("fusejax.train", "--config", f"{CONFIGS}/source.yaml", *overrides, f"seed={seed}", quiet=True)
    _export(folder / "run", folder / "export")


def _export(checkpoint: Path, output: Path) -> None:
    if not output.exists():  # an export appears whole or not at all
        arguments = ["--checkpoint", str(checkpoint), "--output", str(output), "--dtype", "float32"]
        command("fusejax.export", *arguments, quiet=True)


def _heading(text: str) -> None:
    note(f"\n=== {text}")


if __name__ == "__main__":
    run(main)
