"""How long a run takes from its command to the end of its first step, with nothing compiled before and the second time.

    python -m benchmarks.start_up [CONFIG] [key=value ...]

CONFIG is that of the quickstart's SFT run by default, whose model and data `make quickstart` makes. Each start is a new
run, with an `output_dir` of its own; what they share is the folder of compiled programs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/quickstart/sft.yaml")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        imports = [timed([sys.executable, "-c", "import fusejax.training.loop"], environment) for _ in range(3)]
        print(f"import: {min(imports):.1f} s (least of 3)")
        first, *more = [first_step(args, f"{folder}/{turn}", environment) for turn in range(4)]
        print(f"first start to the end of its first step: {first:.1f} s")
        later = sorted(more)
        print(f"later starts: {', '.join(f'{x:.1f}' for x in later)} s; median {later[1] / first:.2f} of the first")


def first_step(args: argparse.Namespace, output_dir: str, environment: dict[str, str]) -> float:
    """Seconds from the command to the first line of `metrics.jsonl`; the run then ends."""
    changes = [f"output_dir={output_dir}", "max_steps=3", "checkpoint.every_steps=1000"]
    command = [sys.executable, "-m", "fusejax.train", "--config", args.config, *args.overrides, *changes]
    metrics = Path(output_dir) / "metrics.jsonl"
    with tempfile.TemporaryFile("w+") as errors:
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stderr=errors)
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        seconds = time.monotonic() - started
        if process.wait():
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()[-4000:]}")
    return seconds


def timed(command: list[str], environment: dict[str, str]) -> float:
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
