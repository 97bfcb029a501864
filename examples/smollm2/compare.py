"""`python -m examples.smollm2.compare --answers PATH [--seed N]`: SimPO, WRPO and explicit fusion beside SFT and DPO.

From where `python -m examples.smollm2` has come to: data, SFT and DPO are made if they are not there. Every command is
printed, and what is complete is not done again.
"""

import argparse
import json
import os
import time
from pathlib import Path

from examples.pretrained import pretrained
from examples.smollm2 import comparison, heldout, triples
from examples.smollm2.answers import prepare
from examples.smollm2.report import write_comparison
from examples.smollm2.training import CONFIGS, OUTPUT, setting, train, trained
from fusejax.common.cli import note, run
from fusejax.common.commands import command
from fusejax.common.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.smollm2.compare", description="Compares five ways to fuse models into SmolLM2."
    )
    parser.add_argument("--answers", type=Path, required=True, help="a clone of AlpacaEval's repository, or a file")
    parser.add_argument("--seed", type=int, default=0, help="of the order of examples")
    arguments = parser.parse_args()
    started = time.monotonic()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((OUTPUT / "cache").absolute()))
    base, gemma = pretrained("SmolLM2-135M-Instruct"), pretrained("gemma-3-270m")

    _data(arguments.answers, gemma)
    folder, seed = OUTPUT / f"seed-{arguments.seed}", arguments.seed
    models = train(base, folder, seed=seed)
    models["fusion"] = trained("fusion", base, folder, seed=seed)
    for name in ("simpo", "wrpo"):
        models[name] = trained(name, folder / "sft", folder, seed=seed)

    note("$ transformers: log-probabilities of held-out answers")
    asked, max_length = heldout.read(OUTPUT / "data"), setting("dpo", "max_length")
    found = heldout.ask(models, asked, max_length=max_length, folder=folder / "likelihoods")
    costs = {name: comparison.cost(folder / name / "metrics.jsonl") for name in models if name != "base"}
    results = comparison.compare(found, costs)
    write_text(folder / "comparison" / "results.json", json.dumps(results, indent=2))
    report = write_comparison(folder, results)
    print(comparison.markdown(results))
    note(f"{folder}/comparison/results.json and {report}. {time.monotonic() - started:.0f} seconds.")


def _data(answers: Path, gemma: Path) -> None:
    """The data of SFT and DPO, WRPO's triples, and Gemma's distributions over the answers that SFT learns from."""
    judged = OUTPUT / "judged.jsonl.gz"
    prepare(answers, judged)
    command("data_pipeline", "run", "--config", f"{CONFIGS}/data.yaml")
    triples.prepare(judged, OUTPUT / "data/dpo/train", OUTPUT / "triples")
    command("data_pipeline", "run", "--config", f"{CONFIGS}/triples.yaml")
    _with_template(gemma, CONFIGS / "gemma.jinja", OUTPUT / "gemma" / "model")
    command("data_pipeline", "distributions", "--config", f"{CONFIGS}/distributions.yaml")


def _with_template(checkpoint: Path, template: Path, folder: Path) -> None:
    """Makes `folder` the checkpoint with a chat template, by links."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in {"chat_template.jinja": template, **{each.name: each for each in checkpoint.iterdir()}}.items():
        link = folder / name
        link.unlink(missing_ok=True)  # the checkpoint may have been elsewhere
        link.symlink_to(file.absolute())


if __name__ == "__main__":
    run(main)
