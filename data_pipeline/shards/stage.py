"""Stage `write`: the selection as preference shards, `sft/`, `dpo/` and `wrpo/`, ready for the trainer."""

from collections.abc import Iterator
from typing import Any

import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import PipelineConfig, sampled_with
from data_pipeline.prompts.stage import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.scoring.stage import sandboxes
from data_pipeline.selection.rules import TRIPLE
from data_pipeline.shards import splits
from data_pipeline.shards.splits import KINDS
from fusejax.common.cli import UserError
from fusejax.data.records import Kind, PreferencePair, PreferenceTriple, Record, SFTExample


def run(config: PipelineConfig) -> None:
    """Writes `{sft,dpo,wrpo}/{train,eval}-*` with a `manifest.json` each.

    Raises:
      UserError: nothing was selected, or a table is missing.
    """
    output = epath.Path(config.output_dir)
    tables = {kind: output / "selection" / f"{kind}.parquet" for kind in KINDS}
    for path in tables.values():
        stage_files.check_parquet(path, ["prompt_id"], made_by="select")
    prompts_path = output / "prompts.parquet"
    prompts = stage_files.read_parquet(prompts_path, list(PROMPTS_SCHEMA), made_by="prompts")
    selected = {kind: stage_files.read_parquet(path, ["prompt_id"], made_by="select") for kind, path in tables.items()}
    if all(frame.is_empty() for frame in selected.values()):
        raise UserError(f"{tables['sft'].parent}: nothing was selected; discarded.parquet there says why")
    inputs = stage_files.fingerprint(config.model_dump(mode="json"), sandboxes(output), prompts_path, *tables.values())
    # A data set of a kind without examples is not written: it could not be read.
    manifests = [output / kind / "manifest.json" for kind in KINDS if not selected[kind].is_empty()]
    stage_files.once(output, "write", inputs, manifests, lambda: _write(config, prompts, selected))


def _write(config: PipelineConfig, prompts: pl.DataFrame, selected: dict[Kind, pl.DataFrame]) -> str:
    output = epath.Path(config.output_dir)
    messages = dict(prompts.select("id", "messages").iter_rows())
    named = {kind: frame.select("prompt_id", "domain") for kind, frame in selected.items()}
    # Triples apart: when they come, in the second round, the examples that the first was trained on stay as they were.
    held_out = eval_prompts(pl.concat([named["sft"], named["dpo"]]), config) | eval_prompts(named["wrpo"], config)
    manifest = {
        "config": config.model_dump(mode="json"),
        "sandbox": sandboxes(output),
        "models": {source.name: source.model for source in config.answerers},
        "sampling": {
            source.name: {**sampled_with(source), "max_new_tokens": config.max_new_tokens} for source in config.sources
        },
    }
    counts: list[str] = []
    for kind in KINDS:
        parts = {}
        for split, is_eval in (("train", False), ("eval", True)):
            rows = selected[kind].filter(pl.col("prompt_id").is_in(list(held_out)) == is_eval)
            parts[split] = (len(rows), _examples(kind, rows, messages))
        counts += splits.write_splits(output, kind, parts, config.write, manifest)
    return ", ".join(counts)


def _examples(kind: Kind, rows: pl.DataFrame, messages: dict[str, list[dict[str, str]]]) -> Iterator[Record]:
    def turn(text: str) -> Any:
        return [{"role": "assistant", "content": text}]

    for row in rows.iter_rows(named=True):
        common = {"id": row["prompt_id"], "dataset": row["dataset"], "domain": row["domain"]}
        prompt: Any = messages[row["prompt_id"]]
        if kind == "wrpo":
            yield PreferenceTriple(
                **common,
                source_model=row["source_chosen_source"],
                prompt=prompt,
                **{answer: turn(row[answer]) for answer in TRIPLE},
                source_score=row["source_chosen_reward"],
                target_score=row["target_chosen_reward"],
                rejected_score=row["rejected_reward"],
            )
            continue
        if row["weight"] is not None:
            # There can be several of a prompt.
            answer = ("source", "sample_index") if kind == "sft" else ("chosen_source", "chosen_sample_index")
            common |= {"id": "/".join(str(row[name]) for name in ("prompt_id", *answer)), "weight": row["weight"]}
        if kind == "sft":
            yield SFTExample(**common, source_model=row["source"], messages=prompt + turn(row["text"]))
        else:
            yield PreferencePair(
                **common,
                source_model=row["chosen_source"],
                prompt=prompt,
                chosen=turn(row["chosen"]),
                rejected=turn(row["rejected"]),
                chosen_score=row["chosen_reward"],
                rejected_score=row["rejected_reward"],
            )


def eval_prompts(selected: pl.DataFrame, config: PipelineConfig) -> set[str]:
    """Prompts held out for evaluation during training: a seeded share of each domain's, the same for every kind."""
    of_domain = {domain: rows["prompt_id"].to_list() for (domain,), rows in selected.group_by("domain")}
    return splits.held_out(of_domain, config.write.eval_fraction, config.seed)
