"""Stage `report`: what happened to every prompt and answer, as one HTML page and as a data card in Markdown."""

import html
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from etils import epath

from data_pipeline import charts, store
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.score import COLUMNS, NEEDED
from data_pipeline.select import TABLES
from fusejax.files import local_copy, write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { border-bottom: 1px solid #ccc; padding-bottom: .2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .8rem 0; } th, td { padding: .15rem .7rem; border-bottom: 1px solid #ddd; }
th { text-align: left; font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: flex; flex-wrap: wrap; gap: .5rem; } svg { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .6rem; margin: .3rem 0; max-height: 22rem; overflow: auto; }
.chosen { border-left: 4px solid #009E73; } .rejected { border-left: 4px solid #D55E00; }
.note { color: #555; }
"""
EXAMPLES = 2
"""SFT examples and pairs shown of each domain."""


def run(config: PipelineConfig) -> None:
    """Writes `report.html` and `data_card.md`.

    Raises:
      UserError: a table of an earlier stage is missing.
    """
    output = epath.Path(config.output_dir)
    paths = [output / "selection" / f"{name}.parquet" for name in TABLES]
    scores = [output / "scores" / f"{source.name}.parquet" for source in config.answerers]
    for path in paths:
        store.check_parquet(path, ["prompt_id"], made_by="select")
    for path in scores:
        store.check_parquet(path, [*NEEDED, *COLUMNS], made_by="score")
    prompts = store.read_parquet(output / "prompts.parquet", list(PROMPTS_SCHEMA), made_by="prompts")
    rejected = output / "rejected" / "prompts.jsonl"
    inputs = store.fingerprint(
        config.model_dump(mode="json"), output.name, output / "prompts.parquet", *paths, *scores,
        Path(__file__), Path(charts.__file__), *([rejected] if rejected.exists() else []),
    )  # fmt: skip
    page, card = output / "report.html", output / "data_card.md"

    def work() -> str:
        tables = {
            name: store.read_parquet(path, ["prompt_id"], made_by="select")
            for name, path in zip(TABLES, paths, strict=True)
        }
        facts = Facts(config, prompts, scores, tables, rejected)
        write_text(page, html_report(facts))
        write_text(card, data_card(facts))
        return f"{page}, {card}"

    store.once(output, "report", inputs, [page, card], work)


class Facts:
    """The tables behind the report, and the numbers that page and card both tell."""

    def __init__(
        self,
        config: PipelineConfig,
        prompts: pl.DataFrame,
        scores: Sequence[epath.Path],
        selected: dict[str, pl.DataFrame],
        rejected: epath.Path,
    ):
        self.config, self.prompts, self.selected = config, prompts, selected
        wanted = ["prompt_id", "source", "finish_reason", "reward", "verdict", "detail", "completion_tokens"]
        parts = []
        for path in scores:
            with local_copy(path) as local:
                present = pl.read_parquet_schema(local)
                parts.append(pl.read_parquet(local, columns=[column for column in wanted if column in present]))
        answers = pl.concat(parts, how="diagonal")
        self.answers = answers.join(prompts.select(prompt_id="id", domain="domain"), on="prompt_id")
        self.rejected: Counter[str] = Counter()
        if rejected.exists():
            with local_copy(rejected) as local, local.open("rb") as lines:
                self.rejected.update(json.loads(line)["reason"] for line in lines)
        self.domains = sorted(set(prompts["domain"]))

    def funnel(self) -> dict[str, dict[str, int]]:
        """Domain (and "total") -> counts along the way."""
        table = {}
        for domain in self.domains:
            answers = self.answers.filter(pl.col("domain") == domain)
            mine = {name: frame.filter(pl.col("domain") == domain) for name, frame in self.selected.items()}
            table[domain] = {
                "prompts": len(self.prompts.filter(pl.col("domain") == domain)),
                "answers": len(answers),
                "usable answers": len(answers) - len(mine["unused"]),
                "SFT examples": len(mine["sft"]),
                "DPO pairs": len(mine["dpo"]),
                "prompts discarded": len(mine["discarded"]),
            }
        table["total"] = {key: sum(row[key] for row in table.values()) for key in next(iter(table.values()))}
        return table

    def wins(self, kind: str) -> dict[str, dict[str, int]]:
        """Domain -> source -> selected examples ("sft") or pairs ("dpo")."""
        frame, column = self.selected[kind], "source" if kind == "sft" else "chosen_source"
        counts = {row[:2]: row[2] for row in frame.group_by("domain", column).len().iter_rows()}
        sources = [source.name for source in self.config.answerers]
        return {
            domain: {source: counts.get((domain, source), 0) for source in sources}
            for domain in self.domains
            if any(key[0] == domain for key in counts)
        }

    def verdicts(self) -> pl.DataFrame:
        """Per domain and source: answers, mean reward, and shares of each verdict."""
        share = [(pl.col("verdict") == name).mean().alias(name) for name in ("correct", "wrong", "unknown")]
        finite = pl.col("reward").filter(pl.col("reward").is_finite())
        return (
            self.answers.group_by("domain", "source")
            .agg(
                answers=pl.len(),
                reward=finite.mean(),
                truncated=(pl.col("finish_reason") == "length").mean(),
                **{e.meta.output_name(): e for e in share},
            )
            .sort("domain", "source")
        )

    def reasons(self) -> pl.DataFrame:
        """Why verdicts are as they are: domain, verdict, the constant part of `detail`, count."""
        reason = pl.col("detail").fill_null("").str.split(":").list.first().alias("reason")
        known = self.answers.filter(pl.col("detail").is_not_null())
        return known.group_by("domain", "verdict", reason).len("answers").sort(
            ["domain", "verdict", "answers", "reason"], descending=[False, False, True, False]
        )  # fmt: skip

    def left_out(self) -> dict[str, int]:
        """Everything that did not make it, with stage, reason and count."""
        table = {f"record: {reason}": count for reason, count in self.rejected.most_common()}
        for name, label in (("unused", "answer"), ("discarded", "prompt")):
            counts = self.selected[name]["reason"].value_counts(sort=True)
            table |= {f"{label}: {reason}": count for reason, count in counts.iter_rows()}
        return table


def html_report(facts: Facts) -> str:
    """One self-contained page."""
    funnel = facts.funnel()
    total = dict(funnel["total"])
    total.pop("prompts discarded")
    flow = {"records read": total["prompts"] + sum(facts.rejected.values()), **total}
    wins = {"SFT examples": facts.wins("sft"), "chosen answers of DPO pairs": facts.wins("dpo")}
    parts = [
        "<h2>Flow</h2>",
        charts.bars(flow, title="From records to examples"),
        table(["domain", *next(iter(funnel.values()))], [[domain, *row.values()] for domain, row in funnel.items()]),
        "<h2>Which source won</h2><div class=charts>",
        *(charts.stacked_bars(rows, title=title) for title, rows in wins.items() if rows),
        "</div><h2>Rewards</h2><div class=charts>",
        *(_reward_chart(facts, domain) for domain in facts.domains),
        "</div>",
    ]
    if not facts.selected["dpo"].is_empty():
        parts += ["<h2>Pairs</h2><div class=charts>", _pair_charts(facts), "</div>"]
    if "completion_tokens" in facts.answers.columns:
        tokens = _by_source(facts, facts.answers, "completion_tokens")
        parts += ["<h2>Lengths</h2>", charts.histograms(tokens, title="Answers", xlabel="tokens, each source's own")]
    parts += [
        "<h2>Verdicts</h2>",
        frame_table(facts.verdicts()),
        "<h3>Why</h3>",
        frame_table(facts.reasons()),
        "<h2>Left out</h2><p class=note>Records that are no prompts, answers that could serve nowhere, and prompts "
        "that gave no example.</p>",
        table(["what: reason", "count"], [[reason, count] for reason, count in facts.left_out().items()]),
        "<h2>Samples to read</h2>",
        *_examples(facts),
    ]  # fmt: skip
    return page(f"Data set {epath.Path(facts.config.output_dir).name}", parts)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML document."""
    name = html.escape(title)
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style></head>'
    )
    return "\n".join([head, f"<body><h1>{name}</h1>", *parts, "</body></html>", ""])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; numbers are set right, shares and means with four digits."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def frame_table(frame: pl.DataFrame) -> str:
    return table(frame.columns, frame.iter_rows())


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        return f"<td class=number>{value:,}</td>" if isinstance(value, int) else f"<td class=number>{value:.4g}</td>"
    return f"<td>{html.escape('-' if value is None else str(value))}</td>"


def _by_source(facts: Facts, frame: pl.DataFrame, column: str) -> dict[str, np.ndarray]:
    """Source -> its values of `column`, all sources in the config's order, so that each has one colour everywhere."""
    names = [source.name for source in facts.config.answerers]
    return {name: frame.filter(pl.col("source") == name)[column].drop_nulls().to_numpy() for name in names}


def _reward_chart(facts: Facts, domain: str) -> str:
    mine = facts.answers.filter((pl.col("domain") == domain) & pl.col("reward").is_finite())
    if mine.is_empty():
        return ""
    return charts.histograms(_by_source(facts, mine, "reward"), title=f"Rewards: {domain}", xlabel="reward")


def _pair_charts(facts: Facts) -> str:
    pairs = facts.selected["dpo"]
    margins = {name: pairs.filter(pl.col("domain") == name)["margin"].to_numpy() for name in facts.domains}
    lengths = {kind: pairs[kind].str.len_chars().to_numpy() for kind in ("chosen", "rejected")}
    return charts.histograms(
        margins, title="Margin of the selected pairs", xlabel="chosen minus rejected reward"
    ) + charts.histograms(lengths, title="Length of the selected pairs", xlabel="characters")


def _examples(facts: Facts) -> Iterable[str]:
    messages = dict(facts.prompts.select("id", "messages").iter_rows())

    def block(text: str, kind: str = "") -> str:
        return f"<pre class='{kind}'>{html.escape(text)}</pre>"

    for domain in facts.domains:
        yield f"<h3>{html.escape(domain)}</h3>"
        for kind in ("sft", "dpo"):
            frame = facts.selected[kind].filter(pl.col("domain") == domain)
            order = [store.rank(facts.config.seed, "show", prompt) for prompt in frame["prompt_id"]]
            shown = frame.with_columns(order=pl.Series(order, dtype=pl.Int64)).sort("order").head(EXAMPLES)
            for row in shown.iter_rows(named=True):
                prompt = "\n".join(f"[{turn['role']}] {turn['content']}" for turn in messages[row["prompt_id"]])
                if kind == "sft":
                    reward = "no reward" if row["reward"] is None else f"reward {row['reward']:.4f}"
                    yield f"<p>SFT, <b>{html.escape(row['source'])}</b>, {reward}</p>{block(prompt)}"
                    yield block(row["text"], "chosen")
                else:
                    rewards = f"{row['chosen_reward']:.4f} against {row['rejected_reward']:.4f}"
                    yield f"<p>DPO, <b>{html.escape(row['chosen_source'])}</b>, {rewards}</p>{block(prompt)}"
                    yield block(row["chosen"], "chosen") + block(row["rejected"], "rejected")


def data_card(facts: Facts) -> str:
    """What is in the data set and how it came about, in Markdown."""
    config = facts.config
    funnel = facts.funnel()
    sections = [
        f"# Data set {epath.Path(config.output_dir).name}",
        "Answers of several source models to the same prompts, judged, and the best of them kept: examples for "
        "supervised fine-tuning in `sft/`, preference pairs in `dpo/`, each with a `manifest.json`. Made by "
        "`python -m data_pipeline`.",
        "## Contents",
        markdown_table(["domain", *funnel["total"]], [[name, *row.values()] for name, row in funnel.items()]),
        "## Prompts",
        markdown_table(
            ["dataset", "domain", "read from", "prompts"],
            [
                [entry.dataset, entry.domain, entry.path, len(facts.prompts.filter(pl.col("dataset") == entry.dataset))]
                for entry in config.prompts
            ],
        ),
        "## Sources",
        markdown_table(
            ["name", "model", "temperature", "top-p", "repetition penalty", "domains"],
            [
                [s.name, s.model, s.temperature, s.top_p, s.repetition_penalty, ", ".join(s.domains)]
                for s in config.sources
            ]
            + [[g.name, g.model, "as given", "as given", "as given", ", ".join(g.domains)] for g in config.given],
        ),
        f"At most {config.max_new_tokens} new tokens; seed {config.seed}. Answers a prompt and source: "
        + ", ".join(f"{domain} {getattr(config.samples_per_prompt, domain)}" for domain in facts.domains)
        + ".",
        "## Scores",
        markdown_table(
            ["domain", "reward", "correctness"],
            [
                [domain, getattr(config.scorers, domain).reward, getattr(config.scorers, domain).correctness]
                for domain in facts.domains
            ],
        ),
        "## Selection",
        "\n".join(f"- {name}: `{getattr(config.selection, name).model_dump_json()}`" for name in facts.domains),
        "## Which source won",
        "\n\n".join(
            f"{title}:\n\n"
            + markdown_table(
                ["domain", *(s.name for s in config.answerers)], [[name, *row.values()] for name, row in rows.items()]
            )
            for title, rows in (("SFT examples", facts.wins("sft")), ("Chosen answers", facts.wins("dpo")))
            if rows
        ),
        "## Left out",
        markdown_table(["what: reason", "count"], facts.left_out().items()),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        shown = (f"{cell:,}" if isinstance(cell, int) else "-" if cell is None else str(cell) for cell in cells)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])
