"""fusejax: train one small model on the best answers of several large ones, in JAX."""

import os

import fsspec

__version__ = "0.1.0"

# `epath.Path("gs://...")`, ours or Orbax's, finds its file system through fsspec; it is loaded when it is first used.
for _protocol in ("gs", "gcs"):
    fsspec.register_implementation(_protocol, "fusejax.common.gcs.CloudStorage", clobber=True)
os.environ["EPATH_USE_TF"] = "false"  # else epath takes tensorflow's, where that happens to be installed
