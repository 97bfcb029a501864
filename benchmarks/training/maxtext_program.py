"""Compiles MaxText's training step for a TPU slice, with its own `train_compile`, on a machine without one.

    python maxtext_program.py FOLDER setting=value ...

Into FOLDER goes `program.txt`, the compiled program's text, and `program.json`: bytes of HBM on each chip, FLOPs as the
compiler counts them, the chips in the order of the program's devices, and versions.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "DECOUPLE_GCLOUD": "TRUE",  # no client of Google Cloud, which compiling does not need
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import maxtext
from maxtext.trainers.pre_train import train_compile


def main() -> None:
    folder, *settings = sys.argv[1:]
    compiled, mesh = compile_step(settings)
    (Path(folder) / "program.txt").write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    found = {
        "hbm": memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes,
        "temp_size": memory.temp_size_in_bytes,
        "flops": compiled.cost_analysis()["flops"],
        "places": [[getattr(device, "slice_index", 0) or 0, device.coords] for device in mesh.devices.flat],
        "versions": {package: version(package) for package in ("maxtext", "jax", "libtpu")},
    }
    (Path(folder) / "program.json").write_text(json.dumps(found))


def compile_step(settings: list[str]) -> tuple:
    """The program as `train_compile` compiles it, which keeps nothing but a serialised copy, and its mesh."""
    found = []
    jit_and_compile = train_compile.jit_and_compile

    def keep(*arguments):
        found.append((jit_and_compile(*arguments), arguments[3]))
        return found[0][0]

    train_compile.jit_and_compile = keep
    base = Path(maxtext.__file__).parent / "configs" / "base.yml"
    train_compile.main(["train_compile", str(base), *settings])
    return found[0]


if __name__ == "__main__":
    main()
