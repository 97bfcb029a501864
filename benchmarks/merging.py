"""Merging on a CPU: time and peak memory, and those of mergekit in turns with it where there is one.

    python benchmarks/merging.py FOLDER [--size {embedding,layers}] [--methods sce,ties] [--repeats 3]
        [--mergekit PYTHON] [--dtype bfloat16]

Makes six random Llama checkpoints in FOLDER (up to 5 GB), a pivot and five targets that differ a little from it, and
merges them by each method, each merge in a process of its own. `embedding` is one large tensor, of 300 MB in float32,
and little else; `layers` is a small model of eight layers.

Time is the whole command's, start included. Memory is the kernel's count of the most that was resident, of which the
start, with the libraries that are imported, is told apart for fusejax: that of a merge of tiny models. The limit is
what six tensors would take in float32, as large as the largest.

mergekit merges the same checkpoints by the same formulas in float32 on the CPU, written in bfloat16, with the options
that it has by default. PYTHON is the interpreter that it is installed for.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from benchmarks.process import about
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.huggingface.names import parameters

TARGETS = 5
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
    "embedding": {"vocab_size": 120_000, "hidden_size": 640, "intermediate_size": 640, "num_hidden_layers": 1},
    "layers": {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8},
}
METHODS = {
    "sce": ({"name": "sce", "tau": 0.1, "select": "deltas"}, {"merge_method": "sce"}, {"select_topk": 0.1}),
    "ties": ({"name": "ties"}, {"merge_method": "ties"}, {"density": 0.6, "weight": 0.2}),
    "dare": ({"name": "dare"}, {"merge_method": "dare_linear"}, {"density": 0.6, "weight": 0.2}),
    "task_arithmetic": ({"name": "task_arithmetic"}, {"merge_method": "task_arithmetic"}, {"weight": 0.3}),
    "linear": ({"name": "linear"}, {"merge_method": "linear"}, {"weight": 0.2}),
    "varm": ({"name": "varm"}, None, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="embedding")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mergekit", metavar="PYTHON", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the checkpoints")
    args = parser.parse_args()
    for size in ("tiny", args.size):
        make_models(args.folder / size, size, args.dtype)
    largest = max(np.prod(parameter.hf_shape) for parameter in parameters(config_of(args.size))) * 4 / 1e6
    print(about("numpy", "ml_dtypes"))
    print(f"{args.size}: six tensors of {largest:.0f} MB in float32 are {(TARGETS + 1) * largest:.0f} MB")
    for name in args.methods.split(","):
        start = run(ours(args.folder, "tiny", name))[1]
        commands = {"fusejax": ours(args.folder, args.size, name)}
        if args.mergekit and METHODS[name][1] is not None:
            commands["mergekit"] = theirs(args.folder, args.size, name, args.mergekit)
        measured = [{program: run(command) for program, command in commands.items()} for _ in range(args.repeats)]
        for program in commands:
            seconds = [each[program][0] for each in measured]
            peak = max(each[program][1] for each in measured)
            beside = f", of which the start {start:.0f} MB" if program == "fusejax" else ""
            told = f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"
            print(f"{name:16} {program:9} {told}, peak {peak:.0f} MB{beside}", flush=True)
        if len(commands) == 2:
            for number, what in enumerate(("time", "memory")):
                ratios = [each["mergekit"][number] / each["fusejax"][number] for each in measured]
                print(f"{name:16} mergekit / fusejax: {what} {statistics.median(ratios):.2f}")


def config_of(size: str) -> DecoderConfig:
    return DecoderConfig.from_hf(hf_config(size))


def hf_config(size: str) -> dict[str, object]:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": SIZES[size]["hidden_size"] // 8}
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        **SIZES[size],
        **heads,
    }


def make_models(folder: Path, size: str, dtype: str) -> None:
    """The pivot and the targets, unless they are there."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    done = folder / f"made-{dtype}"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(0)
    stored = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(np.float32)
    shapes = {name: parameter.hf_shape for parameter in parameters(config_of(size)) for name in parameter.hf_names}
    pivot = {name: random.standard_normal(shape, np.float32) * 0.02 for name, shape in shapes.items()}
    for number in range(TARGETS + 1):
        model = folder / (f"target{number}" if number else "pivot")
        model.mkdir(parents=True)
        moved = {
            name: (tensor + bool(number) * 0.002 * random.standard_normal(tensor.shape, np.float32)).astype(stored)
            for name, tensor in pivot.items()
        }
        save_file(moved, model / "model.safetensors", {"format": "pt"})
        (model / "config.json").write_text(json.dumps(hf_config(size) | {"torch_dtype": dtype}))
    done.touch()


def ours(folder: Path, size: str, method: str) -> tuple[list[str], Path]:
    targets = [str(folder / size / f"target{number}") for number in range(1, TARGETS + 1)]
    values = {
        "pivot": str(folder / size / "pivot"),
        "targets": targets,
        "method": METHODS[method][0],
        "output": str(folder / size / "out"),
        "dtype": "bfloat16",
    }
    config = folder / size / "fusejax.yaml"
    config.write_text(json.dumps(values))  # which is YAML, too
    return [sys.executable, "-m", "fusejax.merge", "--config", str(config)], folder / size / "out"


def theirs(folder: Path, size: str, method: str, python: Path) -> tuple[list[str], Path]:
    pivot = str(folder / size / "pivot")
    _, head, parameters_of_method = METHODS[method]
    assert head is not None
    values = {
        **head,
        "models": [{"model": str(folder / size / f"target{number}")} for number in range(1, TARGETS + 1)],
        "parameters": parameters_of_method,
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if method != "linear":
        values["base_model"] = pivot
    config = folder / size / "mergekit.yaml"
    config.write_text(json.dumps(values))
    program = str(python.parent / "mergekit-yaml")
    return [program, str(config), str(folder / size / "out"), "--no-copy-tokenizer", "--quiet"], folder / size / "out"


def run(command: tuple[list[str], Path]) -> tuple[float, float]:
    """Seconds and peak memory in MB of a merge, whose output is deleted."""
    arguments, output = command
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    process = subprocess.Popen(
        arguments, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    told = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: {told}")
    assert isinstance(usage, resource.struct_rusage)
    return time.perf_counter() - start, usage.ru_maxrss / 1e3 * 1.024


if __name__ == "__main__":
    main()
