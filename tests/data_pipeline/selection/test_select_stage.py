"""The stage `select` on scores that another program wrote, in narrower types."""

from pathlib import Path

import polars as pl
import pytest
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import PipelineConfig
from data_pipeline.selection import stage as select


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    prompts = pl.DataFrame(
        {
            "id": ["p0", "p1"],
            "dataset": "d",
            "domain": "math",
            "messages": [[{"role": "user", "content": "?"}]] * 2,
            "answer": "7",
            "tests": pl.Series([None, None], dtype=pl.List(pl.String)),
        }
    )
    stage_files.write_parquet(prompts, epath.Path(tmp_path / "prompts.parquet"))
    return PipelineConfig.model_validate(
        {
            "output_dir": str(tmp_path),
            "prompts": [{"path": "unused.jsonl", "dataset": "d", "domain": "math"}],
            "sources": [{"name": name, "model": name} for name in ("wide", "narrow")],
            "scorers": {"math": {"reward": "builtins:len"}},
        }
    )


def write_scores(folder: Path, name: str, rows: list[tuple[str, int, float, str]], **types: type[pl.DataType]) -> None:
    frame = pl.DataFrame(rows, schema=["prompt_id", "sample_index", "reward", "verdict"], orient="row")
    texts = pl.Series([f"{name} {number}" for number in range(len(rows))])
    frame = frame.with_columns(
        source=pl.lit(name), text=texts, finish_reason=pl.lit("stop"), extracted=pl.lit("7"), detail=pl.lit("x")
    )
    stage_files.write_parquet(frame.cast(types), epath.Path(folder / "scores" / f"{name}.parquet"))


def test_narrow_types_and_answers_to_no_prompt(config: PipelineConfig, tmp_path: Path):
    write_scores(tmp_path, "wide", [("p0", 0, 0.15, "correct"), ("p0", 1, 0.1, "wrong"), ("gone", 0, 0.1, "wrong")])
    narrow = {"sample_index": pl.Int32, "reward": pl.Float32, "source": pl.Categorical, "verdict": pl.Categorical}
    write_scores(tmp_path, "narrow", [("p1", 0, 0.15, "correct"), ("p1", 1, 0.1, "wrong")], **narrow)
    select.run(config)
    tables = {name: pl.read_parquet(tmp_path / "selection" / f"{name}.parquet") for name in select.TABLES}
    pairs = tables["dpo"].select("prompt_id", "chosen_source", "chosen", "rejected").rows()
    assert pairs == [("p0", "wide", "wide 0", "wide 1"), ("p1", "narrow", "narrow 0", "narrow 1")]
    assert tables["unused"].rows() == [("gone", None, None, "wide", 0, "no_such_prompt")]


def test_answers_that_share_their_names_serve_nowhere(config: PipelineConfig, tmp_path: Path):
    write_scores(tmp_path, "wide", [("p0", 0, 0.15, "correct"), ("p0", 0, 0.1, "wrong"), ("p0", 1, 0.12, "correct")])
    write_scores(tmp_path, "narrow", [("p1", 0, 0.15, "wrong")])
    select.run(config)
    tables = {name: pl.read_parquet(tmp_path / "selection" / f"{name}.parquet") for name in select.TABLES}
    assert tables["sft"].select("prompt_id", "sample_index", "text").rows() == [("p0", 1, "wide 2")]
    assert tables["unused"]["reason"].to_list() == ["repeated"] * 2
