"""One seed of the comparison: the quickstart, and after it everything that the other methods need.

All commands run in a folder of the seed's own, in which the quickstart's paths mean what they say. What a command took
is kept in `commands.jsonl`. A command that is listed there, with the configuration that it has now, is not run again:
a comparison that was stopped goes on.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from examples.compare.methods import (
    DISTRIBUTIONS,
    HOME,
    LIKELIHOODS,
    METHODS,
    PAIRWISE,
    RUNS,
    SECOND_ROUND,
    WEIGHTED,
    Run,
)
from fusejax.common.commands import command
from fusejax.common.files import write_text

ROOT = Path(__file__).parents[2]
CONFIGS = "configs/quickstart"
TRIPLES = ("instruction", "math", "code")
"""The domains that have pairs in the quickstart."""


class Seed:
    """A seed's folder, and the commands that were run in it."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self._seed = folder, seed
        self._ledger = folder / "commands.jsonl"

    def run(self) -> None:
        """Runs whatever was not yet run, up to `results.json`.

        Raises:
          UserError: a command failed; its own output is above.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        configs = self.folder / "configs"
        configs.unlink(missing_ok=True)  # this repository may have been elsewhere
        configs.symlink_to(ROOT / "configs")
        self._command("quickstart", "quickstart", "--seed", str(self._seed))
        self._prepare()
        for name, run in RUNS.items():
            if name not in ("sft", "dpo"):  # the quickstart's
                self._train(name, run)
        self._merge()
        models = {name: self._model(name) for name in METHODS if name not in ("base", "sft", "dpo")}
        compared = f"output_dir={HOME}/compared"
        self._command(
            "evaluate", "fusejax.evaluate", "--config", f"{CONFIGS}/evaluate.yaml", f"models={_flow(models)}", compared
        )
        write_text(self.folder / "results.json", json.dumps(self._results(), indent=2) + "\n")

    def _prepare(self) -> None:
        """What the methods need of the data pipeline beside the quickstart's own shards."""
        config = yaml.safe_load((ROOT / CONFIGS / "data.yaml").read_text())
        base = {"name": "base", "model": f"{HOME}/models/target/export"}
        asked = config | {"sources": [*config["sources"], base], "distributions": {"top_k": 10}}
        self._pipeline(DISTRIBUTIONS, "distributions", asked)
        self._pipeline(LIKELIHOODS, "likelihoods", config)

        # The prompts of the pairs once more, for the model that SFT made.
        paired = pl.read_parquet(self.folder / HOME / "data/selection/dpo.parquet")["prompt_id"].to_list()
        prompts = [each for each in config["prompts"] if each["domain"] in TRIPLES]
        target = {"name": "target", "model": f"{HOME}/export/sft"}
        rule = {"name": "wrpo", "sft_fraction": 0, "target": "target"}
        second = config | {
            "output_dir": f"{HOME}/wrpo-data",
            "prompts": [each | {"path": self._only(each["path"], set(paired))} for each in prompts],
            "sources": [*(each for each in config["sources"]), target],
            "domains": {name: config["domains"][name] | {"rule": rule} for name in TRIPLES},
        }
        self._pipeline(SECOND_ROUND, "run", second, copied=True)

        rule = {"name": "fuserl", "sft_fraction": 0.4}
        domains = {
            name: section | ({"rule": rule} if name in TRIPLES else {}) for name, section in config["domains"].items()
        }
        self._pipeline(WEIGHTED, "run", config | {"output_dir": f"{HOME}/fuserl-data", "domains": domains}, copied=True)

    def _only(self, path: str, ids: set[str]) -> str:
        """Writes those lines of a file of prompts, and returns where."""
        lines = (self.folder / path).read_text().splitlines(keepends=True)
        kept = path.replace("/prompts/", "/prompts/paired-")
        write_text(self.folder / kept, "".join(line for line in lines if json.loads(line)["id"] in ids))
        return kept

    def _pipeline(self, name: str, stage: str, config: dict[str, Any], *, copied: bool = False) -> None:
        """Runs a stage of the data pipeline.

        Args:
          copied: in a copy of the quickstart's folder, whose sources are then not asked again.
        """
        file, output = self.folder / f"{name}.yaml", self.folder / config["output_dir"]
        if copied and not output.exists():
            unfinished = output.with_name(f"{output.name}.copying")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(self.folder / HOME / "data", unfinished)
            unfinished.rename(output)
        write_text(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        self._command(name, "data_pipeline", stage, "--config", file.name)

    def _train(self, name: str, run: Run) -> None:
        changes = [f"{key}={_flow(value)}" for key, value in run.changes.items()]
        own = (f"output_dir={HOME}/{name}", f"seed={self._seed}")
        self._command(name, "fusejax.train", "--config", f"{CONFIGS}/{run.config}.yaml", *own, *changes)

    def _merge(self) -> None:
        for name in PAIRWISE:
            export = f"{HOME}/export/{name}"
            to = ("--output", export, "--dtype", "float32")
            self._command(f"export {name}", "fusejax.export", "--checkpoint", f"{HOME}/{name}", *to, makes=export)
        config = {
            "pivot": f"{HOME}/models/target/export",
            "targets": [f"{HOME}/export/{name}" for name in PAIRWISE],
            "method": {"name": "sce"},
            "output": f"{HOME}/export/sce",
        }
        write_text(self.folder / "merge.yaml", yaml.safe_dump(config, sort_keys=False))
        self._command("sce", "fusejax.merge", "--config", "merge.yaml", makes=f"{HOME}/export/sce")

    def _model(self, method: str) -> str:
        return f"{HOME}/export/{method}" if METHODS[method].merged else f"{HOME}/{METHODS[method].runs[-1]}"

    def _command(self, name: str, module: str, *arguments: str, makes: str | None = None) -> None:
        """Runs `python -m module arguments` in the folder, unless it is done.

        Args:
          makes: a folder that the command wants to be new.
        """
        words, done = [module, *arguments], self._done()
        files = [self.folder / arguments[i + 1] for i, word in enumerate(arguments) if word == "--config"]
        configuration = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        if any(line["command"] == words and line["configuration"] == configuration for line in done):
            return
        if makes is not None and (self.folder / makes).exists():  # stopped before it was listed
            shutil.rmtree(self.folder / makes)
        variables = {
            "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            "JAX_COMPILATION_CACHE_DIR": str((self.folder.parent / "cache").absolute()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        began = time.monotonic()
        command(module, *arguments, quiet=True, directory=self.folder, variables=variables)
        seconds = time.monotonic() - began
        done.append({"name": name, "command": words, "configuration": configuration, "seconds": seconds})
        write_text(self._ledger, "".join(json.dumps(line) + "\n" for line in done))

    def _done(self) -> list[dict[str, Any]]:
        if not self._ledger.exists():
            return []
        return [json.loads(line) for line in self._ledger.read_text().splitlines()]

    def _results(self) -> dict[str, dict[str, Any]]:
        """Of each method: `accuracy` by domain, and in `cost` what it took beyond the data that all share."""
        home = self.folder / HOME
        accuracy = json.loads((home / "results.json").read_text()) | json.loads(
            (home / "compared/results.json").read_text()
        )
        took = {line["name"]: line["seconds"] for line in self._done()}
        return {name: {"accuracy": accuracy[name], "cost": self._cost(name, took)} for name in METHODS}

    def _cost(self, method: str, took: dict[str, float]) -> dict[str, float]:
        """Tokens that were trained on and the seconds of the steps, and those of the data pipeline and of merging."""
        runs = METHODS[method].runs
        steps = [
            json.loads(line)
            for run in runs
            for line in (self.folder / HOME / run / "metrics.jsonl").read_text().splitlines()
        ]
        data = {name for run in runs if (name := RUNS[run].data)}
        merging = [method, *(f"export {run}" for run in runs)] if METHODS[method].merged else []
        others = [*data, *merging]
        return {
            "tokens": sum(step["tokens"] for step in steps),
            "seconds": sum(step["step_time"] for step in steps),
            "data_seconds": sum(took[name] for name in others),
        }


def _flow(value: Any) -> str:
    """On one line of YAML."""
    return json.dumps(value)
