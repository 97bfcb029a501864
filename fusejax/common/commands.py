"""The public commands, run as a user runs them: what the quickstart and the examples are made of."""

import subprocess
import sys

from fusejax.common.cli import UserError, note


def command(module: str, *arguments: str, quiet: bool = False) -> None:
    """Prints and runs `python -m module arguments`.

    Args:
      quiet: keep what it says on stderr to itself, unless it fails: two progress bars at once are not readable.

    Raises:
      UserError: it failed; its own output is above.
    """
    note(" ".join(("$ python -m", module, *arguments)))
    stderr = subprocess.PIPE if quiet else None
    done = subprocess.run([sys.executable, "-m", module, *arguments], stderr=stderr, text=True)
    if done.returncode:
        if quiet:
            note(done.stderr)
        raise UserError(f"python -m {module} failed with status {done.returncode}")
