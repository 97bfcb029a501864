"""The stage `likelihoods` with a real vLLM: what transformers gives, up to rounding."""

from pathlib import Path

import polars as pl

from data_pipeline.config import PipelineConfig
from data_pipeline.likelihoods import stage
from fusejax.data.records import PreferencePair, write_shards
from tests.data_pipeline.distributions.sources import TEXTS, config_values, make_source
from tests.vllm.test_distributions import ENGINE, HEADS


def table(output: Path, directory: Path, backend: str) -> pl.DataFrame:
    pairs = [
        PreferencePair(
            f"p{n}",
            "set",
            "d",
            "s",
            [{"role": "user", "content": f"And {n}?"}],
            [{"role": "assistant", "content": f"{TEXTS[n % 3]} {n}"}],
            [{"role": "assistant", "content": f" {n} "}],  # this template cuts the white space off
        )
        for n in range(5)
    ]
    write_shards(output / "dpo", "train", pairs, kind="dpo", num_shards=1, manifest={})
    values = config_values(output, s=directory)
    values["distributions"] = {"backend": backend, **({"engine": ENGINE} if backend == "vllm" else {})}
    stage.run(PipelineConfig.model_validate(values))
    return pl.read_parquet(output / "likelihoods/s/train.parquet")


def test_both_backends_give_the_same(tmp_path: Path):
    directory = make_source(tmp_path / "m", **HEADS)
    expected = table(tmp_path / "transformers", directory, "transformers")
    found = table(tmp_path / "vllm", directory, "vllm")
    exact = ["id", "chosen_tokens", "rejected_tokens"]
    assert found.select(exact).equals(expected.select(exact)) and found.null_count().sum_horizontal()[0] == 0
    for side in ("chosen", "rejected"):
        assert (found[side] - expected[side]).abs().max() < 1e-3 < expected[side].std()
