"""Keeps compiled programs on disk, so that a restarted run need not compile again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from fusejax.common.files import is_remote


def keep_compiled(output_dir: epath.Path) -> None:
    """Sets JAX's persistent compilation cache, unless the user has, say by `JAX_COMPILATION_CACHE_DIR`.

    It is `fusejax/compiled` in the user's cache folder (`XDG_CACHE_HOME`, or else `~/.cache`). For a run in a
    bucket it is `output_dir/compiled`: only host 0 writes it, and all hosts of a pod read it.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = output_dir / "compiled" if is_remote(output_dir) else caches / "fusejax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    # JAX's default is one second. A small model's many programs take less each, but together as long as its large ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextmanager
def uncached() -> Iterator[None]:
    """Turns JAX's compilation cache off: it cannot read programs back for devices that are not there."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it looks at the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
