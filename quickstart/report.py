"""The quickstart's report on one page: what was made, which model is good at what, how training went, the result."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from data_pipeline.config import PipelineConfig
from data_pipeline.report import charts
from data_pipeline.report.facts import Facts, read
from data_pipeline.report.page import Section, Table, render
from data_pipeline.report.sections import left_out
from fusejax.common.cli import load_config
from fusejax.common.files import write_text
from fusejax.evaluation.results import Results, standard_error

STAGES = {"base": "base", "sft": "SFT", "dpo": "DPO"}
COLORS = dict(zip(STAGES, (charts.GREY, charts.COLORS[4], charts.COLORS[0]), strict=True))
TEMPLATES = Path(__file__).parent / "templates"


def write_report(output: Path, data_config: Path = Path("configs/quickstart/data.yaml")) -> Path:
    """Writes `report.html` below `output` from what the commands left there, and returns its path.

    Args:
      output: the quickstart's folder, complete up to `results.json`.
      data_config: the data pipeline's configuration of this run.
    """
    facts = read(load_config(PipelineConfig, data_config, []))
    results: Results = json.loads((output / "results.json").read_text())
    scores = {stage: _judged(output / "answers", stage) for stage in STAGES}
    opening = Section("", "results.html", _results(results, scores))
    sections = [
        Section("From prompts to preferences", "counts.html", _counts(facts)),
        Section("Who is good at what", "sources.html", _sources(facts)),
        Section("What the rewards say", "charts.html", {"charts": _rewards(facts)}),
        Section("Training", "charts.html", {"charts": _training(output)}),
        Section("Answers to held-out prompts", "answers.html", {"prompts": _answers(scores)}),
    ]
    path = output / "report.html"
    write_text(path, render("Four small models, fused into one", opening, sections, TEMPLATES))
    return path


def _judged(answers: Path, stage: str) -> pl.DataFrame:
    """One model's answers to the held-out prompts: `id`, `domain`, `messages`, `text`, `verdict`."""
    prompts = pl.read_parquet(answers / "prompts.parquet").select("id", "domain", "messages")
    scores = pl.read_parquet(answers / "scores" / f"{stage}.parquet").select("prompt_id", "text", "verdict")
    return prompts.join(scores, left_on="id", right_on="prompt_id", how="left", maintain_order="left")


def _results(results: Results, scores: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """The headline and the table of results: accuracies in percent, by domain and stage."""
    domains = [*(name for name in results["base"] if name != "average"), "average"]
    return {
        "heldout": len(scores["base"]),
        "stages": STAGES,
        "colors": COLORS,
        "accuracy": {name: {stage: 100 * results[stage][name] for stage in STAGES} for name in domains},
        "errors": {stage: 100 * standard_error(frame) for stage, frame in scores.items()},
    }


def _counts(facts: Facts) -> dict[str, Any]:
    """The counts along the way, in all and by domain."""
    funnel = facts.funnel()
    rows = [[domain, *counts.values()] for domain, counts in funnel.items()]
    return {
        "tiles": {name: count for name, count in funnel["total"].items() if name != "prompts discarded"},
        "table": Table(["domain", *funnel["total"]], rows, total=True),
        "left_out": left_out(facts),
    }


def _sources(facts: Facts) -> dict[str, Any]:
    """How often each source was right, and how often its answer was chosen."""
    verdicts = {(row["domain"], row["source"]): row["correct"] for row in facts.verdicts().iter_rows(named=True)}
    rows = [[domain, *(_percent(verdicts.get((domain, name))) for name in facts.sources)] for domain in facts.domains]
    wins = {"Best answers, for SFT": facts.wins("sft"), "Pairs, for DPO": facts.wins("dpo")}
    return {
        "table": Table(["domain", *facts.sources], rows),
        "charts": [charts.stacked_bars(counts, title=title) for title, counts in wins.items() if counts],
    }


def _percent(share: float | None) -> int | None:
    return None if share is None else round(100 * share)


def _rewards(facts: Facts) -> list[charts.Chart]:
    """Reward distributions by source in each domain, and the margins of the pairs."""
    names = facts.sources
    drawn = []
    for domain in facts.domains:
        mine = facts.answers.filter((pl.col("domain") == domain) & pl.col("reward").is_finite())
        series = {name: mine.filter(pl.col("source") == name)["reward"].to_numpy() for name in names}
        drawn.append(charts.histograms(series, title=f"Rewards: {domain}", xlabel="reward"))
    pairs = facts.selected["dpo"]
    margins = {name: pairs.filter(pl.col("domain") == name)["margin"].to_numpy() for name in facts.domains}
    drawn.append(charts.histograms(margins, title="Margins of the pairs", xlabel="chosen minus rejected reward"))
    return drawn


def _training(output: Path) -> list[charts.Chart]:
    """Curves from every run's `metrics.jsonl`."""
    runs = {folder.parent.name: folder for folder in sorted((output / "models").glob("*/run"))}
    before = {name: _curve(folder, "loss") for name, folder in runs.items()}
    sft, dpo = output / "sft", output / "dpo"
    return [
        charts.lines(before, title="Before the fusion", xlabel="step", ylabel="loss"),
        charts.lines(
            {"training": _curve(sft, "loss"), "evaluation": _curve(sft, "eval_loss")},
            title="SFT", xlabel="step", ylabel="loss",
        ),
        charts.lines(
            {"training": _curve(dpo, "loss"), "evaluation": _curve(dpo, "eval_loss")},
            title="DPO", xlabel="step", ylabel="loss",
        ),
        charts.lines(
            {"chosen": _curve(dpo, "chosen_reward"), "rejected": _curve(dpo, "rejected_reward")},
            title="DPO: implicit rewards", xlabel="step", ylabel="reward",
        ),
        charts.lines(
            {"training": _curve(dpo, "reward_accuracy"), "evaluation": _curve(dpo, "eval_reward_accuracy")},
            title="DPO: chosen above rejected", xlabel="step", ylabel="share of pairs",
        ),
    ]  # fmt: skip


def _curve(run: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, where it was logged."""
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [(step["step"], step[metric]) for step in logged if metric in step]
    return [step for step, _ in points], [value for _, value in points]


def _answers(scores: dict[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """Of each domain one prompt that was learned on the way: the first that base fails and DPO masters."""
    shown = []
    for domain in sorted(set(scores["base"]["domain"])):
        rows = {
            stage: list(frame.filter(pl.col("domain") == domain).iter_rows(named=True))
            for stage, frame in scores.items()
        }
        learned = [
            index
            for index, (base, dpo) in enumerate(zip(rows["base"], rows["dpo"], strict=True))
            if base["verdict"] != "correct" and dpo["verdict"] == "correct"
        ]
        index = learned[0] if learned else 0
        answers = [
            {"stage": label, "text": row["text"] or "", "right": row["verdict"] == "correct"}
            for stage, label in STAGES.items()
            for row in [rows[stage][index]]
        ]
        prompt = rows["base"][index]["messages"][-1]["content"]
        shown.append({"domain": domain, "prompt": prompt, "answers": answers})
    return shown
