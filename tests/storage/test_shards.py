"""Data sets in `gs://`."""

import json
import os
from pathlib import Path

import pytest
from etils import epath

from fusejax.common.cli import UserError
from fusejax.data.records import Format, SFTExample, open_shards, write_shards
from tests.gcs_server import CloudStorage


def examples(count: int) -> list[SFTExample]:
    return [
        SFTExample(str(i), "set", "math", "model", [{"role": "user", "content": f"ä{i}" * 50}]) for i in range(count)
    ]


def copies() -> list[Path]:
    return sorted((Path(os.environ["XDG_CACHE_HOME"]) / "fusejax" / "shards").glob("*"))


@pytest.mark.parametrize("format", ["arrayrecord", "tfrecord"])
def test_written_and_read_under_faults(gcs: CloudStorage, format: Format):
    with gcs.faults(0.15, seed=2):
        for split, count in (("train", 40), ("eval", 3)):
            path = write_shards(
                f"{gcs.bucket}/sft", split, examples(count), kind="sft", format=format, num_shards=4, manifest={"a": 1}
            )
        read = open_shards(f"{gcs.bucket}/sft/train")
        assert read[:] == examples(40)
        assert open_shards(f"{gcs.bucket}/sft/eval")[:] == examples(3)
    assert json.loads(path.read_text())["a"] == 1
    assert len(gcs.objects()) == 9


def test_a_shard_is_copied_once(gcs: CloudStorage):
    write_shards(f"{gcs.bucket}/sft", "train", examples(20), kind="sft", num_shards=3, manifest={})
    open_shards(f"{gcs.bucket}/sft/train")
    fetched = copies()
    times = [copy.stat().st_mtime_ns for copy in fetched]
    assert len(fetched) == 3
    assert open_shards(f"{gcs.bucket}/sft/train")[:] == examples(20)
    assert [copy.stat().st_mtime_ns for copy in copies()] == times
    fetched[1].write_bytes(b"damaged on this disk")
    assert open_shards(f"{gcs.bucket}/sft/train")[:] == examples(20)


def test_a_new_version_replaces_the_old_one(gcs: CloudStorage):
    folder = f"{gcs.bucket}/sft"
    write_shards(folder, "train", examples(20), kind="sft", num_shards=3, manifest={})
    write_shards(folder, "eval", examples(2), kind="sft", num_shards=1, manifest={})
    write_shards(folder, "train", examples(21), kind="sft", num_shards=2, manifest={})
    assert open_shards(f"{folder}/train")[:] == examples(21)
    assert open_shards(f"{folder}/eval")[:] == examples(2)
    assert len(gcs.objects()) == 4


@pytest.mark.parametrize("requests", range(1, 12, 2))
def test_a_writer_that_dies_leaves_no_mixture(gcs: CloudStorage, monkeypatch: pytest.MonkeyPatch, requests: int):
    folder = f"{gcs.bucket}/sft"
    old, new = examples(20), examples(40)[20:]
    write_shards(folder, "train", old, kind="sft", num_shards=2, manifest={})
    monkeypatch.setattr("fusejax.common.gcs.PATIENCE", 0.0)
    with gcs.faults(1, kinds=("503",), after=requests), pytest.raises(UserError, match="given up"):
        write_shards(folder, "train", new, kind="sft", num_shards=2, manifest={})
    try:
        assert open_shards(f"{folder}/train")[:] in (old, new)
    except UserError as error:
        assert "write the data set again" in str(error)


def test_mistakes(gcs: CloudStorage):
    folder = epath.Path(gcs.bucket) / "sft"
    with pytest.raises(UserError, match=r"sft/train: no manifest\.json in gs://"):
        open_shards(folder / "train")
    write_shards(folder, "train", examples(20), kind="sft", num_shards=2, manifest={})
    with pytest.raises(UserError, match="/SPLIT"):
        open_shards(folder)
    shard = folder / "train-00001-of-00002.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"shard {shard} is truncated or altered \(SHA-256\)"):
        open_shards(folder / "train")
    shard.unlink()
    with pytest.raises(UserError, match=rf"shard {shard} is missing"):
        open_shards(folder / "train")
    with pytest.raises(UserError, match=r"gs://no-such/sft/manifest\.json: no such bucket"):
        open_shards("gs://no-such/sft/train")
