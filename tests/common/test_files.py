"""Files in `gs://`, on a server that is honest, one that fails at random, and one that refuses."""

import gc
import random

import numpy as np
import pytest
from etils import epath

from fusejax.common import gcs as storage
from fusejax.common.cli import UserError
from fusejax.common.files import check_writable, copy, local_copies, local_copy, replacing, write_text
from tests.gcs_server import FAULTS, CloudStorage


@pytest.fixture
def bucket(gcs: CloudStorage) -> epath.Path:
    return epath.Path(gcs.bucket)


@pytest.mark.parametrize("kind", [*FAULTS, None])
def test_nothing_is_lost_and_nothing_corrupt(gcs: CloudStorage, bucket: epath.Path, kind: str | None):
    generator = random.Random(kind)
    # Nothing, a byte, text, more than one part of an upload, exactly so many parts, and what ends like a separator.
    contents = [b"", b"x", b"text\r", generator.randbytes(17_000_001), generator.randbytes(2**24), b"\n--==0==--"]
    with gcs.faults(0.25, seed=1, kinds=(kind,) if kind else None):
        for index, content in enumerate(contents):
            with replacing(bucket / "folder" / str(index)) as file:
                for start in range(0, len(content), 10_000_000):
                    file.write(content[start : start + 10_000_000])
        assert sorted(path.name for path in (bucket / "folder").iterdir()) == list("012345")
        for index, content in enumerate(contents):
            assert (bucket / "folder" / str(index)).read_bytes() == content
            with (bucket / "folder" / str(index)).open("rb") as file:
                file.seek(len(content) // 2)
                assert file.read(1000) == content[len(content) // 2 :][:1000]
        (bucket / "folder" / "0").unlink()
        (bucket / "folder").rmtree()
    assert gcs.objects() == {}
    assert sum(gcs.served[fault] for fault in FAULTS) > 5


def test_an_object_is_replaced_as_a_whole_or_not_at_all(gcs: CloudStorage, bucket: epath.Path):
    write_text(bucket / "a", "old")
    with pytest.raises(KeyError), replacing(bucket / "a") as file:
        file.write(bytes(2**25))  # two requests' worth are sent already
        raise KeyError
    with pytest.raises(KeyError), (bucket / "b").open("wb") as file:  # as Orbax writes
        file.write(b"half")
        raise KeyError
    del file
    gc.collect()
    assert gcs.objects() == {"a": b"old"}
    write_text(bucket / "a", "neu: ä")
    assert (bucket / "a").read_text() == "neu: ä"


def test_what_others_write_is_seen_at_once(gcs: CloudStorage, bucket: epath.Path):
    (bucket / "run").mkdir(parents=True)
    assert not (bucket / "run").exists() and list((bucket / "run").glob("*")) == []
    write_text(bucket / "run" / "a", "")
    assert [path.name for path in (bucket / "run").iterdir()] == ["a"]
    stored = gcs.storage.objects[bucket.name]
    stored["run/b"], stored["run/a"] = stored["run/a"] | {"name": "run/b"}, None
    del stored["run/a"]
    assert [path.name for path in (bucket / "run").iterdir()] == ["b"]
    assert not (bucket / "run" / "a").exists() and (bucket / "run" / "b").exists()


def test_copies_for_those_that_read_from_disk(gcs: CloudStorage, bucket: epath.Path, tmp_path):
    with replacing(bucket / "arrays.npz") as file:
        np.savez(file, a=np.arange(10))
    copy(bucket / "arrays.npz", tmp_path / "arrays.npz")
    copy(tmp_path / "arrays.npz", bucket / "again" / "arrays.npz")
    with local_copy(bucket / "again" / "arrays.npz") as local, np.load(local) as file:
        np.testing.assert_array_equal(file["a"], np.arange(10))
    assert not local.exists()
    for name in ("tokenizer.json", "templates/a", "templates/b", "weights"):
        write_text(bucket / "model" / name, name)
    with local_copies(bucket / "model", ["*.json", "templates*", "templates/*", "none"]) as folder:
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["templates/a", "templates/b", "tokenizer.json"]
    with pytest.raises(FileNotFoundError, match=f"{bucket}/nothing"), local_copy(bucket / "nothing"):
        pass


def test_whether_a_bucket_can_be_written_is_found_out_without_a_trace(gcs: CloudStorage, bucket: epath.Path):
    check_writable(bucket / "run", "output_dir")
    assert gcs.objects() == {}
    with pytest.raises(UserError, match=r"output_dir gs://no-such-bucket/run/\.writable: no such bucket"):
        check_writable("gs://no-such-bucket/run", "output_dir")
    with gcs.faults(1, kinds=("403",)), pytest.raises(UserError, match=r"permission denied \(refused with 403"):
        check_writable(bucket / "run", "output_dir")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("401", r"/a b: no valid Google Cloud credentials; log in with .* \(refused with 401"),
        ("403", r"/a b: permission denied \(refused with 403"),
        ("400", r"/a b: refused with 400"),
        ("503", r"/a b: given up after \d tries in \d s: refused with 503"),
        ("answer lost", r"/a b: given up after \d tries in \d s: "),
    ],
)
def test_what_cannot_be_had_is_one_line(gcs, bucket, monkeypatch, status: str, message: str):
    monkeypatch.setattr(storage, "PATIENCE", 0.2)
    write_text(bucket / "a b", "x")
    for use in (
        lambda: (bucket / "a b").read_text(),
        lambda: (bucket / "a b").exists(),
        lambda: (bucket / "a b").is_dir(),
        lambda: write_text(bucket / "a b", "y"),
    ):
        with gcs.faults(1, kinds=(status,)), pytest.raises(UserError, match=str(bucket) + message) as error:
            use()
        assert "\n" not in str(error.value)
    assert gcs.objects()["a b"] in (b"x", b"y")


def test_a_missing_bucket_is_not_made(gcs: CloudStorage):
    missing = epath.Path("gs://mistyped/run")
    missing.mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="gs://mistyped/run: no such bucket"):
        missing.exists()
    with pytest.raises(UserError, match="gs://mistyped/run/a: no such bucket"):
        write_text(missing / "a", "")
    assert "mistyped" not in gcs.storage.buckets


def test_damage_on_the_way_is_found(gcs: CloudStorage, bucket: epath.Path, monkeypatch: pytest.MonkeyPatch):
    create = gcs.storage.create_file

    def damaging(bucket_name, name, content, file_obj, file_id=None):
        file_obj["md5Hash"] = "1B2M2Y8AsgTpgAmY7PhCfg=="  # of nothing
        create(bucket_name, name, content, file_obj, file_id)

    monkeypatch.setattr(gcs.storage, "create_file", damaging)
    with pytest.raises(UserError, match=f"{bucket}/a: damaged on its way, and removed"):
        write_text(bucket / "a", "text")
    assert gcs.objects() == {}
