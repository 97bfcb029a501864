"""Which kinds of isolation this machine offers for untrusted programs, strongest first.

1. "bubblewrap": namespaces (processes, network, files, IPC) around zygote and jobs, and whatever the kernel has of the
   next tier.
2. "landlock": no namespaces, as in most containers; Landlock restricts files, and seccomp everything else. No path
   leads out of the scratch directory (`confine.stay_in`), or no file can be opened.
3. "unsafe": resource limits and whatever else the kernel has; only where the user allows it.

In each tier programs run as a user that is not root, with resource limits.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.scoring.sandbox import confine
from fusejax.common.cli import UserError

SCRATCH_USER = 61_437
"""User id of programs where the pipeline runs as root: a number that no account should have."""
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
"""A zygote's whole environment: it makes the order of sets, and verdicts that depend on it, the same in every run; and
NumPy start no threads, which a fork would not have."""
_HERE = Path(__file__).parent
_START = (
    "import json, sys; sys.path.append({root!r}); import sandbox.zygote as zygote; sys.path.pop(); "
    "zygote.main(json.loads({settings!r}))"
)
_PACKAGES = "/packages"
_SCRATCH_BYTES = 2**26


@dataclass(frozen=True)
class Tier:
    name: Literal["bubblewrap", "landlock", "unsafe"]
    bubblewrap: str | None
    """Path of `bwrap`."""
    landlock: bool
    seccomp: bool
    user: int | None
    """User id that the programs run as; None: the pipeline's own."""


def tiers(*, allow_unsafe: bool) -> list[Tier]:
    """The tiers that this machine seems to offer; whether one works shows only when it is started."""
    user = SCRATCH_USER if os.geteuid() == 0 else None
    landlock, seccomp = confine.landlock_abi() > 0, confine.supports_seccomp()
    found = []
    bubblewrap = shutil.which("bwrap")
    if bubblewrap and seccomp:
        found.append(Tier("bubblewrap", bubblewrap, landlock, seccomp, user))
    if landlock and seccomp:
        found.append(Tier("landlock", None, landlock, seccomp, user))
    if allow_unsafe:
        found.append(Tier("unsafe", None, landlock, seccomp, user))
    return found


def missing() -> str:
    """What keeps this machine from tiers 1 and 2, for an error message."""
    return ", ".join(
        text
        for absent, text in (
            (not confine.supports_seccomp(), f"no seccomp for {confine.MACHINE}"),
            (shutil.which("bwrap") is None, "no bwrap"),
            (confine.landlock_abi() == 0, "no Landlock"),
        )
        if absent
    )


def packages(modules: Sequence[str]) -> list[Path]:
    """The folders of modules that are not Python's own, with the libraries that wheels lay beside them.

    Raises:
      UserError: one is not installed.
    """
    found = []
    for name in sorted({module.partition(".")[0] for module in modules} - sys.stdlib_module_names):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the sandbox needs the package {name}, which is not installed")
        folder = Path(spec.submodule_search_locations[0]).resolve()
        found += [folder, *folder.parent.glob(f"{name}.libs")]
    return found


def package_paths(tier: Tier, folders: Sequence[Path]) -> list[str]:
    """Where a zygote finds packages."""
    return [_PACKAGES] * bool(folders) if tier.bubblewrap else sorted({str(folder.parent) for folder in folders})


def command(tier: Tier, scratch: str, settings: str, folders: Sequence[Path] = ()) -> list[str]:
    """The command that starts a zygote.

    Args:
      tier: the isolation around it.
      scratch: a directory of the zygote's own; see `scratch_in`.
      settings: JSON, see `zygote.main`.
      folders: those of packages.
    """
    # The interpreter behind a virtual environment: packages are not needed, and should not be visible.
    executable = os.path.realpath(sys.executable)
    root = "/judge" if tier.bubblewrap else str(_HERE.parent)
    python = [executable, "-s", "-S", "-P", "-B", "-c", _START.format(root=root, settings=settings)]
    if tier.bubblewrap is None:
        return python
    readable = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix]
    # Root makes namespaces itself and keeps what it needs to become the scratch user; others need a user namespace.
    privileges = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if tier.user is not None else ["--unshare-user"]
    return [
        tier.bubblewrap,
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--cap-drop", "ALL", *privileges, "--clearenv"),
        *(part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)),
        *(part for path in readable for part in ("--ro-bind-try", path, path)),
        *(part for folder in folders for part in ("--ro-bind", str(folder), f"{_PACKAGES}/{folder.name}")),
        *("--ro-bind", str(_HERE), "/judge/sandbox", "--dev-bind", "/dev/null", "/dev/null"),
        *("--perms", "1777", "--size", str(_SCRATCH_BYTES), "--tmpfs", scratch, "--chdir", "/", "--"),
        *python,
    ]
