"""The numbers of a report, computed from the tables that the stages wrote.

Of each answer only what is counted is held in memory, a few dozen bytes; texts are read only for the examples shown.
"""

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts.stage import FUNNEL
from data_pipeline.prompts.stage import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.report.recipe import Counts, published
from data_pipeline.sampling import estimate
from data_pipeline.sampling.flaws import FLAWS
from data_pipeline.sampling.reasoning import THOUGHT_ONLY
from data_pipeline.scoring.stage import NEEDED
from data_pipeline.selection.rules import RULES, WRPO, Bounds
from data_pipeline.selection.stage import ANSWERS, MARGINS, TABLES
from fusejax.common.cli import UserError
from fusejax.common.files import local_copy

PARTS = ("all", "SFT", "chosen", "rejected")
"""What an answer became; "all" are the usable ones."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EXAMPLES = 2
"""SFT examples, pairs, and triples, shown per domain."""


def paths(config: PipelineConfig) -> list[epath.Path]:
    """The files that `read` needs.

    Raises:
      UserError: one is missing, or is no such table.
    """
    output = epath.Path(config.output_dir)
    tables = {output / "selection" / f"{name}.parquet": (["prompt_id"], "select") for name in TABLES}
    tables |= {path: ([*NEEDED, "reward", "verdict", "extracted", "detail"], "score") for path in _scores(config)}
    tables[output / "prompts.parquet"] = (list(PROMPTS_SCHEMA), "prompts")
    for path, (columns, stage) in tables.items():
        stage_files.check_parquet(path, columns, made_by=stage)
    margins = output / MARGINS
    if not margins.exists():
        raise UserError(f"{margins}: no such file; run the stage 'select' first")
    return [*tables, margins]


class Sample(NamedTuple):
    """A selected example to read."""

    row: dict[str, Any]
    """Of `sft.parquet`, `dpo.parquet` or `wrpo.parquet`."""
    prompt: dict[str, Any]
    """Of `prompts.parquet`."""
    found: dict[tuple[str, int], dict[str, Any]]
    """(source, sample index) -> what scoring found: verdict, extracted, detail."""


@dataclass(frozen=True)
class Cost:
    """What a source's answers took."""

    answers: int
    prompt_tokens: int | None
    """Counted once per answer, though a server may compute a prompt only once. None where not known, as below."""
    answer_tokens: int | None
    tokens_per_second: float | None
    """Answer tokens, on all GPUs together."""
    measured: bool
    """Whether the rate is that of this run, rather than the config's."""
    gpus: int

    @property
    def gpu_hours(self) -> float | None:
        if self.answer_tokens is None or not self.tokens_per_second:
            return None
        return self.answer_tokens / self.tokens_per_second * self.gpus / 3600


@dataclass(frozen=True)
class Facts:
    """The tables, and the numbers that both the page and the card show."""

    config: PipelineConfig
    prompts: pl.DataFrame
    """prompt_id, dataset, domain."""
    answers: pl.DataFrame
    """dataset, domain, source, prompt (a number), reward, verdict, why (the constant part of `detail`), length, thought
    and alone (whether one was cut off, and no answer followed), unused (the reason, or null), sft, chosen, rejected;
    prompt_tokens, completion_tokens and `FLAWS` where they are known."""
    selected: dict[str, pl.DataFrame]
    """The tables of the selection, without texts."""
    bounds: dict[str, Bounds]
    """Domain -> the bounds of its margins in the rewards' unit, where its rule makes pairs."""
    samples: dict[tuple[str, str], list[Sample]]
    """("sft", "dpo" or "wrpo", domain) -> a few examples to read."""
    records: list[dict[str, Any]]
    """What the stage `prompts` counted for each entry of the config; empty if prompts came from elsewhere."""
    engines: list[str]
    """The software that generated the answers, where known."""
    rates: dict[str, float]
    """Source -> answer tokens per second, where measured."""
    length_unit: str
    """Unit of the column `length`."""

    @functools.cached_property
    def domains(self) -> list[str]:
        """Those that have prompts, in the order of the config."""
        return [domain for domain in self.config.domains if domain in set(self.prompts["domain"])]

    @property
    def sources(self) -> list[str]:
        return [source.name for source in self.config.answerers]

    @functools.cached_property
    def datasets(self) -> list[tuple[str, str]]:
        """(dataset, domain), by domain."""
        found = self.prompts.select("dataset", "domain").unique().iter_rows()
        return sorted(found, key=lambda row: (self.domains.index(row[1]), row[0]))

    @property
    def triples(self) -> bool:
        """Whether there are any: reports on data without them do not mention them."""
        return not self.selected["wrpo"].is_empty()

    def funnel(self) -> dict[str, dict[str, int]]:
        """Domain (and "total") -> counts along the way."""
        return _with_total({domain: self._flow(domain=domain) for domain in self.domains})

    def flow(self) -> dict[tuple[str, str], dict[str, int]]:
        """(dataset, domain) -> counts along the way."""
        return {names: self._flow(dataset=names[0], domain=names[1]) for names in self.datasets}

    def _flow(self, **names: str) -> dict[str, int]:
        answers = self.answers.filter(**names)
        count = {name: len(frame.filter(**names)) for name, frame in self.selected.items()}
        return {
            "prompts": len(self.prompts.filter(**names)),
            "answers": len(answers),
            "usable answers": int(answers["unused"].null_count()),
            "SFT examples": count["sft"],
            "DPO pairs": count["dpo"],
            **({"WRPO triples": count["wrpo"]} if self.triples else {}),
            "prompts discarded": count["discarded"],
        }

    def fates(self) -> dict[str, dict[str, int]]:
        """Domain -> what became of its prompts -> count."""
        table = {}
        for domain in self.domains:
            ids = {
                name: frame.filter(domain=domain).select("prompt_id").unique() for name, frame in self.selected.items()
            }
            sft, dpo = ids["sft"], ids["dpo"]
            both = len(sft.join(dpo, on="prompt_id", how="semi"))
            reasons = self.selected["discarded"].filter(domain=domain)["reason"].value_counts(sort=True)
            table[domain] = {"SFT": len(sft) - both, "SFT and DPO": both, "DPO": len(dpo) - both}
            table[domain] |= {"WRPO": len(ids["wrpo"])} if self.triples else {}
            table[domain] |= {f"discarded: {reason}": count for reason, count in reasons.iter_rows()}
        return _aligned(table)

    def answer_fates(self) -> dict[str, dict[str, int]]:
        """Domain -> what became of its answers -> count."""
        fate = (
            pl.when(pl.col("unused").is_not_null())
            .then(pl.lit("unusable"))
            .when(pl.col("sft") & pl.col("chosen"))
            .then(pl.lit("SFT and chosen"))
            .when("sft")
            .then(pl.lit("SFT"))
            .when("chosen")
            .then(pl.lit("chosen"))
            .when("rejected")
            .then(pl.lit("rejected"))
            .otherwise(pl.lit("not selected"))
        )
        counts = self.answers.group_by(pl.col("domain").cast(pl.String), fate.alias("fate")).len()
        found = {row[:2]: row[2] for row in counts.iter_rows()}
        names = ("SFT", "SFT and chosen", "chosen", "rejected", "not selected", "unusable")
        return {domain: {name: found.get((domain, name), 0) for name in names} for domain in self.domains}

    def unusable(self, by: str) -> dict[str, dict[str, int]]:
        """Source or domain -> "usable", or why not -> answers."""
        table: dict[str, dict[str, int]] = {name: {"usable": 0} for name in self._order(by)}
        reason = pl.col("unused").cast(pl.String).fill_null("usable")
        counts = self.answers.group_by(pl.col(by).cast(pl.String), reason=reason).len("count")
        for name, why, count in counts.sort("count", by, "reason", descending=[True, False, False]).iter_rows():
            table.setdefault(name, {})[why] = count
        return _aligned({name: row for name, row in table.items() if sum(row.values())})

    def marks(self) -> pl.DataFrame | None:
        """Source -> share of the answers with each of `FLAWS`; None where no answer is marked at all."""
        present = [mark for mark in FLAWS if mark in self.answers.columns]
        if not present:
            return None
        return self._by_source([pl.col(mark).mean() for mark in present])

    def thoughts(self) -> pl.DataFrame | None:
        """Source -> answers with a thought before them, and those that are a thought alone; None where none has one."""
        if not self.answers["thought"].any():
            return None
        table = self._by_source([pl.len().alias("answers"), pl.col("thought").sum(), pl.col("alone").sum()])
        table = table.rename({"thought": "with a thought", "alone": "without an answer after it"})
        return table.with_columns(pl.exclude("source").cast(pl.Int64))

    def wins(self, kind: str) -> dict[str, dict[str, int]]:
        """Domain -> source -> selected examples ("sft"), pairs ("dpo"), or sources' answers in triples ("wrpo")."""
        frame, column = self.selected[kind], {"sft": "source", "dpo": "chosen_source"}.get(kind, "source_chosen_source")
        counts = {row[:2]: row[2] for row in frame.group_by("domain", column).len().iter_rows()}
        return {
            domain: {source: counts.get((domain, source), 0) for source in self.sources}
            for domain in self.domains
            if any(key[0] == domain for key in counts)
        }

    def verdicts(self) -> pl.DataFrame:
        """Per domain and source: answers, mean reward, and shares of each verdict."""
        share = [(pl.col("verdict") == name).mean().alias(name) for name in ("correct", "wrong", "unknown")]
        finite = pl.col("reward").filter(pl.col("reward").is_finite())
        columns = ["domain", pl.col("source").cast(pl.String)]
        return self.answers.group_by(columns).agg(pl.len().alias("answers"), finite.mean(), *share).sort(
            pl.col("domain").cast(pl.Enum(self.domains)), "source"
        )  # fmt: skip

    def verdict_counts(self, domain: str) -> dict[str, dict[str, int]]:
        """Source -> verdict -> answers; empty where nothing was judged."""
        mine = self.answers.filter(domain=domain)
        if mine["verdict"].null_count() == len(mine):
            return {}
        names = pl.col("verdict").cast(pl.String).fill_null("none")
        counts = {row[:2]: row[2] for row in mine.group_by(pl.col("source").cast(pl.String), names).len().iter_rows()}
        verdicts = ("correct", "wrong", "unknown", "none")
        asked = [source for source in self.sources if any(key[0] == source for key in counts)]
        return {source: {verdict: counts.get((source, verdict), 0) for verdict in verdicts} for source in asked}

    def reasons(self) -> pl.DataFrame:
        """Why verdicts and rewards are as they are: domain, verdict, the constant part of `detail`, answers."""
        known = self.answers.filter(pl.col("why").is_not_null())
        columns = [pl.col(name).cast(pl.String) for name in ("domain", "verdict", "why")]
        place = pl.col("domain").cast(pl.Enum(self.domains))
        return (
            known.group_by(columns)
            .len("answers")
            .sort(place, "answers", "verdict", "why", descending=[False, True, False, False])
        )

    def quantiles(self, column: str, domain: str) -> dict[str, list[float]]:
        """Source -> `QUANTILES` of its finite values; sources without any are left out."""
        mine = self.answers.filter(pl.col("domain") == domain, pl.col(column).is_finite())
        found = mine.group_by(pl.col("source").cast(pl.String)).agg(
            *(pl.col(column).quantile(q, "linear").cast(pl.Float64).alias(str(q)) for q in QUANTILES)
        )
        rows = {name: values for name, *values in found.iter_rows()}
        return {source: rows[source] for source in self.sources if source in rows}

    def parts(self, column: str, domain: str) -> dict[str, np.ndarray]:
        """Each of `PARTS` -> the values of its answers."""
        mine = self.answers.filter(domain=domain)
        marks = {
            "all": pl.col("unused").is_null(),
            "SFT": pl.col("sft"),
            "chosen": pl.col("chosen"),
            "rejected": pl.col("rejected"),
        }
        return {name: mine.filter(marks[name])[column].drop_nulls().to_numpy() for name in PARTS}

    def margins(self, domain: str) -> dict[str, np.ndarray]:
        """Best minus worst reward of a source's answers to a prompt, as the rules see them; and the pairs' margins, or
        those of the target's two answers in triples."""
        rule = self.config.domains[domain].rule
        usable = self.answers.filter(
            pl.col("domain") == domain, pl.col("unused").is_null(), pl.col("reward").is_finite()
        )
        if isinstance(rule, WRPO):
            usable = usable.filter(pl.col("source").cast(pl.String).eq_missing(pl.lit(rule.target, pl.String)))
        group = ["prompt", "source"] if getattr(rule, "same_source", True) else ["prompt"]
        if not RULES[rule.name].needs_verdict:
            best, worst, enough = pl.col("reward").max(), pl.col("reward").min(), pl.len() > 1
        else:
            right, wrong = (pl.col("reward").filter(pl.col("verdict") == name) for name in ("correct", "wrong"))
            best, worst, enough = right.max(), wrong.min(), (right.len() > 0) & (wrong.len() > 0)
        before = usable.group_by(group).agg(margin=(best - worst).round(6), enough=enough).filter("enough")
        pairs = self.selected["wrpo" if isinstance(rule, WRPO) else "dpo"].filter(domain=domain)
        return {"before selection": before["margin"].to_numpy(), "pairs": pairs["margin"].to_numpy()}

    def beside_recipe(self) -> dict[str, tuple[str, Counts, Counts | None]]:
        """Dataset -> (domain, what became of it, what the recipe made of it: None where it has no such data set)."""
        theirs = published(self.config.prompts)
        flow = self.flow()
        return {
            dataset: (domain, Counts(row["SFT examples"], row["DPO pairs"]), theirs.get(dataset))
            for (dataset, domain), row in flow.items()
        }

    def costs(self) -> dict[str, Cost]:
        """Source -> what its answers took."""
        tokens = {name: name in self.answers.columns for name in ("prompt_tokens", "completion_tokens")}
        table = {}
        for source in self.config.sources:
            mine = self.answers.filter(source=source.name)
            spent = {name: int(mine[name].sum()) if known else None for name, known in tokens.items()}
            table[source.name] = Cost(
                len(mine),
                spent["prompt_tokens"],
                spent["completion_tokens"],
                self.rates.get(source.name, source.cost.tokens_per_second),
                measured=source.name in self.rates,
                gpus=estimate.gpus(source),
            )
        return table

    def left_out(self) -> dict[str, int]:
        """Everything that was left out, with stage, reason and count."""
        table: dict[str, int] = {}
        for entry in self.records:
            for reason, count in entry["dropped"].items():
                table[f"record: {reason}"] = table.get(f"record: {reason}", 0) + count
        for name, label in (("unused", "answer"), ("discarded", "prompt")):
            counts = self.selected[name]["reason"].value_counts(sort=True)
            table |= {f"{label}: {reason}": count for reason, count in counts.iter_rows()}
        return table

    def _by_source(self, columns: Sequence[pl.Expr]) -> pl.DataFrame:
        return self.answers.group_by(pl.col("source").cast(pl.String)).agg(columns).sort("source")

    def _order(self, by: str) -> list[str]:
        return self.sources if by == "source" else self.domains


def read(config: PipelineConfig) -> Facts:
    """Gathers the facts from a run's folder, in which all `paths` exist."""
    output = epath.Path(config.output_dir)
    with contextlib.ExitStack() as stack:
        # Copies of files in a bucket, each fetched once.
        scores = [stack.enter_context(local_copy(path)) for path in _scores(config)]
        prompts_file = stack.enter_context(local_copy(output / "prompts.parquet"))
        tables = {name: stack.enter_context(local_copy(output / "selection" / f"{name}.parquet")) for name in TABLES}
        prompts = pl.read_parquet(prompts_file, columns=["id", "dataset", "domain"], glob=False)
        prompts = prompts.rename({"id": "prompt_id"})
        selected = {name: _without_texts(table) for name, table in tables.items()}
        columns = [set(pl.read_parquet_schema(path)) for path in scores]
        common = columns[0].intersection(*columns)
        answers = pl.concat([_answers(path, prompts, common) for path in scores])
        engines = _engines(scores) if "engine" in common else []
        samples = _samples(config.seed, selected, tables, prompts_file, scores)
    funnel = output / FUNNEL
    return Facts(
        config,
        prompts,
        _with_fates(answers, prompts, selected),
        selected,
        {name: Bounds(**found) for name, found in json.loads((output / MARGINS).read_text()).items()},
        samples,
        records=json.loads(funnel.read_text()) if funnel.exists() else [],
        engines=engines,
        rates=_rates(config),
        length_unit="tokens" if "completion_tokens" in common else "characters",
    )


def _scores(config: PipelineConfig) -> list[epath.Path]:
    return [epath.Path(config.output_dir) / "scores" / f"{source.name}.parquet" for source in config.answerers]


def _answers(path: Path, prompts: pl.DataFrame, present: set[str]) -> pl.DataFrame:
    """One row per answer to one of the prompts. Prompts are numbers here: ids would take most of the memory."""
    known = prompts.lazy().with_row_index("prompt").select("prompt", "prompt_id", "dataset", "domain")
    known = known.with_columns(pl.col("dataset", "domain").cast(pl.Categorical))
    tokens = [name for name in ("prompt_tokens", "completion_tokens") if name in present]
    length = pl.col("completion_tokens") if "completion_tokens" in present else pl.col("text").str.len_chars()
    thoughts = "reasoning" in pl.read_parquet_schema(path)
    table = pl.scan_parquet(path, glob=False).select(
        pl.col("prompt_id").cast(pl.String),
        pl.col("source", "verdict").cast(pl.String).cast(pl.Categorical),
        pl.col("sample_index").cast(pl.Int64),
        pl.col("reward").cast(pl.Float64),
        pl.col("detail").cast(pl.String).str.extract("^([^:;]*)").cast(pl.Categorical).alias("why"),
        length.cast(pl.Int32).alias("length"),
        (pl.col("reasoning").is_not_null() if thoughts else pl.lit(False)).alias("thought"),
        (THOUGHT_ONLY if thoughts else pl.lit(False)).alias("alone"),
        *(pl.col(name).cast(pl.Int32) for name in tokens),
        *(pl.col(mark).cast(pl.Boolean) for mark in FLAWS if mark in present),
    )
    return table.join(known, on="prompt_id").drop("prompt_id").collect(engine="streaming")


def _with_fates(answers: pl.DataFrame, prompts: pl.DataFrame, selected: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """The answers with the columns unused, sft, chosen and rejected."""
    numbers = prompts.select("prompt_id").with_row_index("prompt")
    key = ["prompt", "source", "sample_index"]

    def keys(table: str, prefix: str, *more: pl.Expr) -> pl.DataFrame:
        named = selected[table].select(
            "prompt_id",
            pl.col(f"{prefix}source").cast(pl.Categorical).alias("source"),
            pl.col(f"{prefix}sample_index").cast(pl.Int64).alias("sample_index"),
            *more,
        )
        return named.join(numbers, on="prompt_id").drop("prompt_id").unique(key)

    reason = pl.col("reason").cast(pl.Categorical).alias("unused")
    answers = answers.join(keys("unused", "", reason), on=key, how="left")
    places = {
        "sft": [("sft", "")],
        "chosen": [("dpo", "chosen_"), ("wrpo", "source_chosen_"), ("wrpo", "target_chosen_")],
        "rejected": [("dpo", "rejected_"), ("wrpo", "rejected_")],
    }
    for name, found in places.items():
        marked = pl.concat([keys(*place, pl.lit(True).alias(name)) for place in found])
        answers = answers.join(marked, on=key, how="left").with_columns(pl.col(name).fill_null(False))
    return answers


def _without_texts(path: Path) -> pl.DataFrame:
    texts = {answer or "text" for answers in ANSWERS.values() for answer in answers}
    columns = [name for name in pl.read_parquet_schema(path) if name not in texts]
    return pl.read_parquet(path, columns=columns, glob=False)


def _samples(
    seed: int, selected: Mapping[str, pl.DataFrame], tables: Mapping[str, Path], prompts: Path, scores: Sequence[Path]
) -> dict[tuple[str, str], list[Sample]]:
    """(table of `ANSWERS`, domain) -> `EXAMPLES` of its rows, drawn by the seed. Each file is read once."""
    shown: dict[tuple[str, str], list[str]] = {}
    for kind in ANSWERS:
        for (domain,), mine in selected[kind].group_by("domain"):
            order = sorted(set(mine["prompt_id"]), key=lambda name: stage_files.stable_hash(seed, "show", name))
            shown[kind, str(domain)] = order[:EXAMPLES]
    wanted = sorted({name for names in shown.values() for name in names})
    rows = {
        kind: {row["prompt_id"]: row for row in reversed(_rows(tables[kind], "prompt_id", wanted))} for kind in ANSWERS
    }
    asked = {row["id"]: row for row in _rows(prompts, "id", wanted)}
    found: dict[str, dict[tuple[str, int], dict[str, Any]]] = {name: {} for name in wanted}
    columns = ["prompt_id", "source", "sample_index", "verdict", "extracted", "detail"]
    for path in scores:
        for row in _rows(path, "prompt_id", wanted, columns):
            found[row["prompt_id"]][row["source"], row["sample_index"]] = row
    return {
        (kind, domain): [Sample(rows[kind][name], asked[name], found[name]) for name in names]
        for (kind, domain), names in shown.items()
    }


def _rows(path: Path, key: str, names: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    table = pl.scan_parquet(path, glob=False).filter(pl.col(key).is_in(list(names)))
    return (table.select(columns) if columns else table).collect(engine="streaming").to_dicts()


def _engines(scores: Sequence[Path]) -> list[str]:
    tables = [pl.scan_parquet(path, glob=False).select(pl.col("engine").unique()) for path in scores]
    found = pl.concat([table.collect(engine="streaming") for table in tables])
    return sorted(set(found["engine"].drop_nulls()))


def _rates(config: PipelineConfig) -> dict[str, float]:
    """Answer tokens per second of each source whose stored answers record how long they took."""
    rates = {}
    for source in config.sources:
        tokens, seconds = 0, 0.0
        for part in sorted((epath.Path(config.output_dir) / "samples" / ".answers" / source.name).glob("*.parquet")):
            with local_copy(part) as local:
                if not {"completion_tokens", "seconds"} <= pl.read_parquet_schema(local).keys():
                    continue
                timed = pl.read_parquet(local, columns=["completion_tokens", "seconds"], glob=False).drop_nulls()
            tokens += int(timed["completion_tokens"].sum())
            seconds += float(timed["seconds"].sum())
        if tokens and seconds:
            rates[source.name] = tokens / seconds
    return rates


def _with_total(table: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return table | {"total": {key: sum(row[key] for row in table.values()) for key in next(iter(table.values()))}}


def _aligned(table: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The same columns in all rows."""
    names = dict.fromkeys(name for row in table.values() for name in row)
    return {label: {name: row.get(name, 0) for name in names} for label, row in table.items()}
