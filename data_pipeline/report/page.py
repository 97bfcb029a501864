"""The report as one HTML page: no scripts, no network, readable on a phone."""

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl
from etils import epath

from data_pipeline.report import charts
from data_pipeline.report.facts import EXAMPLES, Facts, Sample

STYLE = """
:root { color-scheme: light; } * { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; max-width: 65rem; margin: 1.5rem auto;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; } h1 { font-size: 1.7rem; }
h2 { border-bottom: 1px solid #cbd2d9; padding-bottom: .25rem; margin-top: 2.6rem; } h3 { margin: 1.4rem 0 .5rem; }
p { max-width: 46rem; } .note { color: #52606d; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; } a { color: #005a8f; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: 1.2rem 0; }
.tile { border: 1px solid #cbd2d9; border-radius: 6px; padding: .5rem .8rem; background: #f8fafc; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: #52606d; font-size: .88rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #d9dfe5; }
th { text-align: left; font-weight: 600; vertical-align: bottom; } td { white-space: nowrap; }
td:first-child, th:first-child { padding-left: 0; } tr.total td { font-weight: 600; border-top: 2px solid #52606d; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
details > summary { cursor: pointer; color: #005a8f; font-size: .92rem; }
pre { font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f7f9; padding: .6rem;
  margin: .3rem 0; max-height: 20rem; overflow: auto; border-left: 4px solid #9aa5b1; }
pre.chosen { border-color: #009E73; } pre.rejected { border-color: #D55E00; }
@media (max-width: 40rem) {
  td:first-child, th:first-child { position: sticky; left: 0; min-width: 9.5rem; max-width: 9.5rem;
    white-space: normal; overflow-wrap: break-word; background: #fff; }
}
.sample { margin: 0 0 1.6rem; } .sample p { margin: .5rem 0 0; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 1rem; }
.pair > div { min-width: 0; }
"""
PART_COLORS = {"all": charts.GREY, "SFT": "#0072B2", "chosen": "#009E73", "rejected": "#D55E00"}
ANSWER_COLORS = PART_COLORS | {"SFT and chosen": "#56B4E9", "not selected": charts.GREY, "unusable": "#E69F00"}
MARGIN_COLORS = {"before selection": charts.GREY, "pairs": "#0072B2"}
VERDICT_COLORS = {"correct": "#009E73", "wrong": "#D55E00", "unknown": "#555555", "none": "#CBD2D9"}
FATE_COLORS = {"SFT": "#0072B2", "SFT and DPO": "#56B4E9", "DPO": "#009E73", "kept": "#0072B2", "usable": "#0072B2"}
_LOST = ("#E69F00", "#D55E00", "#CC79A7", "#882255", "#999933", "#555555", "#AA4499", "#332288")
"""Of reasons: none of those that stand for what was kept."""


def report(facts: Facts) -> str:
    """One self-contained page."""
    sections = {
        "Prompts": _prompts(facts),
        "From prompts to examples": _flow(facts),
        "Beside FuseChat-3.0": _recipe(facts),
        "Which source won": _wins(facts),
        "Verdicts": _verdicts(facts),
        "Rewards": _distributions(facts, "reward", "reward"),
        "Margins": _margins(facts),
        "Lengths": _distributions(facts, "length", f"{facts.length_unit} an answer"),
        "Unusable answers": _unusable(facts),
        "Cost": _cost(facts),
        "Samples to read": _samples(facts),
    }
    anchors = {title: title.lower().replace(" ", "-") for title in sections}
    links = "".join(f'<a href="#{anchor}">{title}</a>' for title, anchor in anchors.items())
    parts = [_tiles(facts), f"<nav>{links}</nav>"]
    for title, drawn in sections.items():
        parts += [f'<section><h2 id="{anchors[title]}">{title}</h2>', *drawn, "</section>"]
    return page(f"Data set {epath.Path(facts.config.output_dir).name}", parts)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML document."""
    name = html.escape(title)
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{charts.STYLE}{STYLE}</style></head>"
    )
    return "\n".join([head, f"<body><h1>{name}</h1>", *parts, "</body></html>", ""])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, total: bool = False) -> str:
    """An HTML table that scrolls in a box of its own; numbers are set right, shares and means with four digits.

    Args:
      header: of the columns.
      rows: of cells; None is shown as a dash.
      total: the last row is the sum of the others.
    """
    cells = [list(row) for row in rows]
    numeric = [any(isinstance(row[place], int | float) for row in cells) for place in range(len(header))]
    classes = [" class=number" if right else "" for right in numeric]
    head = "".join(f"<th{kind}>{html.escape(name)}</th>" for name, kind in zip(header, classes, strict=True))
    body = ""
    for place, row in enumerate(cells):
        last = " class=total" if total and place == len(cells) - 1 else ""
        values = "".join(f"<td{kind}>{_text(cell)}</td>" for cell, kind in zip(row, classes, strict=True))
        body += f"<tr{last}>{values}</tr>"
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _text(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else html.escape(str(cell))


def _frame_table(frame: pl.DataFrame) -> str:
    return table(frame.columns, frame.iter_rows())


def _numbers(drawn: str) -> str:
    return f"<details><summary>the numbers</summary>{drawn}</details>"


def _charts(drawn: Iterable[str]) -> str:
    return f"<div class=charts>{''.join(drawn)}</div>"


def _note(text: str) -> str:
    return f"<p class=note>{html.escape(text)}</p>"


def _few_reasons(table: Mapping[str, Mapping[str, int]]) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """The table with its rarest reasons as one, where there are more than colours; and the colours."""
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


def _tiles(facts: Facts) -> str:
    total = dict(facts.funnel()["total"])
    del total["prompts discarded"]
    if facts.records:
        total = {"records read": sum(entry["read"] for entry in facts.records), **total}
    tiles = "".join(f"<div class=tile><b>{count:,}</b><span>{name}</span></div>" for name, count in total.items())
    return f"<div class=tiles>{tiles}</div>"


def _prompts(facts: Facts) -> Iterable[str]:
    if not facts.records:
        yield _note("Prompts came from elsewhere: what was dropped before is not known.")
        return
    yield _note("Records of each data set: kept as prompts, or dropped for the first reason that applied.")
    reasons = dict.fromkeys(reason for entry in facts.records for reason in entry["dropped"])
    rows: dict[str, dict[str, int]] = {}
    for entry in facts.records:
        label = entry["dataset"] if entry["dataset"] not in rows else f"{entry['dataset']} ({entry['path']})"
        rows[label] = {"kept": entry["kept"], **{reason: entry["dropped"].get(reason, 0) for reason in reasons}}
    few, colors = _few_reasons(rows)
    domain_of = {label: entry["domain"] for label, entry in zip(rows, facts.records, strict=True)}
    drawn = {domain: {label: few[label] for label in few if domain_of[label] == domain} for domain in facts.domains}
    yield _charts(charts.stacked_bars(mine, title=domain, colors=colors) for domain, mine in drawn.items() if mine)
    lines = [
        [label, entry["domain"], entry["read"], entry["kept"], *list(row.values())[1:]]
        for (label, row), entry in zip(rows.items(), facts.records, strict=True)
    ]
    sums = [sum(column) for column in zip(*(line[2:] for line in lines), strict=True)]
    header = ["data set", "domain", "read", "kept", *reasons]
    yield _numbers(table(header, [*lines, ["total", "", *sums]], total=True))


def _flow(facts: Facts) -> Iterable[str]:
    fates, colors = _few_reasons(facts.fates())
    yield _note("Prompts serve SFT, DPO or both, or no rule could use their answers.")
    yield _charts(
        [
            charts.stacked_bars(fates, title="What became of the prompts", colors=colors),
            charts.stacked_bars(facts.answer_fates(), title="What became of the answers", colors=ANSWER_COLORS),
        ]
    )
    rows = facts.flow()
    total = facts.funnel()["total"]
    lines = [[dataset, domain, *row.values()] for (dataset, domain), row in rows.items()]
    yield table(["data set", "domain", *total], [*lines, ["total", "", *total.values()]], total=True)


def _recipe(facts: Facts) -> Iterable[str]:
    beside = {name: (domain, ours, theirs) for name, (domain, ours, theirs) in facts.beside_recipe().items() if theirs}
    others = [name for name in facts.beside_recipe() if name not in beside]
    if not beside:
        yield _note("None of these data sets is one of the recipe's.")
        return
    yield _note("Examples and pairs made of each data set, beside the counts that FuseChat-3.0's authors published.")
    share, labels = {}, {}
    for name, (_, ours, theirs) in beside.items():
        if theirs:
            share[name] = {
                "made": min(ours.total, theirs.total),
                "missing": max(theirs.total - ours.total, 0),
                "more than published": max(ours.total - theirs.total, 0),
            }
            labels[name] = f"{ours.total:,} of {theirs.total:,}"
    colors = {"made": "#0072B2", "missing": "#CBD2D9", "more than published": "#56B4E9"}
    yield _charts([charts.stacked_bars(share, title="Made, of those published", colors=colors, labels=labels)])
    header = ["data set", "domain"]
    header += [f"{name}{part}" for name in ("total", "SFT", "DPO") for part in ("", ", recipe", ", difference")]
    lines: list[list[Any]] = []
    for name, (domain, ours, theirs) in beside.items():
        if theirs:
            pairs = ((ours.total, theirs.total), (ours.sft, theirs.sft), (ours.dpo, theirs.dpo))
            lines.append([name, domain, *(n for mine, other in pairs for n in (mine, other, mine - other))])
    sums = [sum(column) for column in zip(*(line[2:] for line in lines), strict=True)]
    yield table(header, [*lines, ["total", "", *sums]], total=True)
    if others:
        yield _note(f"Not in the recipe: {', '.join(others)}.")


def _wins(facts: Facts) -> Iterable[str]:
    wins = {"SFT examples": facts.wins("sft"), "Chosen answers of DPO pairs": facts.wins("dpo")}
    colors = dict(zip(facts.sources, charts.COLORS, strict=False))
    if not any(wins.values()):
        yield _note("Nothing was selected.")
    yield _charts(charts.stacked_bars(rows, title=title, colors=colors) for title, rows in wins.items() if rows)
    if wins["SFT examples"] and not wins["Chosen answers of DPO pairs"]:
        yield _note("There are no pairs.")
    if any(wins.values()):
        yield _numbers(
            "".join(
                f"<p>{title}</p>"
                + table(["domain", *facts.sources], [[name, *row.values()] for name, row in rows.items()])
                for title, rows in wins.items()
                if rows
            )
        )


def _verdicts(facts: Facts) -> Iterable[str]:
    judged = {domain: facts.verdict_counts(domain) for domain in facts.domains}
    if not any(judged.values()):
        yield _note("No answer was judged.")
        return
    yield _charts(
        charts.stacked_bars(rows, title=domain, colors=VERDICT_COLORS) for domain, rows in judged.items() if rows
    )
    yield _numbers(_frame_table(facts.verdicts()))
    reasons = facts.reasons()
    if reasons.is_empty():
        return
    yield "<h3>Why: what scoring said</h3>"
    drawn = []
    for domain in facts.domains:
        mine = reasons.filter(domain=domain)
        bars = {f"{why or 'other'} ({verdict or 'no verdict'})": count for _, verdict, why, count in mine.iter_rows()}
        if bars:
            shown = dict(list(bars.items())[:8])
            if len(bars) > len(shown):
                shown[f"{len(bars) - len(shown)} other reasons"] = sum(bars.values()) - sum(shown.values())
            colors = {
                f"{why or 'other'} ({verdict or 'no verdict'})": VERDICT_COLORS[verdict or "none"]
                for _, verdict, why, _ in mine.iter_rows()
            }
            drawn.append(charts.bars(shown, title=domain, colors=colors))
    yield _charts(drawn)
    yield _numbers(_frame_table(reasons))


def _distributions(facts: Facts, column: str, label: str) -> Iterable[str]:
    """By source, then before and after selection."""
    colors = dict(zip(facts.sources, charts.COLORS, strict=False))
    by_source = {domain: facts.quantiles(column, domain) for domain in facts.domains}
    if not any(by_source.values()):
        yield _note("Not known for any answer.")
        return
    yield "<h3>By source</h3>"
    yield _note("All answers. Lines go from 5 to 95 %, boxes from 25 to 75 %, the mark and the number are the median.")
    yield _charts(
        charts.ranges(rows, title=domain, xlabel=label, colors=colors) for domain, rows in by_source.items() if rows
    )
    yield "<h3>Before and after selection</h3>"
    yield _note("Grey: all usable answers. Each shape adds up to 100 %.")
    yield _charts(
        charts.histograms(facts.parts(column, domain), title=domain, xlabel=label, colors=PART_COLORS, filled="all")
        for domain, rows in by_source.items() if rows
    )  # fmt: skip


def _margins(facts: Facts) -> Iterable[str]:
    drawn = []
    for domain in facts.domains:
        rule = facts.config.domains[domain].rule
        if not hasattr(rule, "min_margin"):
            continue
        margins = facts.margins(domain)
        if any(values.size for values in margins.values()):
            band = (rule.min_margin, rule.max_margin)
            label = "chosen minus rejected reward"
            drawn.append(
                charts.histograms(
                    margins, title=domain, xlabel=label, colors=MARGIN_COLORS, filled="before selection", band=band
                )
            )
    if not drawn:
        yield _note("No two answers could be compared.")
        return
    yield _note(
        "Before selection: the best against the worst answer of each source to each prompt, in mathematics and code "
        "the best correct against the worst wrong one. Shaded: the margins that the rules allow."
    )
    yield _charts(drawn)


def _unusable(facts: Facts) -> Iterable[str]:
    by_source, colors = _few_reasons(facts.unusable("source"))
    by_domain, _ = _few_reasons(facts.unusable("domain"))
    yield _note("Answers that can serve nowhere, neither chosen nor rejected, by the first reason that applied.")
    yield _charts(
        charts.stacked_bars(rows, title=title, colors=colors)
        for title, rows in (("By source", by_source), ("By domain", by_domain))
        if rows
    )
    strange = int(facts.selected["unused"]["domain"].null_count())
    if strange:
        yield _note(f"Besides, answers to prompts that are not there: {strange:,}.")
    marks = facts.marks()
    if marks is not None:
        yield "<h3>Flaws</h3>"
        yield _note("By the answers' looks, in percent of all of them; one can have several.")
        yield _frame_table(marks.with_columns((pl.col(pl.Float64) * 100).round(2)))
    yield "<h3>All that was left out</h3>"
    left_out = facts.left_out()
    if left_out:
        lines = [[*name.split(": ", 1), count] for name, count in left_out.items()]
        yield _numbers(table(["what", "reason", "count"], lines))
    else:
        yield _note("Nothing.")


def _cost(facts: Facts) -> Iterable[str]:
    costs = facts.costs()
    tokens = {name: cost.answer_tokens for name, cost in costs.items() if cost.answer_tokens is not None}
    if tokens:
        yield _charts([charts.bars(tokens, title="Answer tokens")])
    header = ["source", "answers", "prompt tokens", "answer tokens", "tokens/s", "", "GPUs", "GPU-hours"]
    lines = []
    for name, cost in costs.items():
        how = None if cost.tokens_per_second is None else "measured" if cost.measured else "given"
        rate = cost.tokens_per_second and round(cost.tokens_per_second)
        hours = cost.gpu_hours and round(cost.gpu_hours, 2)
        lines.append([name, cost.answers, cost.prompt_tokens, cost.answer_tokens, rate, how, cost.gpus, hours])
    yield table(header, lines)
    known = [cost.gpu_hours for cost in costs.values() if cost.gpu_hours is not None]
    missing = [name for name, cost in costs.items() if cost.gpu_hours is None]
    if known:
        besides = f", besides those of {', '.join(missing)}, which are not known" if missing else ""
        yield _note(f"Sampling took {sum(known):,.1f} GPU-hours{besides}. Loading models and waiting do not count.")
    else:
        yield _note("GPU-hours: not known; no rate was measured, nor given in the config.")
    made = len(facts.selected["sft"]) + len(facts.selected["dpo"])
    if tokens and made:
        yield _note(f"{sum(tokens.values()) / made:,.0f} answer tokens were sampled for each example or pair.")
    if facts.engines:
        yield _note(f"Sampled by {', '.join(facts.engines)}.")


def _samples(facts: Facts) -> Iterable[str]:
    yield _note(f"{EXAMPLES} examples and {EXAMPLES} pairs of each domain, drawn by the seed.")
    for domain in facts.domains:
        yield f"<h3>{html.escape(domain)}</h3>"
        drawn = [_sft(sample) for sample in facts.samples.get(("sft", domain), [])]
        drawn += [_pair(sample) for sample in facts.samples.get(("dpo", domain), [])]
        yield "".join(drawn) or _note("Nothing was selected.")


def _sft(sample: Sample) -> str:
    row = sample.row
    judged = _judged(sample, row["source"], row["sample_index"], row["reward"])
    head = f"<p>SFT, <b>{html.escape(row['source'])}</b>, {judged}</p>"
    return f"<div class=sample>{head}{_asked(sample)}{_block(row['text'], 'chosen')}</div>"


def _pair(sample: Sample) -> str:
    row = sample.row
    sides = ""
    for side in ("chosen", "rejected"):
        source, index = row[f"{side}_source"], row[f"{side}_sample_index"]
        judged = _judged(sample, source, index, row[f"{side}_reward"])
        sides += f"<div><p>{side}, <b>{html.escape(source)}</b>, {judged}</p>{_block(row[side], side)}</div>"
    return (
        f"<div class=sample><p>DPO, margin {row['margin']:.4f}</p>{_asked(sample)}<div class=pair>{sides}</div></div>"
    )


def _asked(sample: Sample) -> str:
    text = "\n".join(f"[{turn['role']}] {turn['content']}" for turn in sample.prompt["messages"])
    answer = sample.prompt["answer"]
    return _block(text) + (f"<p class=note>Right answer: {html.escape(answer)}</p>" if answer else "")


def _judged(sample: Sample, source: str, index: int, reward: float | None) -> str:
    """What scoring said of an answer, in a line."""
    found = sample.found.get((source, index), {})
    words = ["no reward" if reward is None else f"reward {reward:.4f}"]
    words += [str(found[name]) for name in ("verdict", "detail") if found.get(name)]
    # An extracted program is in the answer anyway.
    if sample.prompt["domain"] == "math" and found.get("extracted"):
        words.append(f"read as {found['extracted']}")
    return html.escape(", ".join(word if len(word) <= 200 else f"{word[:200]} ..." for word in words))


def _block(text: str, kind: str = "") -> str:
    return f"<pre dir=auto class='{kind}'>{html.escape(text)}</pre>"
