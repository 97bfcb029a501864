"""fusejax: train one small model on the best answers of several large ones, in JAX."""

import os

import fsspec

__version__ = "0.1.0"

# `epath.Path("gs://...")`, here and in Orbax, finds its file system through fsspec, which imports it at its first use.
for _protocol in ("gs", "gcs"):
    fsspec.register_implementation(_protocol, "fusejax.common.gcs.CloudStorage", clobber=True)
os.environ["EPATH_USE_TF"] = "false"  # else epath uses tensorflow's file system, if installed
