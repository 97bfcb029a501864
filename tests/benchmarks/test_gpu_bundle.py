"""The parts of the bundle: no larger than is allowed, and whole again when put together."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.gpu_bundle import size, split
from fusejax.common.cli import UserError


@settings(deadline=None)
@given(content=st.binary(min_size=1, max_size=300), room=st.integers(101, 200), held=st.integers(0, 100))
def test_parts_keep_to_the_limit_and_make_the_file_again(tmp_path_factory, content: bytes, room: int, held: int):
    bundle = tmp_path_factory.mktemp("bundle")
    (bundle / "part-1").mkdir()
    (bundle / "part-1" / "wheels").write_bytes(bytes(held))
    file = bundle / "model"
    file.write_bytes(content)
    split(file, bundle, room=room)
    parts = sorted(path for path in bundle.iterdir() if path.is_dir())
    assert all(size(part) <= room for part in parts)
    assert all(size(part) == room for part in parts[:-1])
    pieces = [part / f"model.{number}" for number, part in enumerate(parts, 1)]
    assert b"".join(piece.read_bytes() for piece in pieces) == content


def test_what_leaves_no_room_is_told(tmp_path: Path):
    (tmp_path / "part-1").mkdir()
    (tmp_path / "part-1" / "wheels").write_bytes(bytes(100))
    (tmp_path / "model").write_bytes(b"1")
    with pytest.raises(UserError, match="raise --limit"):
        split(tmp_path / "model", tmp_path, room=100)
