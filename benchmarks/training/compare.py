"""Trainers side by side: each in its own environment and process, in turn, on the same case."""

import dataclasses
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-peers"
REQUIREMENTS = {
    # Torch first: what follows then takes this build and no other.
    "trl": (["torch==2.13.0"], ["trl==1.16.0", "transformers==5.23.0"]),
    "tunix": (["torch==2.13.0"], ["google-tunix==0.1.7", "jax==0.10.2", "flax==0.12.8"]),
    # Of the 200 packages that MaxText asks for, those that compiling its step imports.
    "maxtext": (
        [
            "jax[tpu]==0.10.2",
            "libtpu==0.0.42.1",
            "flax==0.12.8",
            "tokamax==0.0.15",
            "transformers==5.24.0",
            "aqtp==0.9.0",
            "drjax==0.2.1",
            "grain==0.2.18",
            "omegaconf==2.4.0",
            "pathwaysutils==0.1.13",
            "jinja2",
            "pillow",
            "sentencepiece",
            "sympy",
            "tiktoken",
        ],
        ["--no-deps", "maxtext==0.2.4"],
    ),
}
PYTHONS = {"maxtext": sys.executable if sys.version_info >= (3, 12) else "python3.12"}
"""Where a peer does not run on ours."""
# A fifth of a torch step on the CPU goes into pages that the allocator gives back and asks for again.
KEEPS_PAGES = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
# JAX gives each program's memory back when it ends; fewer, larger pages are then cheaper to come by.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclasses.dataclass(frozen=True)
class Trainer:
    name: str
    script: str
    environment: str | None = None
    """One of `REQUIREMENTS`; None for our own."""
    python: Path | None = None
    """Of an environment that is there already, in place of the one to be made."""
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    overrides: tuple[str, ...] = ()


TRL = Trainer("TRL", "trl_steps", "trl", KEEPS_PAGES | LARGE_PAGES)
TORCH = Trainer("plain PyTorch", "torch_steps", "trl", KEEPS_PAGES | LARGE_PAGES)
TUNIX = Trainer("Tunix", "tunix_steps", "tunix", LARGE_PAGES)
PEERS = (TRL, TUNIX, TORCH)


def ours(*overrides: str, devices: int = 1, **variables: str) -> Trainer:
    """`devices`: how many JAX makes of the CPU, for `overrides` to split the work over."""
    variables = LARGE_PAGES | {"JAX_NUM_CPU_DEVICES": str(devices)} | variables
    return Trainer("fusejax", "fusejax_steps", variables=variables, overrides=overrides)


@dataclasses.dataclass
class Result:
    """What one trainer did in all its turns; nothing if it was killed, as the system does where memory ends."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    """Of a pass over all batches; one entry a counted pass."""
    reference_seconds: list[float] = dataclasses.field(default_factory=list)
    peak: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""


def run_in_turn(trainers: tuple[Trainer, ...], case: Path, *, turns: int) -> dict[str, Result]:
    """Each trainer `turns` times, in an order that alternates, so that what the machine does meanwhile meets all."""
    results = {trainer.name: Result() for trainer in trainers}
    batches = len(json.loads((case / "case.json").read_text())["batches"])
    for turn in range(turns):
        for trainer in trainers if turn % 2 == 0 else reversed(trainers):
            found = run(trainer, case)
            if found is None:
                print(f"  {trainer.name}: killed", file=sys.stderr, flush=True)
                continue
            result = results[trainer.name]
            passes = [sum(found["seconds"][i : i + batches]) for i in range(0, len(found["seconds"]), batches)]
            result.seconds += passes[1:]
            result.reference_seconds.append(found["reference_seconds"])
            result.peak = max(result.peak, found["peak"])
            result.losses, result.versions, result.note = found["losses"], found["versions"], found["note"]
            print(f"  {trainer.name}: {', '.join(f'{x:.2f}' for x in passes)} s a pass", file=sys.stderr, flush=True)
    return results


def run(trainer: Trainer, case: Path) -> dict[str, Any] | None:
    """One process's report; None if it is a peer's and was killed."""
    if trainer.environment is None:
        command = [sys.executable, "-m", f"benchmarks.training.{trainer.script}", str(case), *trainer.overrides]
    else:
        python = trainer.python or interpreter(trainer.environment)
        command = [str(python), str(HERE / f"{trainer.script}.py"), str(case)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **trainer.variables}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    if process.returncode == -signal.SIGKILL and trainer.environment is not None:
        return None
    if process.returncode:
        raise SystemExit(f"{trainer.name} failed:\n{process.stderr[-4000:]}")
    return json.loads(process.stdout.strip().splitlines()[-1])


def interpreter(environment: str) -> Path:
    """The Python of a peer's environment, which is made the first time."""
    folder = ENVIRONMENTS / environment
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"making {folder}", file=sys.stderr, flush=True)
        create = [PYTHONS.get(environment, sys.executable), "-m", "venv", "--clear", folder]
        subprocess.run(create, check=True)
        for requirements in REQUIREMENTS[environment]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (folder / "installed").touch()
    return python


def same_losses(results: dict[str, Result], tolerance: float, *, least: float = 0.0) -> None:
    """Raises unless all trainers found the same losses: only then have they done the same work.

    `tolerance` is relative, below `least` to that.
    """
    first, *others = ((name, result) for name, result in results.items() if result.losses)
    for name, result in others:
        worst = max(abs(a - b) / max(abs(b), least) for a, b in zip(result.losses, first[1].losses, strict=True))
        if worst > tolerance:
            raise SystemExit(
                f"{name} and {first[0]} differ in their losses by {worst:.1e}:\n{result.losses}\n{first[1].losses}"
            )


def table(results: dict[str, Result], units: Mapping[str, float]) -> str:
    """Medians, and ratios of ours to theirs. `units`: what a pass over all batches holds, such as {"pairs/s": 16}."""
    ours = results["fusejax"]
    lines = [f"{'':16}{'s a pass':>10}" + "".join(f"{unit:>17}" for unit in units) + f"{'ours':>8}{'GB':>8}{'ours':>8}"]
    for name, result in results.items():
        if not result.seconds:
            lines.append(f"{name:16}    killed, as the system does where memory ends")
            continue
        seconds = statistics.median(result.seconds)
        rates = "".join(f"{count / seconds:17.2f}" for count in units.values())
        ratio = seconds / statistics.median(ours.seconds)
        lines.append(
            f"{name:16}{seconds:10.2f}{rates}{ratio:7.2f}x{result.peak / 1e9:8.2f}{ours.peak / result.peak:7.2f}x"
        )
        if result.note:
            lines.append(f"  {result.note}")
        reference = statistics.median(result.reference_seconds)
        if reference:
            lines.append(f"{'  its reference pass, once':40}{reference:.2f} s")
    return "\n".join(lines)


def about(results: dict[str, Result]) -> str:
    versions = {f"{package} {version}" for result in results.values() for package, version in result.versions.items()}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"{machine}; {', '.join(sorted(versions))}"
