"""`import` from `gs://` to `gs://`, on a server that fails at random: the data set is the one on disk."""

import json
from pathlib import Path

import pytest
from etils import epath

from data_pipeline.__main__ import main
from fusejax.common.files import copy
from fusejax.data.records import open_shards
from tests.data_pipeline.importing.fixtures import DPO, SFT, write
from tests.gcs_server import CloudStorage


def test_a_bucket_as_a_disk(gcs: CloudStorage, tmp_path: Path, capsys: pytest.CaptureFixture):
    bucket = epath.Path(gcs.bucket)
    paths = [
        write(tmp_path / "chats.json.gz", SFT["messages"][0]),
        write(tmp_path / "pairs.parquet", [*DPO["lists"][0], {"prompt": None, "chosen": None, "rejected": None}]),
    ]
    for path in paths:
        copy(path, bucket / "raw" / path.name)
    settings = ["write.num_shards=2", "write.eval_fraction=0.2"]
    main(["import", *map(str, paths), "--output", str(tmp_path / "data"), *settings])
    command = ["import", *(f"{bucket}/raw/{path.name}" for path in paths), "--output", f"{bucket}/data", *settings]
    with gcs.faults(0.05, seed=3):
        main(command)
        before = gcs.objects()
        main(command)
    assert gcs.objects() == before and "import: up to date" in capsys.readouterr().out
    for split in ("sft/train", "sft/eval", "dpo/train", "dpo/eval"):
        assert open_shards(bucket / "data" / split)[:] == open_shards(tmp_path / "data" / split)[:]
    assert json.loads((bucket / "data/rejected/import-pairs.jsonl").read_text())["reason"] == "no_prompt"
