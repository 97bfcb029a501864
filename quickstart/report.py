"""One page with the quickstart's story: what was made, who is good at what, how training went, what came of it."""

import html
import json
from pathlib import Path
from typing import Any

import polars as pl

from data_pipeline.config import PipelineConfig
from data_pipeline.report import charts
from data_pipeline.report.facts import Facts, read
from data_pipeline.report.page import page, table
from fusejax.common.cli import load_config
from fusejax.common.files import write_text
from fusejax.evaluation.results import Results, standard_error

STAGES = {"base": "base", "sft": "SFT", "dpo": "DPO"}
_COLORS = dict(zip(STAGES, ("#9aa5b1", charts.COLORS[4], charts.COLORS[0]), strict=True))
_STYLE = f"""<style>
.lead {{ font-size: 1.1rem; max-width: 46rem; }}
.results td, .results th {{ padding: .3rem .8rem; }}
.results .average td {{ font-weight: 600; border-top: 2px solid #222; }}
.meter {{ width: 22rem; padding-left: 1.2rem !important; }}
.bar {{ height: .55rem; margin: 2px 0; border-radius: 2px; }}
{"".join(f".{stage} {{ background: {color}; }} " for stage, color in _COLORS.items())}
.key {{ display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; vertical-align: -1px; }}
.yes {{ color: #00755a; }} .no {{ color: #b34700; }}
.steps {{ display: flex; flex-wrap: wrap; gap: .4rem; align-items: stretch; margin: 1rem 0; }}
.step {{ flex: 1 1 7rem; border: 1px solid #cbd2d9; border-radius: 6px; padding: .5rem .7rem; background: #f8fafc; }}
.step b {{ display: block; font-size: 1.35rem; line-height: 1.3; }} .step span {{ color: #555; font-size: .85rem; }}
.answers pre {{ margin: 0; padding: .2rem .5rem; }} .answers td {{ vertical-align: top; }}
</style>"""


def write_report(output: Path, data_config: Path = Path("configs/quickstart/data.yaml")) -> Path:
    """Writes `report.html` below `output` from what the commands left there, and returns its path.

    Args:
      output: the quickstart's folder, complete up to `results.json`.
      data_config: the data pipeline's configuration of this run.
    """
    config = load_config(PipelineConfig, data_config, [])
    facts = read(config)
    results: Results = json.loads((output / "results.json").read_text())
    scores = {stage: _judged(output / "answers", stage) for stage in STAGES}
    parts = [
        _STYLE,
        _summary(results, scores),
        "<h2>From prompts to preferences</h2>",
        _flow(facts),
        "<h2>Who is good at what</h2>",
        _sources(facts),
        "<h2>What the rewards say</h2>",
        _rewards(facts),
        "<h2>Training</h2>",
        _training(output),
        "<h2>Answers to held-out prompts</h2>",
        _answers(scores),
    ]
    path = output / "report.html"
    write_text(path, page("Four small models, fused into one", parts))
    return path


def _judged(answers: Path, stage: str) -> pl.DataFrame:
    """One model's answers to the held-out prompts: `id`, `domain`, `messages`, `text`, `verdict`."""
    prompts = pl.read_parquet(answers / "prompts.parquet").select("id", "domain", "messages")
    scores = pl.read_parquet(answers / "scores" / f"{stage}.parquet").select("prompt_id", "text", "verdict")
    return prompts.join(scores, left_on="id", right_on="prompt_id", how="left", maintain_order="left")


def _summary(results: Results, scores: dict[str, pl.DataFrame]) -> str:
    """The headline and the table of results."""
    average = {stage: 100 * results[stage]["average"] for stage in STAGES}
    heldout = len(scores["base"])
    lead = (
        "Four source models of four architectures, with four tokenizers, answered the same prompts. A target model "
        "learned from their best answers (SFT), then from pairs of a better and a worse answer (DPO). On "
        f"{heldout:,} held-out prompts its accuracy went from <b>{average['base']:.1f} %</b> to "
        f"<b>{average['sft']:.1f} %</b> to <b>{average['dpo']:.1f} %</b>."
    )
    rows = []
    for domain, name in [*((name, name) for name in results["base"] if name != "average"), ("average", "average")]:
        cells = ""
        for stage in STAGES:
            error = f" ± {100 * standard_error(scores[stage]):.1f}" if domain == "average" else ""
            cells += f"<td class=number>{100 * results[stage][domain]:.1f}{error}</td>"
        bars = "".join(f'<div class="bar {s}" style="width: {100 * results[s][domain]:.1f}%"></div>' for s in STAGES)
        kind = " class=average" if domain == "average" else ""
        rows.append(f"<tr{kind}><td>{html.escape(name)}</td>{cells}<td class=meter>{bars}</td></tr>")
    head = "".join(f'<th><i class="key {stage}"></i> {label}</th>' for stage, label in STAGES.items())
    return (
        f"<p class=lead>{lead}</p><table class=results><thead><tr><th>accuracy, %</th>{head}<th></th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        "<p class=note>Greedy answers, judged as the training data was; ± is the standard error of the average.</p>"
    )


def _flow(facts: Facts) -> str:
    """The counts along the way, in all and by domain."""
    funnel = facts.funnel()
    total = {name: count for name, count in funnel["total"].items() if name != "prompts discarded"}
    boxes = "".join(f"<div class=step><b>{count:,}</b><span>{name}</span></div>" for name, count in total.items())
    rows = [[domain, *counts.values()] for domain, counts in funnel.items()]
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in facts.left_out().items())
    note = f"<p class=note>Left out, with the reason: {html.escape(left_out)}.</p>" if left_out else ""
    return f"<div class=steps>{boxes}</div>" + table(["domain", *funnel["total"]], rows) + note


def _sources(facts: Facts) -> str:
    """How often each source was right, and how often its answer was chosen."""
    names = facts.sources
    verdicts = {(row["domain"], row["source"]): row["correct"] for row in facts.verdicts().iter_rows(named=True)}
    rows = [[domain, *(_percent(verdicts.get((domain, name))) for name in names)] for domain in facts.domains]
    wins = {"Best answers, for SFT": facts.wins("sft"), "Pairs, for DPO": facts.wins("dpo")}
    drawn = "".join(charts.stacked_bars(counts, title=title) for title, counts in wins.items() if counts)
    return (
        "<p>Right answers of each source, in percent of all that it sampled; no source is best everywhere. Of equally "
        "good answers, the one of the source that comes first by name is taken.</p>"
        + table(["domain", *names], rows)
        + f"<div class=charts>{drawn}</div>"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _rewards(facts: Facts) -> str:
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
    return f"<div class=charts>{''.join(drawn)}</div>"


def _training(output: Path) -> str:
    """Curves from every run's `metrics.jsonl`."""
    runs = {folder.parent.name: folder for folder in sorted((output / "models").glob("*/run"))}
    before = {name: _curve(folder, "loss") for name, folder in runs.items()}
    sft, dpo = output / "sft", output / "dpo"
    drawn = [
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
    return f"<div class=charts>{''.join(drawn)}</div>"


def _curve(run: Path, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric, where it was logged."""
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [(step["step"], step[metric]) for step in logged if metric in step]
    return [step for step, _ in points], [value for _, value in points]


def _answers(scores: dict[str, pl.DataFrame]) -> str:
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
        prompt = rows["base"][index]["messages"][-1]["content"]
        shown.append(f"<h3>{html.escape(domain)}</h3><p>{html.escape(prompt)}</p>")
        shown.append(f"<table class=answers>{''.join(_answer(stage, rows[stage][index]) for stage in STAGES)}</table>")
    return "".join(shown)


def _answer(stage: str, row: dict[str, Any]) -> str:
    right = row["verdict"] == "correct"
    mark = "<b class=yes>right</b>" if right else "<b class=no>wrong</b>"
    return f"<tr><td>{STAGES[stage]}</td><td><pre>{html.escape(row['text'] or '')}</pre></td><td>{mark}</td></tr>"
