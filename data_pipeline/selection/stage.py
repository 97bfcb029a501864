"""Stage `select`: applies each domain's rule to all scored answers, and fetches the texts of those selected."""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts.stage import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.prompts.stage import check_domains
from data_pipeline.scoring.stage import NEEDED
from data_pipeline.selection import hashing, rules
from fusejax.common.cli import UserError
from fusejax.common.files import local_copy, write_text

TABLES = ("sft", "dpo", "wrpo", "discarded", "unused")
ANSWERS = {"sft": ("",), "dpo": ("chosen", "rejected"), "wrpo": rules.TRIPLE}
"""Table of examples -> the answers in each, as its columns begin: `chosen_source`. Of "" the text is `text`."""
MARGINS = "selection/margins.json"
_KEY = ["prompt_id", "source", "sample_index"]


def run(config: PipelineConfig) -> None:
    """Writes `selection/{sft,dpo,wrpo,discarded,unused}.parquet`, and `margins.json` there: domain -> `rules.Bounds`.

    Raises:
      UserError: a domain's rule needs a reward or a verdict and the config names nothing that gives it, a table is
        missing, a prompt is of no domain of the config, or a mark is no boolean.
    """
    output = epath.Path(config.output_dir)
    prompts_path = output / "prompts.parquet"
    stage_files.check_parquet(prompts_path, list(PROMPTS_SCHEMA), made_by="prompts")
    with local_copy(prompts_path) as local:
        prompts = pl.read_parquet(local, columns=["id", "dataset", "domain"], glob=False)
    check_domains(config, prompts["domain"])
    require_judges(config, set(prompts["domain"]))
    files = [output / "scores" / f"{source.name}.parquet" for source in config.answerers]
    for file in files:
        stage_files.check_parquet(file, [*NEEDED, "reward", "verdict"], made_by="score")
        _check_marks(file)
    settings = [config.seed, {name: domain.rule.model_dump(mode="json") for name, domain in config.domains.items()}]
    inputs = stage_files.fingerprint(
        settings, prompts_path, *files, *map(Path, (rules.__file__, hashing.__file__, __file__))
    )
    tables = {name: output / "selection" / f"{name}.parquet" for name in TABLES}

    def work() -> str:
        with contextlib.ExitStack() as stack:
            scores = [stack.enter_context(local_copy(file)) for file in files]
            return _select(config, prompts, scores, tables, output / MARGINS)

    stage_files.once(output, "select", inputs, [*tables.values(), output / MARGINS], work)


def require_judges(config: PipelineConfig, domains: Iterable[str]) -> None:
    """Raises `UserError` where a domain's rule needs a reward or a verdict that nothing gives."""
    for name in sorted(domains):
        domain = config.domains[name]
        rule = rules.RULES[domain.rule.name]
        if rule.needs_reward and domain.reward is None and not _all_given(config, name, "reward"):
            problem = f"selecting {name} answers needs a reward: a model, or module:attribute"
            raise UserError(f"{config.key(name, 'reward')}: {problem}; or all of them given with a reward")
        # A function may give verdicts beside its rewards; a reward model gives none.
        judged = domain.verifier is not None or isinstance(domain.reward, str)
        if rule.needs_verdict and not judged and not _all_given(config, name, "verdict"):
            problem = f"the rule {domain.rule.name} needs verdicts: name a verifier, or module:attribute"
            raise UserError(f"{config.key(name, 'verifier')}: {problem}; or give all answers with a verdict")


def _all_given(config: PipelineConfig, domain: str, score: Literal["reward", "verdict"]) -> bool:
    """Whether all answers to the domain's prompts come with the score."""
    sources = [source for source in config.answerers if domain in source.domains]
    return bool(sources) and all(getattr(source, score, None) is not None for source in sources)


def _check_marks(file: epath.Path) -> None:
    """Raises `UserError` where a column that excludes answers holds anything but true and false."""
    with local_copy(file) as local:
        present = pl.read_parquet_schema(local)
    for mark in rules.MARKS:
        if present.get(mark, pl.Boolean) != pl.Boolean:
            raise UserError(f"{file}: column {mark!r} must be boolean; it is {present[mark]}")


def _select(
    config: PipelineConfig, prompts: pl.DataFrame, files: list[Path], tables: dict[str, epath.Path], margins: epath.Path
) -> str:
    candidates = pl.concat([_candidates(file) for file in files]).collect(engine="streaming")
    rule_of = {name: domain.rule for name, domain in config.domains.items()}
    selected = rules.select(prompts, candidates, rule_of, config.seed)
    del candidates
    frames = {name: getattr(selected, name) for name in TABLES}
    texts = _texts(frames, files)
    for name, answers in ANSWERS.items():
        for answer in answers:
            named = texts.rename({**_columns(answer), "text": answer or "text"})
            frames[name] = frames[name].join(
                named, on=["prompt_id", *_columns(answer).values()], how="left", maintain_order="left"
            )
    for name, frame in frames.items():
        stage_files.write_parquet(frame, tables[name])
    bounds = {name: vars(found) for name, found in selected.bounds.items()}
    write_text(margins, json.dumps(bounds, ensure_ascii=False, indent=1) + "\n")
    return (
        f"{len(selected.sft):,} SFT examples, {len(selected.dpo):,} pairs, "
        + (f"{len(selected.wrpo):,} triples, " if len(selected.wrpo) else "")
        + f"{len(selected.discarded):,} prompts discarded"
        f"{_counts(selected.discarded)}, {len(selected.unused):,} answers unusable{_counts(selected.unused)}"
    )


def _candidates(file: Path) -> pl.LazyFrame:
    """The columns that the rules use. Texts are read as a stream, and only their hashes are kept."""
    present = pl.read_parquet_schema(file)
    text = pl.col("text").str.strip_chars()
    return pl.scan_parquet(file, glob=False).select(
        *_keys(),
        pl.col("finish_reason", "verdict").cast(pl.String),
        pl.col("reward").cast(pl.Float64),
        *(pl.col(mark) if mark in present else pl.lit(None, pl.Boolean).alias(mark) for mark in rules.MARKS),
        text_hash=pl.when(text.str.len_bytes() > 0).then(text.hash(seed=0)),
    )


def _keys() -> list[pl.Expr]:
    """The columns `_KEY`; other programs' files may hold smaller integers or categories."""
    return [pl.col("prompt_id", "source").cast(pl.String), pl.col("sample_index").cast(pl.Int64)]


def _columns(answer: str) -> dict[str, str]:
    """What the columns that name an answer are called in a table where theirs begin so."""
    return {key: f"{answer}_{key}" if answer else key for key in _KEY[1:]}


def _texts(frames: Mapping[str, pl.DataFrame], files: list[Path]) -> pl.DataFrame:
    """The texts of the selected answers, with their keys."""
    wanted = pl.concat(
        frames[name].select("prompt_id", **_columns(answer)) for name, answers in ANSWERS.items() for answer in answers
    ).unique()
    with tempfile.TemporaryDirectory() as folder:
        # One file at a time, and by way of the disk: rows filtered in memory keep the buffers of all others alive.
        found = [Path(folder) / f"{number}.parquet" for number in range(len(files))]
        for file, part in zip(files, found, strict=True):
            texts = pl.scan_parquet(file, glob=False).select(*_keys(), "text")
            texts.join(wanted.lazy(), on=_KEY, how="semi").sink_parquet(part, row_group_size=stage_files.ROWS_A_GROUP)
        parts = [pl.read_parquet(part, memory_map=False) for part in found]
    return pl.concat(parts).unique(_KEY, keep="any")


def _counts(frame: pl.DataFrame) -> str:
    counts = dict(frame["reason"].value_counts(sort=True).iter_rows())
    return f" {counts}" if counts else ""
