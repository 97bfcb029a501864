"""Runs of the public commands: training by a configuration of this folder, and the export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fusejax.common.commands import command

OUTPUT = Path("runs/smollm2")
CONFIGS = Path("examples/smollm2")


def train(base: Path, folder: Path, *, seed: int, overrides: Sequence[str] = ()) -> dict[str, Path]:
    """The models `base`, `sft` and `dpo`, exported in float32: the last two are made in `folder` if need be.

    Args:
      overrides: of both runs' configurations.
    """
    return {
        "base": base,
        "sft": trained("sft", base, folder, seed=seed, overrides=overrides),
        "dpo": trained("dpo", folder / "sft", folder, seed=seed, overrides=overrides),
    }


def trained(name: str, start: Path, folder: Path, *, seed: int, overrides: Sequence[str] = ()) -> Path:
    """The model that `NAME.yaml` makes of `start`, exported in float32; the run is `folder/NAME`."""
    own = (f"model={start}", f"output_dir={folder / name}", f"seed={seed}")
    command("fusejax.train", "--config", f"{CONFIGS}/{name}.yaml", *own, *overrides)
    exported = folder / "export" / name
    if not exported.exists():
        to = ("--output", str(exported), "--dtype", "float32")
        command("fusejax.export", "--checkpoint", str(folder / name), *to)
    return exported


def setting(name: str, key: str) -> Any:
    """A value of `NAME.yaml`."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())[key]
