"""What the report on a data set shows: the facts as charts, tables and texts of each section, in plain data."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl
from etils import epath

from data_pipeline.report import charts
from data_pipeline.report.facts import EXAMPLES, Facts, Sample
from data_pipeline.report.page import Reason, Section, Table, render
from data_pipeline.report.reasons import words
from data_pipeline.selection.rules import Quantile
from data_pipeline.selection.stage import ANSWERS

PART_COLORS = {"all": charts.GREY, "SFT": "#0072B2", "chosen": "#009E73", "rejected": "#D55E00"}
ANSWER_COLORS = PART_COLORS | {"SFT and chosen": "#56B4E9", "not selected": charts.GREY, "unusable": "#E69F00"}
MARGIN_COLORS = {"before selection": charts.GREY, "pairs": "#0072B2"}
VERDICT_COLORS = {"correct": "#009E73", "wrong": "#D55E00", "unknown": "#555555", "none": "#CBD2D9"}
FATE_COLORS = {
    "SFT": "#0072B2",
    "SFT and DPO": "#56B4E9",
    "DPO": "#009E73",
    "WRPO": "#F0E442",
    "kept": "#0072B2",
    "usable": "#0072B2",
}
RECIPE_COLORS = {"made": "#0072B2", "missing": "#CBD2D9", "more than published": "#56B4E9"}
_LOST = ("#E69F00", "#D55E00", "#CC79A7", "#882255", "#999933", "#555555", "#AA4499", "#332288")
"""Colours of reasons, none of which stands for what was kept."""
_MOST_REASONS = 8
"""Most reasons of scoring that one chart shows."""


def report(facts: Facts) -> str:
    """One self-contained page."""
    sections = [
        Section("Prompts", "prompts.html", _prompts(facts)),
        Section("From prompts to examples", "flow.html", _flow(facts)),
        Section("Which source won", "wins.html", _wins(facts)),
        Section("Verdicts", "verdicts.html", _verdicts(facts)),
        Section("Rewards", "distributions.html", _distributions(facts, "reward", "reward")),
        Section("Margins", "margins.html", _margins(facts)),
        Section("Lengths", "distributions.html", _distributions(facts, "length", f"{facts.length_unit} an answer")),
        Section("Unusable answers", "unusable.html", _unusable(facts)),
        Section("Cost", "cost.html", _cost(facts)),
        Section("Samples to read", "samples.html", _samples(facts)),
    ]
    if beside := _recipe(facts):
        sections.insert(2, Section("Beside FuseChat-3.0", "recipe.html", beside))
    opening = Section("", "tiles.html", {"tiles": _tiles(facts)})
    return render(f"Data set {epath.Path(facts.config.output_dir).name}", opening, sections)


def few_reasons(table: Mapping[str, Mapping[str, int]]) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """The table, its rarest reasons merged into one where there are more reasons than colours; and the colours."""
    sums: Counter[str] = Counter()
    for row in table.values():
        sums.update({name: count for name, count in row.items() if name not in FATE_COLORS})
    reasons = [name for name, _ in sums.most_common()]
    rest = reasons[len(_LOST) - 1 :] if len(reasons) > len(_LOST) else []
    few = {}
    for label, row in table.items():
        few[label] = {name: count for name, count in row.items() if name not in rest}
        if rest:
            few[label]["other reasons"] = sum(row.get(name, 0) for name in rest)
    names = [name for name in reasons if name not in rest] + ["other reasons"]
    return few, FATE_COLORS | dict(zip(names, _LOST, strict=False))


def left_out(facts: Facts) -> Table | None:
    """Everything that was left out, with the reason and its explanation; None where nothing was."""
    lines = []
    for name, count in facts.left_out().items():
        what, _, reason = name.partition(": ")
        lines.append([what, Reason(reason, words(what, reason)), count])
    return Table(["what", "reason", "count"], lines) if lines else None


def scored(facts: Facts) -> Table | None:
    """Why verdicts and rewards are as they are, with the reasons explained; None where no reasons were given."""
    reasons = facts.reasons()
    lines = [
        [domain, verdict, why and Reason(why, words("score", why)), count]
        for domain, verdict, why, count in reasons.iter_rows()
    ]
    return Table(reasons.columns, lines) if lines else None


def _in_words(kind: str, table: Mapping[str, Mapping[str, int]], prefix: str = "") -> dict[str, str]:
    """Reason in the table's columns -> its explanation."""
    return {name: words(kind, name.removeprefix(prefix)) for row in table.values() for name in row}


def _tiles(facts: Facts) -> dict[str, int]:
    total = dict(facts.funnel()["total"])
    del total["prompts discarded"]
    if facts.records:
        total = {"records read": sum(entry["read"] for entry in facts.records), **total}
    return total


def _prompts(facts: Facts) -> dict[str, Any]:
    if not facts.records:
        return {"known": False}
    reasons = dict.fromkeys(reason for entry in facts.records for reason in entry["dropped"])
    rows: dict[str, dict[str, int]] = {}
    for entry in facts.records:
        label = entry["dataset"] if entry["dataset"] not in rows else f"{entry['dataset']} ({entry['path']})"
        rows[label] = {"kept": entry["kept"], **{reason: entry["dropped"].get(reason, 0) for reason in reasons}}
    few, colors = few_reasons(rows)
    domain_of = {label: entry["domain"] for label, entry in zip(rows, facts.records, strict=True)}
    drawn = {domain: {label: few[label] for label in few if domain_of[label] == domain} for domain in facts.domains}
    lines = [
        [label, entry["domain"], entry["read"], entry["kept"], *list(row.values())[1:]]
        for (label, row), entry in zip(rows.items(), facts.records, strict=True)
    ]
    sums = [sum(column) for column in zip(*(line[2:] for line in lines), strict=True)]
    header = ["data set", "domain", "read", "kept", *reasons]
    return {
        "known": True,
        "charts": [
            charts.stacked_bars(mine, title=domain, colors=colors, words=_in_words("record", mine))
            for domain, mine in drawn.items() if mine
        ],
        "table": Table(header, [*lines, ["total", "", *sums]], total=True),
    }  # fmt: skip


def _flow(facts: Facts) -> dict[str, Any]:
    fates, colors = few_reasons(facts.fates())
    said = _in_words("prompt", fates, prefix="discarded: ")
    total = facts.funnel()["total"]
    lines = [[dataset, domain, *row.values()] for (dataset, domain), row in facts.flow().items()]
    return {
        "charts": [
            charts.stacked_bars(fates, title="What became of the prompts", colors=colors, words=said),
            charts.stacked_bars(facts.answer_fates(), title="What became of the answers", colors=ANSWER_COLORS),
        ],
        "table": Table(["data set", "domain", *total], [*lines, ["total", "", *total.values()]], total=True),
    }


def _recipe(facts: Facts) -> dict[str, Any] | None:
    """None where none of the data sets is one of the recipe's."""
    share, labels, others = {}, {}, []
    lines: list[list[Any]] = []
    for name, (domain, ours, theirs) in facts.beside_recipe().items():
        if not theirs:
            others.append(name)
            continue
        share[name] = {
            "made": min(ours.total, theirs.total),
            "missing": max(theirs.total - ours.total, 0),
            "more than published": max(ours.total - theirs.total, 0),
        }
        labels[name] = f"{ours.total:,} of {theirs.total:,}"
        pairs = ((ours.total, theirs.total), (ours.sft, theirs.sft), (ours.dpo, theirs.dpo))
        lines.append([name, domain, *(n for mine, other in pairs for n in (mine, other, mine - other))])
    if not lines:
        return None
    header = ["data set", "domain"]
    header += [f"{name}{part}" for name in ("total", "SFT", "DPO") for part in ("", ", recipe", ", difference")]
    sums = [sum(column) for column in zip(*(line[2:] for line in lines), strict=True)]
    title = "Made, of those published"
    return {
        "charts": [charts.stacked_bars(share, title=title, colors=RECIPE_COLORS, labels=labels)],
        "table": Table(header, [*lines, ["total", "", *sums]], total=True),
        "others": others,
    }


def _wins(facts: Facts) -> dict[str, Any]:
    wins = {
        "SFT examples": facts.wins("sft"),
        "Chosen answers of DPO pairs": facts.wins("dpo"),
        "Sources' answers of WRPO triples": facts.wins("wrpo"),
    }
    colors = dict(zip(facts.sources, charts.COLORS, strict=False))
    shown = {title: rows for title, rows in wins.items() if rows}
    return {
        "charts": [charts.stacked_bars(rows, title=title, colors=colors) for title, rows in shown.items()],
        "tables": {
            title: Table(["domain", *facts.sources], [[name, *row.values()] for name, row in rows.items()])
            for title, rows in shown.items()
        },
        "pairs": bool(wins["Chosen answers of DPO pairs"]) or facts.triples,
    }


def _verdicts(facts: Facts) -> dict[str, Any]:
    judged = {domain: facts.verdict_counts(domain) for domain in facts.domains}
    return {
        "charts": [
            charts.stacked_bars(rows, title=domain, colors=VERDICT_COLORS) for domain, rows in judged.items() if rows
        ],
        "table": Table.of(facts.verdicts()),
        "reason_charts": [chart for domain in facts.domains if (chart := _said(facts, domain))],
        "reasons": scored(facts),
    }


def _said(facts: Facts, domain: str) -> charts.Chart | None:
    """The most frequent reasons of scoring as bars, the rest as one."""
    shown, colors, said = {}, {}, {}
    for _, verdict, why, count in facts.reasons().filter(domain=domain).iter_rows():
        label = f"{why or 'other'} ({verdict or 'no verdict'})"
        shown[label], colors[label] = count, VERDICT_COLORS[verdict or "none"]
        said[label] = words("score", why or "")
    if rest := list(shown)[_MOST_REASONS:]:
        shown[f"{len(rest)} other reasons"] = sum(shown.pop(label) for label in rest)
    return charts.bars(shown, title=domain, colors=colors, words=said) if shown else None


def _distributions(facts: Facts, column: str, label: str) -> dict[str, Any]:
    """By source, then before and after selection."""
    colors = dict(zip(facts.sources, charts.COLORS, strict=False))
    by_source = {domain: rows for domain in facts.domains if (rows := facts.quantiles(column, domain))}
    return {
        "by_source": [
            charts.ranges(rows, title=domain, xlabel=label, colors=colors) for domain, rows in by_source.items()
        ],
        "by_part": [
            charts.histograms(facts.parts(column, domain), title=domain, xlabel=label, colors=PART_COLORS, filled="all")
            for domain in by_source
        ],
    }


def _margins(facts: Facts) -> dict[str, Any]:
    drawn = []
    for domain in facts.domains:
        if domain not in facts.bounds:
            continue
        margins, bounds = facts.margins(domain), facts.bounds[domain]
        if any(values.size for values in margins.values()):
            band = (bounds.min_margin, bounds.max_margin)
            label = "chosen minus rejected reward"
            drawn.append(
                charts.histograms(
                    margins, title=domain, xlabel=label, colors=MARGIN_COLORS, filled="before selection", band=band
                )
            )
    return {"charts": drawn, "quantiles": quantiles(facts)}


def quantiles(facts: Facts) -> list[str]:
    """What each bound that the config gives as a quantile came to."""
    lines = []
    for domain in facts.domains:
        for name in ("min_margin", "max_margin"):
            asked = getattr(facts.config.domains[domain].rule, name, None)
            if isinstance(asked, Quantile) and domain in facts.bounds:
                found, of = getattr(facts.bounds[domain], name), facts.bounds[domain].margins
                came_to = "no bound, since there is no margin" if found is None else f"{found:g}"
                lines.append(f"{domain}: {name}, the {asked} of {of:,} margins, is {came_to}.")
    return lines


def _unusable(facts: Facts) -> dict[str, Any]:
    by_source, colors = few_reasons(facts.unusable("source"))
    by_domain, _ = few_reasons(facts.unusable("domain"))
    marks, thoughts = facts.marks(), facts.thoughts()
    return {
        "charts": [
            charts.stacked_bars(rows, title=title, colors=colors, words=_in_words("answer", rows))
            for title, rows in (("By source", by_source), ("By domain", by_domain)) if rows
        ],
        "strange": int(facts.selected["unused"]["domain"].null_count()),
        "flaws": None if marks is None else Table.of(marks.with_columns((pl.col(pl.Float64) * 100).round(2))),
        "thoughts": None if thoughts is None else Table.of(thoughts),
        "left_out": left_out(facts),
    }  # fmt: skip


def _cost(facts: Facts) -> dict[str, Any]:
    costs = facts.costs()
    tokens = {name: cost.answer_tokens for name, cost in costs.items() if cost.answer_tokens is not None}
    lines = []
    for name, cost in costs.items():
        how = None if cost.tokens_per_second is None else "measured" if cost.measured else "given"
        rate = cost.tokens_per_second and round(cost.tokens_per_second)
        hours = cost.gpu_hours and round(cost.gpu_hours, 2)
        lines.append([name, cost.answers, cost.prompt_tokens, cost.answer_tokens, rate, how, cost.gpus, hours])
    known = [cost.gpu_hours for cost in costs.values() if cost.gpu_hours is not None]
    made = sum(len(facts.selected[name]) for name in ANSWERS)
    return {
        "charts": [charts.bars(tokens, title="Answer tokens")] if tokens else [],
        "table": Table(
            ["source", "answers", "prompt tokens", "answer tokens", "tokens/s", "rate is", "GPUs", "GPU-hours"], lines
        ),
        "gpu_hours": sum(known) if known else None,
        "not_known": [name for name, cost in costs.items() if cost.gpu_hours is None],
        "tokens_each": sum(tokens.values()) / made if tokens and made else None,
        "engines": facts.engines,
    }


def _samples(facts: Facts) -> dict[str, Any]:
    return {
        "each": EXAMPLES,
        "domains": {
            domain: [
                *map(_sft, facts.samples.get(("sft", domain), [])),
                *map(_pair, facts.samples.get(("dpo", domain), [])),
                *map(_triple, facts.samples.get(("wrpo", domain), [])),
            ]
            for domain in facts.domains
        },
    }


def _sft(sample: Sample) -> dict[str, Any]:
    return _asked(sample) | {"head": "SFT", "answers": {"": _answer(sample, "", sample.row["text"])}}


def _pair(sample: Sample) -> dict[str, Any]:
    return _compared(sample, "DPO", {"chosen": "chosen", "rejected": "rejected"})


def _triple(sample: Sample) -> dict[str, Any]:
    sides = {"of the sources, chosen": "source_chosen", "of the target, chosen": "target_chosen"}
    return _compared(sample, "WRPO", {**sides, "rejected": "rejected"})


def _compared(sample: Sample, task: str, sides: Mapping[str, str]) -> dict[str, Any]:
    answers = {label: _answer(sample, f"{side}_", sample.row[side]) for label, side in sides.items()}
    return _asked(sample) | {"head": f"{task}, margin {sample.row['margin']:.4f}", "answers": answers}


def _asked(sample: Sample) -> dict[str, Any]:
    turns = [f"[{turn['role']}] {turn['content']}" for turn in sample.prompt["messages"]]
    return {"prompt": "\n".join(turns), "right_answer": sample.prompt["answer"]}


def _answer(sample: Sample, prefix: str, text: str) -> dict[str, str]:
    """An answer, whose columns begin with `prefix`, with what scoring found."""
    source, reward = sample.row[f"{prefix}source"], sample.row[f"{prefix}reward"]
    found = sample.found.get((source, sample.row[f"{prefix}sample_index"]), {})
    said = ["no reward" if reward is None else f"reward {reward:.4f}"]
    if found.get("verdict"):
        said.append(found["verdict"])
    # If it has several lines, it is a program, which the answer shows anyway.
    if found.get("extracted") and "\n" not in found["extracted"]:
        said.append(_short(f"read as {found['extracted']}"))
    if found.get("detail"):
        said.append(_short(found["detail"]))
    means = (words("score", part) for part in (found.get("detail") or "").split("; "))
    return {"source": source, "text": text, "said": ", ".join(said), "words": "; ".join(filter(None, means))}


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]} ..."
