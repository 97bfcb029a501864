"""The example's reports: pages with the results and curves, one of them with answers to read."""

import functools
import json
from pathlib import Path
from typing import Any

from data_pipeline.report import charts
from data_pipeline.report.page import Section, Table, render
from examples.smollm2 import comparison
from examples.smollm2.results import MODELS, rows
from fusejax.common.files import write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path, results: dict[str, Any], answers: list[dict[str, str]]) -> Path:
    """Writes `report.html` into a seed's folder, and returns its path."""
    sections = [
        Section("Training", "charts.html", {"charts": _curves(folder)}),
        Section("Answers to held-out prompts", "side_by_side.html", {"answers": answers, "models": MODELS}),
    ]
    opening = Section("", "table.html", {"table": Table(["held out", "result"], rows(results))})
    path = folder / "report.html"
    write_text(path, render("Six models, fused into SmolLM2-135M-Instruct", opening, sections, TEMPLATES))
    return path


def write_comparison(folder: Path, results: dict[str, Any]) -> Path:
    """Writes `comparison/report.html` into a seed's folder, and returns its path."""
    curve = functools.partial(_curve, folder)
    loss = {"SFT": curve("sft", "loss"), "explicit fusion": curve("fusion", "clm")}
    rewarded = {name: method.title for name, method in comparison.METHODS.items() if method.rewarded}
    accuracy = {title: curve(name, "reward_accuracy") for name, title in rewarded.items()}
    curves = [
        charts.lines(loss, title="Loss of the answers' tokens", xlabel="step", ylabel="nats per token"),
        charts.lines(accuracy, title="Chosen above rejected, before learned", xlabel="step", ylabel="share of pairs"),
    ]
    table = Table(comparison.header(), comparison.rows(results))
    sections = [Section("Training", "charts.html", {"charts": curves})]
    path = folder / "comparison" / "report.html"
    opening = Section("", "comparison.html", {"table": table})
    write_text(path, render("Five ways to fuse models into SmolLM2-135M-Instruct", opening, sections, TEMPLATES))
    return path


def _curve(folder: Path, run: str, metric: str) -> tuple[list[int], list[float]]:
    logged = [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
    return [step["step"] for step in logged], [step[metric] for step in logged]


def _curves(folder: Path) -> list[charts.Chart]:
    curve = functools.partial(_curve, folder)
    rewards = {"chosen": curve("dpo", "chosen_reward"), "rejected": curve("dpo", "rejected_reward")}
    accuracy = {"training pairs, before they are learned": curve("dpo", "reward_accuracy")}
    return [
        charts.lines({"training": curve("sft", "loss")}, title="SFT", xlabel="step", ylabel="loss"),
        charts.lines({"training": curve("dpo", "loss")}, title="DPO", xlabel="step", ylabel="loss"),
        charts.lines(rewards, title="DPO: implicit rewards", xlabel="step", ylabel="reward"),
        charts.lines(accuracy, title="DPO: chosen above rejected", xlabel="step", ylabel="share of pairs"),
    ]
