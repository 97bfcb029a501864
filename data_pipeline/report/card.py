"""The data card: what is in the data set and how it came about, in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl
from etils import epath

from data_pipeline.config import PipelineConfig, sampled_with
from data_pipeline.report.facts import Facts
from data_pipeline.report.sections import left_out, quantiles, scored
from data_pipeline.selection.rules import Parameters


def card(facts: Facts) -> str:
    """The whole card."""
    config = facts.config
    total = facts.funnel()["total"]
    flow = [[*names, *row.values()] for names, row in facts.flow().items()]
    sections = [
        f"# Data set {epath.Path(config.output_dir).name}",
        "Answers of several source models to the same prompts, judged, and the best of them kept: examples for "
        "supervised fine-tuning in `sft/`, preference pairs in `dpo/`"
        + (", triples of a source's and the target's answers (WRPO) in `wrpo/`" if facts.triples else "")
        + ", each with a `manifest.json`. Made by "
        "`python -m data_pipeline`; `report.html` beside this file has the pictures.",
        "## Contents",
        table(["data set", "domain", *total], [*flow, ["total", "", *total.values()]]),
        *_recipe(facts),
        "## Prompts",
        _prompts(facts),
        "## Sources",
        _sources(config),
        f"At most {config.max_new_tokens} new tokens; seed {config.seed}. Answers a prompt and source: "
        + ", ".join(f"{domain} {config.domains[domain].samples}" for domain in facts.domains)
        + "."
        + (f" Sampled by {', '.join(facts.engines)}." if facts.engines else ""),
        *_thoughts(facts),
        "## Scores",
        table(
            ["domain", "reward", "verifier"],
            [
                [
                    name,
                    domain.reward or _given(config, name, "reward"),
                    domain.verifier or _given(config, name, "verdict"),
                ]
                for name, domain in config.domains.items()
                if name in facts.domains
            ],
        ),
        _verdicts(facts),
        "## Selection",
        "\n".join(f"- {name}: {_rule(config.domains[name].rule)}" for name in facts.domains),
        *(
            [
                "Bounds that are quantiles of the margins, in the rewards' unit:",
                "\n".join(f"- {line}" for line in lines),
            ]
            if (lines := quantiles(facts))
            else []
        ),
        "## Which source won",
        _wins(facts),
        "## Cost",
        _cost(facts),
        "## Left out",
        table(lost.header, lost.rows) if (lost := left_out(facts)) else "Nothing.",
    ]
    return "\n\n".join(sections) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""

    def line(cells: Sequence[Any]) -> str:
        shown = (f"{cell:,}" if isinstance(cell, int) else "-" if cell is None else str(cell) for cell in cells)
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in shown) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def _sources(config: PipelineConfig) -> str:
    sampled = [sampled_with(source) for source in config.sources]
    names = ["temperature", "top_p", "repetition_penalty"]
    names += dict.fromkeys(name for parameters in sampled for name in parameters if name not in names)
    rows: list[list[Any]] = [
        [source.name, source.model, *(parameters.get(name) for name in names), ", ".join(source.domains)]
        for source, parameters in zip(config.sources, sampled, strict=True)
    ]
    rows += [[each.name, each.model, *["as given"] * len(names), ", ".join(each.domains)] for each in config.given]
    words = {"top_p": "top-p", "top_k": "top-k", "min_p": "min-p"}
    header = [words.get(name, name.replace("_", " ")) for name in names]
    return table(["name", "model", *header, "domains"], rows)


def _thoughts(facts: Facts) -> list[str]:
    """Nothing where no answer had one."""
    thoughts = facts.thoughts()
    if thoughts is None:
        return []
    said = (
        "Thoughts before the answer, cut off before scoring; an answer that is a thought and nothing else is not used:"
    )
    return [said, table(thoughts.columns, thoughts.iter_rows())]


def _given(config: PipelineConfig, domain: str, score: str) -> str | None:
    """Where the domain's answers have the score from if nothing gives it one; None if they have none."""
    entries = [entry for entry in config.given if domain in entry.domains and getattr(entry, score) is not None]
    return ", ".join(f"column {getattr(entry, score)} of {entry.name}" for entry in entries) or None


def _rule(rule: Parameters) -> str:
    """The rule and its parameters: `margin` (min_margin 0.01, ...)."""
    shown = ", ".join(f"{name} {'none' if value is None else value}" for name, value in rule if name != "name")
    return f"`{rule.name}` ({shown})"


def _recipe(facts: Facts) -> list[str]:
    """Nothing where none of the data sets is one of the recipe's."""
    rows = [
        [name, domain, ours.total, theirs.total, ours.total - theirs.total, ours.sft, theirs.sft, ours.sft - theirs.sft,
         ours.dpo, theirs.dpo, ours.dpo - theirs.dpo]
        for name, (domain, ours, theirs) in facts.beside_recipe().items() if theirs
    ]  # fmt: skip
    if not rows:
        return []
    sums = [sum(column) for column in zip(*(row[2:] for row in rows), strict=True)]
    parts = [f"{name}{part}" for name in ("total", "SFT", "DPO") for part in ("", ", recipe", ", difference")]
    return ["## Beside FuseChat-3.0", table(["data set", "domain", *parts], [*rows, ["total", "", *sums]])]


def _prompts(facts: Facts) -> str:
    read = {(entry["path"], entry["dataset"], entry["domain"]): entry for entry in facts.records}
    rows = []
    for entry in facts.config.prompts:
        found = read.get((entry.path, entry.dataset, entry.domain))
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in found["dropped"].items()) if found else None
        rows.append(
            [
                entry.dataset,
                entry.domain,
                entry.path,
                *((found["read"], found["kept"]) if found else (None, None)),
                dropped,
            ]
        )
    return table(["data set", "domain", "read from", "records", "prompts", "dropped"], rows)


def _verdicts(facts: Facts) -> str:
    frame = facts.verdicts().with_columns(pl.col(pl.Float64).round(4))
    tables = [table(frame.columns, frame.iter_rows())]
    if said := scored(facts):
        tables += ["What scoring said of the answers:", table(said.header, said.rows)]
    return "\n\n".join(tables)


def _wins(facts: Facts) -> str:
    tables = [
        f"{title}:\n\n" + table(["domain", *facts.sources], [[name, *row.values()] for name, row in rows.items()])
        for title, rows in (
            ("SFT examples", facts.wins("sft")),
            ("Chosen answers", facts.wins("dpo")),
            ("Sources' answers of triples", facts.wins("wrpo")),
        )
        if rows
    ]
    return "\n\n".join(tables) or "Nothing was selected."


def _cost(facts: Facts) -> str:
    rows = [
        [name, *(known if known is not None else "not known" for known in (
            cost.answers, cost.prompt_tokens, cost.answer_tokens,
            None if cost.gpu_hours is None else f"{cost.gpu_hours:,.1f}"))]
        for name, cost in facts.costs().items()
    ]  # fmt: skip
    return table(["source", "answers", "prompt tokens", "answer tokens", "GPU-hours"], rows)
