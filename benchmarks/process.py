"""A measurement in a process of its own, so that its memory is nothing but its own."""

import multiprocessing
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from benchmarks.training.worker import peak_of_process

T = TypeVar("T")


def alone(function: Callable[..., T], *args: object) -> T:
    """What a module's function returns in a new process, which ends then."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def forget_peak() -> int:
    """Lets `peak_of_process` start anew, from the bytes held now, which it returns."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_of_process()


def about(*packages: str) -> str:
    """Machine, its load, and versions."""
    load = Path("/proc/loadavg").read_text().split()[0]
    cores = multiprocessing.cpu_count()
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{platform.machine()}, {cores} cores, load {load}; Python {platform.python_version()}, {versions}"
