"""The data card of an import: what was read from where, what became of it, and what was left out, in Markdown."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from etils import epath

from data_pipeline.importing.config import ImportConfig
from data_pipeline.importing.funnel import Funnel
from data_pipeline.report.card import table
from data_pipeline.report.reasons import words
from fusejax.data.records import Record


def card(config: ImportConfig, funnels: Sequence[Funnel], splits: dict[str, Sequence[Record]]) -> str:
    """The whole card.

    Args:
      splits: `KIND/SPLIT` -> its records.
    """
    contents: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for part, records in splits.items():
        kind, split = part.split("/")
        for record in records:
            contents[kind, record.dataset, record.domain, record.source_model][split] += 1
    left_out = [
        [funnel.name, reason, words("row", reason), count]
        for funnel in funnels
        for reason, count in funnel.dropped.most_common()
    ]
    sections = [
        f"# Data set {epath.Path(config.output_dir).name}",
        "Conversations and pairs as they were found, without sampling or scoring: examples for supervised fine-tuning "
        "in `sft/`, preference pairs in `dpo/`, triples of a source's and the target's answers (WRPO) in `wrpo/`, each "
        "with a `manifest.json`. Made by `python -m data_pipeline import`. "
        "The licences of the data sets below hold for their parts; they were not looked up.",
        "## Contents",
        table(
            ["kind", "data set", "domain", "source", "train", "eval"],
            [[*names, counts["train"], counts["eval"]] for names, counts in sorted(contents.items())],
        ),
        "## Read",
        table(
            ["data set", "read from", "format", "rows", "cut at the end", "left out", "kept"],
            [[f.name, _where(f.origin), f.format, f.read, f.cut, f.dropped.total(), f.kept] for f in funnels],
        ),
        "Cut at the end: rows that ended with turns that nobody answered, which were left out.",
        "## Left out",
        table(["data set", "reason", "meaning", "rows"], left_out) if left_out else "Nothing.",
        "## How it was drawn",
        table(
            ["data set", "limit", "weight", "for evaluation only"],
            [[f.name, f.entry.limit, f.entry.weight, "yes" if f.entry.eval else "no"] for f in funnels],
        ),
        f"Seed {config.seed}. Held out for evaluation: {config.write.eval_fraction:g} of each domain's prompts. "
        f"Near copies: {_near(config.overlap.near_duplicates)}. "
        f"Evaluation sets kept out: {', '.join(entry.name for entry in config.overlap.evaluation_sets) or 'none'}.",
    ]
    return "\n\n".join(sections) + "\n"


def _where(origin: dict[str, str]) -> str:
    path, *details = origin.items()
    return ", ".join([path[1], *(" ".join(detail) for detail in details)])


def _near(similarity: float | None) -> str:
    return "kept" if similarity is None else f"left out from a similarity of {similarity:g}"
