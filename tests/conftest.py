"""What all tests share: a tiny checkpoint with data to train on, and one compilation cache for all processes.

And every annotation of a function or data class of the two packages is checked when it is called: types by beartype,
shapes by jaxtyping.
"""

import os
from pathlib import Path

# Before JAX is imported. Most of the tests' time is compilation, much of it of the same programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "tests"))
# With libtpu installed, JAX else looks for TPUs at every start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import hypothesis
import jaxtyping

from tests import annotations

# Before what it checks is imported. Not the quickstart, whose tests would take four times as long.
jaxtyping.install_import_hook(["fusejax", "data_pipeline"], f"{annotations.__name__}.check")

from tests.browser import browser  # noqa: E402
from tests.gcs_server import gcs, gcs_server  # noqa: E402
from tests.tiny_runs import world  # noqa: E402

# How long a function takes says nothing on a machine that others use as well.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

__all__ = ["browser", "gcs", "gcs_server", "world"]
