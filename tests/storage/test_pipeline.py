"""The data pipeline with prompts and results in `gs://`, on a server that fails at random."""

import json
from typing import Any

import polars as pl
import pytest
from etils import epath

from data_pipeline.__main__ import main
from fusejax.common.files import copy, local_copy
from fusejax.data.records import open_shards
from tests.data_pipeline.conftest import checkpoint, prompt_files, values
from tests.data_pipeline.helpers import write_config
from tests.gcs_server import CloudStorage

__all__ = ["checkpoint", "prompt_files", "values"]


@pytest.mark.slow
def test_a_data_set_in_a_faulty_bucket_is_the_one_on_disk(
    gcs: CloudStorage, values: dict[str, Any], tmp_path, capsys: pytest.CaptureFixture
):
    values = values | {"write": {"num_shards": 2, "eval_fraction": 0.5}}  # of a few pairs some are then for evaluation
    config = str(write_config(tmp_path / "config.yaml", values))
    main(["run", "--config", config])
    ours, theirs = epath.Path(gcs.bucket) / "data", epath.Path(values["output_dir"])
    remote = [
        entry | {"path": str(copied(entry["path"], epath.Path(gcs.bucket) / "prompts"))} for entry in values["prompts"]
    ]
    config = str(write_config(tmp_path / "remote.yaml", values | {"prompts": remote, "output_dir": str(ours)}))
    with gcs.faults(0.05, seed=8):
        main(["run", "--config", config])
        capsys.readouterr()
        before = gcs.objects()
        main(["run", "--config", config])
    assert gcs.objects() == before and capsys.readouterr().out.count("up to date") >= 5

    tables = sorted(str(path.relative_to(theirs)) for path in theirs.glob("*/*.parquet"))
    assert len(tables) > 6
    for table in ("prompts.parquet", *tables):
        with local_copy(ours / table) as local:
            assert pl.read_parquet(local).equals(pl.read_parquet(str(theirs / table))), table
    for stage in ("sft", "dpo"):
        splits = splits_of(ours / stage)
        assert {*splits} == {"train", "eval"} and splits == splits_of(theirs / stage)
        for split in splits:
            assert open_shards(ours / stage / split)[:] == open_shards(theirs / stage / split)[:]
    for name in ("report.html", "data_card.md", "rejected/prompts.jsonl"):
        assert (ours / name).exists(), name


def splits_of(folder: epath.Path) -> dict[str, Any]:
    """Their shards, with the checksums that the manifest has of them."""
    return json.loads((folder / "manifest.json").read_text())["splits"]


def copied(source: str, folder: epath.Path) -> epath.Path:
    target = folder / epath.Path(source).name
    copy(source, target)
    return target
