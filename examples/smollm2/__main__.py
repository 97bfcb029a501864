"""`python -m examples.smollm2 --answers PATH [--seed N]`: SmolLM2-135M-Instruct fused with six models, on two cores.

Runs the public commands: data pipeline, SFT, DPO, export; then asks transformers what the models make of prompts that
none was trained on. Every command is printed. What is complete is not done again.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from examples.pretrained import pretrained
from examples.smollm2 import heldout
from examples.smollm2.answers import prepare
from examples.smollm2.report import write_report
from examples.smollm2.results import table
from examples.smollm2.training import CONFIGS, OUTPUT, setting, train
from fusejax.common.cli import note, run
from fusejax.common.commands import command
from fusejax.common.files import write_text

SHOWN = 20
"""Held-out prompts whose answers the report shows."""
NEW_TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.smollm2", description="Fuses six models into SmolLM2.")
    parser.add_argument("--answers", type=Path, required=True, help="a clone of AlpacaEval's repository, or a file")
    parser.add_argument("--seed", type=int, default=0, help="of the order of examples")
    arguments = parser.parse_args()
    started = time.monotonic()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((OUTPUT / "cache").absolute()))
    base = pretrained("SmolLM2-135M-Instruct")

    prepare(arguments.answers, OUTPUT / "judged.jsonl.gz")
    command("data_pipeline", "run", "--config", f"{CONFIGS}/data.yaml")
    folder = OUTPUT / f"seed-{arguments.seed}"
    models = train(base, folder, seed=arguments.seed)
    results = _measured(models, folder)
    answers = _answers(models, folder / "answers.json")
    report = write_report(folder, results, answers)
    print(table(results))
    note(f"{folder}/results.json and {report} hold the whole story. {time.monotonic() - started:.0f} seconds.")


def _measured(models: dict[str, Path], folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.exists():
        note("$ transformers: log-probabilities of held-out answers")
        asked, max_length = heldout.read(OUTPUT / "data"), setting("dpo", "max_length")
        found = heldout.measure(models, asked, max_length=max_length, folder=folder / "likelihoods")
        write_text(path, json.dumps(found, indent=2))
    return json.loads(path.read_text())


def _answers(models: dict[str, Path], path: Path) -> list[dict[str, str]]:
    """Greedy answers of all models to the first held-out prompts of DPO."""
    if not path.exists():
        import polars as pl
        from etils import epath

        from fusejax.data.records import PreferencePair, open_shards
        from fusejax.evaluation.answers import answer
        from fusejax.training.start import StartingModel

        pairs = [pair for pair in open_shards(OUTPUT / "data/dpo/eval")[:SHOWN] if isinstance(pair, PreferencePair)]
        prompts = pl.DataFrame({"id": [pair.id for pair in pairs], "messages": [pair.prompt for pair in pairs]})
        shown: list[dict[str, str]] = [
            {"prompt": pair.prompt[-1]["content"], "chosen": pair.chosen[0]["content"]} for pair in pairs
        ]
        for name, directory in models.items():
            frame = answer(
                StartingModel(str(directory)),
                name,
                prompts,
                max_new_tokens=NEW_TOKENS,
                batch_size=SHOWN,
                dtype="float32",
                folder=epath.Path(path.parent) / ".answers" / name,
            )
            for row, text in zip(shown, frame["text"], strict=True):
                row[name] = text
        write_text(path, json.dumps(shown, indent=2, ensure_ascii=False))
    return json.loads(path.read_text())


if __name__ == "__main__":
    run(main)
