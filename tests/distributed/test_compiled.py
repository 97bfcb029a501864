"""Where compiled programs are kept."""

import subprocess
import sys

import jax
import pytest
from etils import epath

from fusejax.distributed.compiled import keep_compiled
from tests.gcs_server import CloudStorage

KEYS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def settings():
    before = {key: jax.config.values[key] for key in KEYS}
    yield
    for key, value in before.items():
        jax.config.update(key, value)


@pytest.mark.parametrize(
    ("output_dir", "folder"),
    [("runs/sft", "{cache}/fusejax/compiled"), ("gs://bucket/runs/sft", "gs://bucket/runs/sft/compiled")],
)
def test_by_default(settings, monkeypatch, tmp_path, output_dir, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(KEYS[0], None)
    keep_compiled(epath.Path(output_dir))
    assert [jax.config.values[key] for key in KEYS] == [folder.format(cache=tmp_path), 0.0]


def test_what_the_user_set_stays(settings, tmp_path):
    jax.config.update(KEYS[0], str(tmp_path))
    jax.config.update(KEYS[1], 3.0)
    keep_compiled(epath.Path("runs/sft"))
    assert [jax.config.values[key] for key in KEYS] == [str(tmp_path), 3.0]


PROGRAM = """
import sys
import jax
from etils import epath
from fusejax.distributed.compiled import keep_compiled
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
keep_compiled(epath.Path(sys.argv[1]))
print(jax.jit(lambda x: x * 3 + 1)(7), len(hits))
"""


def test_in_a_bucket(gcs: CloudStorage, monkeypatch):
    """What one process compiled, the next one reads; a storage that fails now and then does no harm."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    command = [sys.executable, "-c", PROGRAM, f"{gcs.bucket}/run"]

    def start() -> tuple[int, int]:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result, hits = map(int, done.stdout.split())
        return result, hits

    with gcs.faults(0.3, seed=1):
        found = [start(), start()]
    assert found == [(22, 0), (22, 1)]
    assert any(name.startswith("run/compiled/") for name in gcs.objects())
