"""Compiled programs outlive the process: the second start of a run need not compile again."""

import os
from pathlib import Path

import jax
from etils import epath

from fusejax.common.files import is_remote


def keep_compiled(output_dir: epath.Path) -> None:
    """Sets JAX's persistent compilation cache, unless the user has, say by `JAX_COMPILATION_CACHE_DIR`.

    It is `fusejax/compiled` in the user's cache folder (`XDG_CACHE_HOME`, or else `~/.cache`). Runs in a bucket have
    it there, in `output_dir`: only host 0 writes, and all hosts of a pod read.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = output_dir / "compiled" if is_remote(output_dir) else caches / "fusejax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    # JAX keeps what took a second. A small model's many programs take less, but together as long as its large ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
