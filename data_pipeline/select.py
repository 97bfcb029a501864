"""Stage `select`: applies the rules of `selection` to all scored answers, and fetches the texts of those selected."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import polars as pl
from etils import epath

from data_pipeline import selection, store
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.score import COLUMNS, NEEDED
from fusejax.cli import UserError
from fusejax.files import local_copy

TABLES = ("sft", "dpo", "discarded", "unused")
_KEY = ["prompt_id", "source", "sample_index"]


def run(config: PipelineConfig) -> None:
    """Writes `selection/{sft,dpo,discarded,unused}.parquet`.

    Raises:
      UserError: a domain's rule needs a reward and the config names none, or a table is missing.
    """
    output = epath.Path(config.output_dir)
    prompts_path = output / "prompts.parquet"
    prompts = store.read_parquet(prompts_path, list(PROMPTS_SCHEMA), made_by="prompts")
    require_rewards(config, domains=set(prompts["domain"]))
    files = [output / "scores" / f"{source.name}.parquet" for source in config.sources]
    for file in files:
        store.check_parquet(file, [*NEEDED, *COLUMNS], made_by="score")
    rules = config.model_dump(mode="json", include={"selection", "seed"})
    inputs = store.fingerprint(rules, prompts_path, *files, Path(selection.__file__), Path(__file__))
    tables = {name: output / "selection" / f"{name}.parquet" for name in TABLES}

    def work() -> str:
        with contextlib.ExitStack() as stack:
            return _select(config, prompts, [stack.enter_context(local_copy(file)) for file in files], tables)

    store.once(output, "select", inputs, list(tables.values()), work)


def require_rewards(config: PipelineConfig, domains: Iterable[str] | None) -> None:
    """Raises `UserError` where a rule needs a reward that no scorer gives. `None`: the config's own domains."""
    for domain in sorted({entry.domain for entry in config.prompts} if domains is None else domains):
        if domain != "chinese" and getattr(config.scorers, domain).reward is None:
            raise UserError(
                f"scorers.{domain}.reward: selecting {domain} answers needs a reward; name one as module:attribute"
            )


def _select(config: PipelineConfig, prompts: pl.DataFrame, files: list[Path], tables: dict[str, epath.Path]) -> str:
    text = pl.col("text").str.strip_chars()
    columns = [*_KEY, "finish_reason", "reward", "verdict"]
    candidates = pl.concat(
        [
            pl.scan_parquet(file, glob=False).select(
                *columns, text_hash=pl.when(text.str.len_bytes() > 0).then(text.hash(seed=0))
            )
            for file in files
        ]
    ).collect()
    selected = selection.select(prompts.select("id", "dataset", "domain"), candidates, config.selection, config.seed)
    sft = _with_texts(selected.sft, files, {"": "text"})
    dpo = _with_texts(selected.dpo, files, {"chosen_": "chosen", "rejected_": "rejected"})
    assert selected.unused is not None
    frames = {"sft": sft, "dpo": dpo, "discarded": selected.discarded, "unused": selected.unused}
    for name in TABLES:
        store.write_parquet(frames[name], tables[name])
    reasons = dict(selected.discarded["reason"].value_counts(sort=True).iter_rows())
    lost = f" {reasons}" if reasons else ""
    return f"{len(sft):,} SFT examples, {len(dpo):,} pairs, {len(selected.discarded):,} prompts discarded{lost}"


def _with_texts(selected: pl.DataFrame, files: list[Path], columns: dict[str, str]) -> pl.DataFrame:
    """Adds a text column for each prefix of key columns; only the selected answers' texts are kept in memory."""
    for prefix, name in columns.items():
        keys = {key: key if key == "prompt_id" else f"{prefix}{key}" for key in _KEY}
        wanted = selected.select(**{key: pl.col(ours) for key, ours in keys.items()})
        texts = pl.concat(
            [pl.scan_parquet(file, glob=False).select(*_KEY, pl.col("text").alias(name)) for file in files]
        )
        found = texts.join(wanted.lazy(), on=_KEY, how="semi").unique(_KEY, keep="first").collect()
        selected = selected.join(found.rename(keys), on=list(keys.values()), how="left", maintain_order="left")
    return selected
