"""Weights in and out: speed against the disk's own, and host memory beside the arrays, on a random checkpoint.

    python benchmarks/weights.py FOLDER [--size {3b,small}] [--repeats 3]

Makes a checkpoint with the shapes of Llama-3.2-3B in bfloat16 (6.4 GB; FOLDER needs 20 GB for a while, the machine
16 GB of memory) and measures, each in a process of its own and with none of the files in the page cache:

- import: `huggingface.load_parameters` to arrays on this machine's CPU, compilation included, into memory that the
  process had before; and into new memory, of which a virtual machine may have to ask its host for every page;
- export of those arrays;
- export of a training checkpoint, as `python -m fusejax.export` does it.

The disk's own speed is that of sequential reads of the same files in blocks of 1 MB past the page cache, by one thread
or by two, whichever is faster on average of right before and right after each import. CPU seconds are of all threads,
user and system: where they are near the seconds times the cores, or the load printed at the end is above the cores, it
is the processor that limits.

The speed of new memory is that of writing one byte to each of its pages.

Memory is the process's peak of resident memory (the kernel's VmHWM, set back just before), less what was resident then,
less the arrays that were made: on a CPU they are host memory, too. The limit is two of the largest tensors as they are
stored in the checkpoint that is read. Of it, 0.1 GB is XLA's compiler, which matters in the small size alone.
"""

import argparse
import concurrent.futures
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

BLOCK = 2**20
SIZES: dict[str, dict[str, int]] = {
    "3b": {
        "vocab_size": 128_256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "small": {
        "vocab_size": 32_000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="3b")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(STAGES[args.stage](args.folder, args.size)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)

    def stage(name: str) -> dict[str, float]:
        drop_caches(args.folder)
        command = [sys.executable, __file__, str(args.folder), "--size", args.size, "--stage", name]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"} | (KEEPS_MEMORY if name == "import-again" else {})
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        return json.loads(output.splitlines()[-1])

    try:
        made = stage("make")
        size, limit = made["bytes"], 2 * made["largest"]
        print(f"{args.size}: {size / 1e9:.2f} GB, two of the largest tensors {limit / 1e9:.2f} GB\n")
        print(
            f"{'':<26}{'seconds':>9}{'CPU s':>8}{'GB/s':>8}{'disk GB/s':>11}{'ratio':>8}{'peak beside the arrays':>24}"
        )

        def line(name: str, found: dict[str, float], disk: float | None = None) -> None:
            speed = size / 1e9 / found["seconds"]
            against = f"{disk:>11.2f}{speed / disk:>8.0%}" if disk else f"{'':>19}"
            peak = f"{found['peak'] / 1e9:.2f} GB ({found['peak'] / limit:.0%} of two)" if "peak" in found else ""
            print(f"{name:<26}{found['seconds']:>9.2f}{found['cpu']:>8.1f}{speed:>8.2f}{against}{peak:>24}", flush=True)

        for _ in range(args.repeats):
            before = disk_speeds(args.folder / "model")
            found = stage("import-again")
            after = disk_speeds(args.folder / "model")
            line("import", found, max(sum(both) / 2 for both in zip(before, after, strict=True)))
        for _ in range(args.repeats):
            found = stage("import")
            line("import into new memory", found)
            print(f"  new memory: {found['new_memory']:.2f} GB/s")
        line("export of arrays", stage("export"))
        shutil.rmtree(args.folder / "export")
        stage("train")
        line("export of a checkpoint", stage("export-checkpoint"))
        same = all(
            path.read_bytes() == (args.folder / "model" / path.name).read_bytes()
            for path in (args.folder / "export").glob("*.safetensors")
        )
        print(f"\nload {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores")
        print(f"exported files {'equal' if same else 'DIFFER FROM'} the imported ones, byte for byte")
    finally:
        for name in ("model", "export", "run"):
            shutil.rmtree(args.folder / name, ignore_errors=True)


def disk_speeds(folder: Path) -> list[float]:
    """GB/s of reading the folder's weights by one and by two threads."""
    return [sequential_read(folder, threads) for threads in (1, 2)]


def sequential_read(folder: Path, threads: int) -> float:
    files = sorted(folder.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)

    def read(file: Path, first: int) -> None:
        buffer = mmap.mmap(-1, BLOCK)  # aligned, as direct reads demand
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
        for offset in range(first * BLOCK, file.stat().st_size, threads * BLOCK):
            os.preadv(descriptor, [buffer], offset)
        os.close(descriptor)

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for file in files:
            list(pool.map(read, [file] * threads, range(threads)))
    return total / 1e9 / (time.perf_counter() - start)


def drop_caches(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# Stages, each in a process of its own


class Measured:
    """Seconds that a block took, and by how much the memory's peak within it was above what it was before."""

    def __enter__(self) -> "Measured":
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
        self._before = status("VmRSS")
        self._start, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds, self.cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        self._peak = status("VmHWM")

    def result(self, arrays: Any) -> dict[str, float]:
        import jax

        made = sum(array.nbytes for array in jax.tree.leaves(arrays))
        return {"seconds": self.seconds, "cpu": self.cpu, "peak": self._peak - self._before - made}


def status(name: str) -> int:
    """Of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class RandomWeights:
    """Random bits that are finite numbers, for every parameter."""

    on_all_processes = False

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    def pieces(self, parameter: Any, block: int) -> Iterable[Any]:
        yield lambda: self._draw(parameter.hf_shape)

    def _draw(self, shape: tuple[int, ...]) -> np.ndarray:
        bits = self._random.integers(2**16, size=shape, dtype=np.uint16)
        bits &= np.uint16(0xBFFF)
        return bits.view(ml_dtypes.bfloat16)


def hf_config(size: str) -> dict[str, Any]:
    common = {"model_type": "llama", "hidden_act": "silu", "rope_theta": 5e5, "rms_norm_eps": 1e-5}
    return {**common, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1, **SIZES[size]}


def make(folder: Path, size: str) -> dict[str, float]:
    from fusejax.models.decoder.config import DecoderConfig
    from fusejax.models.huggingface import checkpoint as huggingface
    from fusejax.models.huggingface.names import parameters

    config = DecoderConfig.from_hf(hf_config(size))
    huggingface.save(RandomWeights(), config, folder / "model", hf_config=hf_config(size), dtype="bfloat16")
    sizes = {parameter: 2 * int(np.prod(parameter.hf_shape)) for parameter in parameters(config)}
    total = sum(size * len(parameter.hf_names) for parameter, size in sizes.items())
    return {"bytes": total, "largest": max(sizes.values())}


def import_(folder: Path, size: str) -> dict[str, float]:
    params, measured = load(folder, size)
    return {**measured.result(params), "new_memory": touch(2**30)}


def import_again(folder: Path, size: str) -> dict[str, float]:
    touch(int(1.4 * sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))))
    _, measured = load(folder, size)
    return {"seconds": measured.seconds, "cpu": measured.cpu}


# glibc then gives no memory back, and takes none past its heap.
KEEPS_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def touch(size: int) -> float:
    """GB/s of writing to each page of as much memory, which is free again afterwards."""
    start = time.perf_counter()
    memory = np.empty(size, np.uint8)
    memory[:: mmap.PAGESIZE] = 1
    return size / 1e9 / (time.perf_counter() - start)


def load(folder: Path, size: str) -> tuple[Any, Measured]:
    import jax
    from etils import epath

    from fusejax.distributed.mesh import one_device_mesh
    from fusejax.distributed.sharding import parameter_sharding
    from fusejax.models.decoder.config import DecoderConfig
    from fusejax.models.huggingface import checkpoint as huggingface

    mesh, config = one_device_mesh(), DecoderConfig.from_hf(hf_config(size))
    with Measured() as measured:
        params = huggingface.load_parameters(
            epath.Path(folder / "model"),
            config,
            dtype=jax.numpy.bfloat16,
            shardings=lambda name, shape: parameter_sharding(name, shape, mesh),
        )
    return params, measured


def export_arrays(folder: Path, size: str) -> dict[str, float]:
    import jax

    from fusejax.models.decoder.config import DecoderConfig
    from fusejax.models.huggingface import checkpoint as huggingface
    from fusejax.models.huggingface.export_weights import Arrays

    params, _ = load(folder, size)
    named = {".".join(str(key.key) for key in path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    arrays = Arrays(named, jax.numpy.dtype("bfloat16"))
    config = DecoderConfig.from_hf(hf_config(size))
    with Measured() as measured:
        huggingface.save(arrays, config, folder / "export", hf_config=hf_config(size), dtype="bfloat16")
    return measured.result({})


def train(folder: Path, size: str) -> dict[str, float]:
    """A training run's folder, as if after its first step."""
    import jax.numpy as jnp

    from fusejax.training.checkpoints import Checkpoints
    from fusejax.training.state import TrainState
    from tests.tiny_runs import make_tokenizer

    params, _ = load(folder, size)
    (folder / "run" / "model").mkdir(parents=True)
    shutil.copy(folder / "model" / "config.json", folder / "run" / "model")
    make_tokenizer().save_pretrained(folder / "run" / "model")
    with Checkpoints(folder / "run", keep=1) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(1), params, {}), {})
    return {}


def export_checkpoint(folder: Path, size: str) -> dict[str, float]:
    from fusejax.training.export import export

    with Measured() as measured:
        export(str(folder / "run"), str(folder / "export"), step=None, dtype="bfloat16")
    return measured.result({})


STAGES = {
    "make": make,
    "import": import_,
    "import-again": import_again,
    "export": export_arrays,
    "train": train,
    "export-checkpoint": export_checkpoint,
}

if __name__ == "__main__":
    main()
