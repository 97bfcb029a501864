"""The public commands, run as a user runs them: what the quickstart and the examples are made of."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fusejax.common.cli import UserError, note


def command(
    module: str,
    *arguments: str,
    quiet: bool = False,
    directory: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Prints and runs `python -m module arguments`.

    Args:
      quiet: keep what it says to itself, unless it fails: two progress bars at once are not readable.
      directory: where to run it.
      variables: of its environment, besides those of this process.

    Raises:
      UserError: it failed; its own output is above.
    """
    note(" ".join(("$ python -m", module, *arguments)))
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        cwd=directory,
        env=os.environ | dict(variables or {}),
        text=True,
    )
    if done.returncode:
        if quiet:
            note(done.stdout)
        raise UserError(f"python -m {module} failed with status {done.returncode}")
