"""SFT, DPO and their exports, by the public commands."""

from collections.abc import Sequence
from pathlib import Path

from fusejax.common.commands import command

OUTPUT = Path("runs/smollm2")
CONFIGS = Path("examples/smollm2")


def train(base: Path, folder: Path, *, seed: int, overrides: Sequence[str] = ()) -> dict[str, Path]:
    """The models `base`, `sft` and `dpo`, exported in float32: the last two are made in `folder` if need be.

    Args:
      overrides: of both runs' configurations.
    """
    models = {"base": base}
    for task, start in (("sft", base), ("dpo", folder / "sft")):
        own = (f"model={start}", f"output_dir={folder / task}", f"seed={seed}")
        command("fusejax.train", "--config", f"{CONFIGS}/{task}.yaml", *own, *overrides)
        models[task] = folder / "export" / task
        if not models[task].exists():
            to = ("--output", str(models[task]), "--dtype", "float32")
            command("fusejax.export", "--checkpoint", str(folder / task), *to)
    return models
