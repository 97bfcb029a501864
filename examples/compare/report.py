"""The comparison on one page."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from data_pipeline.report import charts
from data_pipeline.report.page import Section, Table, render
from examples.compare.methods import HOME, METHODS, RUNS
from examples.compare.results import Results, accuracy, order, table
from fusejax.common.files import write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_report(output: Path, folders: dict[int, Path], results: Results) -> Path:
    """Writes `report.html` below `output`, and returns its path.

    Args:
      folders: of the seeds, each complete.
      results: of the seeds, in the same order.
    """
    header, rows = table(results)
    opening = Section(
        "", "opening.html", {"seeds": list(folders), "table": Table(header, rows), "order": order(results)}
    )
    first = next(iter(folders.values()))
    sections = [
        Section("Accuracy", "charts.html", {"charts": _accuracies(results)}),
        Section("What each method is", "methods.html", {"methods": METHODS.values()}),
        Section("Training", "charts.html", {"charts": _curves(first)}),
        Section("Answers to held-out prompts", "answers.html", {"prompts": _answers(first)}),
    ]
    path = output / "report.html"
    write_text(path, render("One family of methods, side by side", opening, sections, TEMPLATES))
    return path


def _accuracies(results: Results) -> list[charts.Chart]:
    """Of all domains together and of each, what is within one and two standard errors of the mean."""
    drawn = []
    for domain in ("average", *(name for name in results[0]["base"]["accuracy"] if name != "average")):
        series = {}
        for name, method in METHODS.items():
            middle, error = accuracy(results, name, domain)
            series[method.label] = [middle + times * (error or 0.0) for times in (-2, -1, 0, 1, 2)]
        drawn.append(charts.ranges(series, title=domain, xlabel="accuracy, %: mean, one and two standard errors"))
    return drawn


def _curves(folder: Path) -> list[charts.Chart]:
    """The losses of the first seed's runs: those on examples, which explicit fusion tells by itself, and on pairs."""

    def curves(names: list[str], metric: str) -> dict[str, tuple[list[int], list[float]]]:
        logged = {name: (folder / HOME / name / "metrics.jsonl").read_text().splitlines() for name in names}
        steps = {name: [json.loads(line) for line in lines] for name, lines in logged.items()}
        return {
            name: ([step["step"] for step in lines], [step[metric] for step in lines])
            for name, lines in steps.items()
            if metric in lines[0]
        }

    examples = [name for name, run in RUNS.items() if run.config == "sft"]
    pairs = [name for name, run in RUNS.items() if run.config == "dpo"]
    return [
        charts.lines(curves(examples, "loss"), title="On examples", xlabel="step", ylabel="loss"),
        charts.lines(curves(pairs, "loss"), title="On pairs and triples", xlabel="step", ylabel="loss"),
        charts.lines(
            curves(pairs, "reward_accuracy"), title="Chosen above rejected", xlabel="step", ylabel="share of pairs"
        ),
    ]


def _answers(folder: Path) -> list[dict[str, Any]]:
    """Every method's answer to the first held-out prompt of each domain: none was picked."""
    home = folder / HOME
    prompts = pl.read_parquet(home / "answers/prompts.parquet").unique("domain", keep="first", maintain_order=True)
    of_quickstart = ("base", "sft", "dpo")
    folders = {name: home if name in of_quickstart else home / "compared" for name in METHODS}
    scores = {name: pl.read_parquet(folder / f"answers/scores/{name}.parquet") for name, folder in folders.items()}
    shown = []
    for prompt in prompts.iter_rows(named=True):
        answers = []
        for name, method in METHODS.items():
            row = scores[name].filter(pl.col("prompt_id") == prompt["id"]).row(0, named=True)
            answers.append({"stage": method.label, "text": row["text"] or "", "right": row["verdict"] == "correct"})
        shown.append({"domain": prompt["domain"], "prompt": prompt["messages"][-1]["content"], "answers": answers})
    return shown
