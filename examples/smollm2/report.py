"""The example's results: a table for the terminal, and a page with curves and answers to read."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.report import charts
from data_pipeline.report.page import Section, Table, render
from fusejax.common.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
MODELS = {"base": "SmolLM2-135M-Instruct", "sft": "after SFT", "dpo": "after DPO"}


def rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What was measured, and how it came out."""

    def percent(found: tuple[float, float]) -> str:
        return f"{100 * found[0]:.1f} % ± {100 * found[1]:.1f}"

    def nats(found: tuple[float, float]) -> str:
        return f"{found[0]:.4f} ± {found[1]:.4f}"

    prompts, pairs = f"{results['prompts']} held-out prompts", f"{results['pairs']} held-out pairs"
    return [
        *((f"loss of the best answers, {name}", nats(results["loss"][key])) for key, name in MODELS.items()),
        (f"SFT lowers it by (paired, {prompts})", nats(results["loss_fall"]["sft"])),
        (f"DPO's reward accuracy ({pairs})", percent(results["reward_accuracy"])),
        ("... where the chosen answer is the longer one", percent(results["reward_accuracy_chosen_longer"])),
        ("... where it is the shorter one", percent(results["reward_accuracy_chosen_shorter"])),
        ("pairs whose chosen answer is the longer one", percent(results["chosen_longer"])),
        ("chosen answer likelier per token, after SFT", percent(results["likelier"]["sft"])),
        ("chosen answer likelier per token, after DPO", percent(results["likelier"]["dpo"])),
    ]


def table(results: dict[str, Any]) -> str:
    """The table as text, `±` being standard errors."""
    width = max(len(name) for name, _ in rows(results))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows(results))


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
