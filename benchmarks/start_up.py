"""How long a run takes from its command to the end of its first step, with nothing compiled before and the second time.

    python -m benchmarks.start_up [CONFIG] [--hosts 1 2] [--other CHECKOUT] [--turns 4] [key=value ...]

CONFIG is that of the quickstart's SFT run by default, whose model and data `make quickstart` makes. Each start is a new
run, with an `output_dir` of its own, and ends after three steps. In a turn, every number of hosts starts once with a
new folder of compiled programs and then again with the same. Hosts are processes on this machine: they share its cores.

CHECKOUT is another version of this repository, which takes turns with this one.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.process import about

HERE = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/quickstart/sft.yaml")
    parser.add_argument("--hosts", nargs="+", type=int, default=[1])
    parser.add_argument("--other", type=Path)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    versions = {"this": HERE, **({"other": args.other.resolve()} if args.other else {})}
    with tempfile.TemporaryDirectory() as folder:
        for name, checkout in versions.items():
            command = [sys.executable, "-c", "import fusejax.training.loop"]
            imports = [timed(command, environment(checkout, folder)) for _ in range(3)]
            print(f"import, {name}: {min(imports):.1f} s (least of 3)", flush=True)
        found: dict[tuple[str, int, str], list[float]] = {}
        for turn in range(args.turns):
            for count in args.hosts:
                for name, checkout in versions.items():
                    cache = f"{folder}/cache-{turn}-{count}-{name}"
                    for compiled in ("nothing compiled", "compiled before"):
                        output = f"{folder}/run-{turn}-{count}-{name}-{compiled.split()[0]}"
                        seconds, told = first_step(args, output, environment(checkout, cache), checkout, count)
                        found.setdefault((name, count, compiled), []).append(seconds)
                        print(f"turn {turn}, {count} hosts, {name}, {compiled}: {seconds:.1f} s {told}", flush=True)
    for (name, count, compiled), seconds in found.items():
        print(f"{count} hosts, {name}, {compiled}: median {statistics.median(seconds):.1f} s, least {min(seconds):.1f}")
    print(about("jax", "tokenizers"))


def environment(checkout: Path, cache: str) -> dict[str, str]:
    # Not this folder, which may be another checkout's.
    chosen = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    chosen.pop("JAX_COMPILATION_CACHE_DIR", None)
    return chosen


def first_step(
    args: argparse.Namespace, output_dir: str, environment: Mapping[str, str], checkout: Path, count: int
) -> tuple[float, str]:
    """Seconds from the command to the first line of `metrics.jsonl`, and what the run says at its end of its time."""
    changes = [f"output_dir={output_dir}", "max_steps=3", "checkpoint.every_steps=1000", *args.overrides]
    command = [sys.executable, "-m", "fusejax.train", "--config", str(Path(args.config).resolve()), *changes]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = ["--coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--num-hosts", str(count), "--host-index"]
    commands = [command] if count == 1 else [[*command, *options, str(index)] for index in range(count)]
    metrics = Path(output_dir) / "metrics.jsonl"
    with tempfile.TemporaryFile("w+") as errors:
        started = time.monotonic()
        hosts = [subprocess.Popen(each, env=environment, stderr=errors) for each in commands]
        while not (metrics.exists() and metrics.stat().st_size) and hosts[0].poll() is None:
            time.sleep(0.01)
        seconds = time.monotonic() - started
        failed = [host.args for host in hosts if host.wait()]
        errors.seek(0)
        said = errors.read()
        if failed:
            raise SystemExit(f"{failed[0]} failed:\n{said[-4000:]}")
    first = json.loads(metrics.read_text().splitlines()[0])
    told = [line for line in said.splitlines() if line.startswith("goodput")]
    return seconds, "; ".join([f"(step {first['step_time']:.1f})", *told])


def timed(command: list[str], environment: Mapping[str, str]) -> float:
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
