"""Where compiled programs are kept."""

import jax
import pytest
from etils import epath

from fusejax.distributed.compiled import keep_compiled

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
