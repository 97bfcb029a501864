"""The example's report: a page with the results, curves, and answers to read."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.report import charts
from data_pipeline.report.page import Section, Table, render
from examples.smollm2.results import MODELS, rows
from fusejax.common.files import write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path, results: dict[str, Any], answers: list[dict[str, str]]) -> Path:
    """Writes `report.html` into a seed's folder, and returns its path."""
    sections = [
        Section("Training", "training.html", {"charts": _curves(folder)}),
        Section("Answers to held-out prompts", "side_by_side.html", {"answers": answers, "models": MODELS}),
    ]
    opening = Section("", "table.html", {"table": Table(["held out", "result"], rows(results))})
    path = folder / "report.html"
    write_text(path, render("Six models, fused into SmolLM2-135M-Instruct", opening, sections, TEMPLATES))
    return path


def _curves(folder: Path) -> list[charts.Chart]:
    logged = {
        task: [json.loads(line) for line in (folder / task / "metrics.jsonl").read_text().splitlines()]
        for task in ("sft", "dpo")
    }

    def curve(task: str, metric: str) -> tuple[list[int], list[float]]:
        return [step["step"] for step in logged[task]], [step[metric] for step in logged[task]]

    rewards = {"chosen": curve("dpo", "chosen_reward"), "rejected": curve("dpo", "rejected_reward")}
    accuracy = {"training pairs, before they are learned": curve("dpo", "reward_accuracy")}
    return [
        charts.lines({"training": curve("sft", "loss")}, title="SFT", xlabel="step", ylabel="loss"),
        charts.lines({"training": curve("dpo", "loss")}, title="DPO", xlabel="step", ylabel="loss"),
        charts.lines(rewards, title="DPO: implicit rewards", xlabel="step", ylabel="reward"),
        charts.lines(accuracy, title="DPO: chosen above rejected", xlabel="step", ylabel="share of pairs"),
    ]
