"""Llama-3.2-1B, Llama-3.2-3B and Llama-3.1-8B on one GPU, in bfloat16: MFU, pairs a second and the GPU's memory.

    python -m benchmarks.gpu [ANSWERS.jsonl.gz] [key.path=value ...] [--shapes llama3.1-8b] [--tasks sft dpo]
    python -m benchmarks.gpu --shapes tiny --sequences 8         # the same with two narrow layers, on any machine

Ours against a plain PyTorch loop with transformers' model, fused AdamW, a cached reference and the fastest attention
that is installed there: FlashAttention-3 or 2, or else PyTorch's own. Weights are random. Both read one checkpoint, for
which the temporary directory needs 2 bytes a parameter. Ours needs `pip install -e '.[gpu]'`. The peer's environment is
made below `.venv-peers`; where a Python has torch and transformers already, `--peer-python` names it.
`CUDA_VISIBLE_DEVICES` chooses the GPU, by default the first.

Examples are those of `real_lengths.py`: ours are packed, and theirs padded to the longest of those computed at once,
which are as many as is fastest. Without ANSWERS all have 512 + 1536 random tokens. Pairs and tokens are those of the
examples, without padding. GB are the most that arrays held of the GPU's memory; without a GPU, of the process.

MFU is the share of the GPU's dense bfloat16 peak that the model's own FLOPs take, whatever is padded or recomputed; see
`needed_flops`. A model is cut to as many layers as leave room for our state on the GPU, which the table says: both
trainers then have the same, and the MFU of a stack of layers hardly depends on their number. Ours keeps gradients and
AdamW's moments in float32, 14 bytes a parameter with the parameters themselves; PyTorch all in bfloat16, 8 bytes.

Settings of our run are by default `remat=dots`, and 4096 tokens at once.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.real_lengths import MAX_LENGTH, describe, lengths, read
from benchmarks.training.case import random_batches, write_case, write_model
from benchmarks.training.compare import TORCH, about, interpreter, ours, run_in_turn, same_losses, table
from benchmarks.training.worker import Example
from fusejax.common.cli import UserError, run
from fusejax.models.decoder.config import DecoderConfig

CONFIGS = Path(__file__).parents[1] / "configs" / "models"
REAL = ("llama3.2-1b", "llama3.2-3b", "llama3.1-8b")
TINY = {
    "vocab_size": 32_000,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
"""Otherwise as Llama-3.2-1B."""
PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOP/s in the vendor's data sheets."""
STATE_BYTES = 14
"""Of ours, a parameter: itself in bfloat16, its gradient and two moments in float32."""
STATE_SHARE = 0.82
"""How much of the memory the state may take. At 4096 tokens at once and `remat=dots` the compiler plans another 13 GB
for the 32 layers of Llama-3.1-8B, 7 GB for 16 of them."""
ALL_MEMORY = {"XLA_CLIENT_MEM_FRACTION": "0.92"}
"""JAX takes three quarters otherwise."""
PYTORCH = dataclasses.replace(TORCH, variables={**TORCH.variables, "PYTORCH_ALLOC_CONF": "expandable_segments:True"})
"""So that it wastes less between arrays of all sizes."""
TOLERANCE = {"sft": 1e-3, "dpo": 0.1}
"""Of the first step's loss. In bfloat16 a pair's has the rounding of hundreds of log-probabilities. Later ones differ:
AdamW in PyTorch rounds parameters in bfloat16 to nearest, which loses updates, ours stochastically."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="ANSWERS or key.path=value")
    parser.add_argument("--shapes", nargs="+", default=REAL, choices=[*REAL, "tiny"])
    parser.add_argument("--tasks", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    parser.add_argument("--layers", type=int, help="how many to keep at most; by default as many as fit")
    parser.add_argument("--sequences", type=int, default=64, help="in a step")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--peer-python", type=Path, help="that has torch and transformers; by default one is made")
    args = parser.parse_args()
    overrides = [argument for argument in args.arguments if "=" in argument]
    answers = [Path(argument) for argument in args.arguments if "=" not in argument]
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    device = find_device(args.peer_python, needed=args.shapes != ["tiny"])
    peer = dataclasses.replace(PYTORCH, python=args.peer_python)
    differing = []
    examples = read(answers[0]) if answers else None
    for shape in args.shapes:
        model = read_model(shape)
        layers = model["num_hidden_layers"]
        kept = args.layers or layers_that_fit(DecoderConfig.from_hf(model), device.memory)
        model["num_hidden_layers"] = min(layers, kept)
        config = DecoderConfig.from_hf(model)
        with tempfile.TemporaryDirectory() as folder:
            apart(write_model, Path(folder), model, "bfloat16")
            for task in args.tasks:
                size = args.sequences // 2 if task == "dpo" else args.sequences
                batches = batches_of(examples, config.vocab_size, size=size, steps=args.steps)
                write_case(Path(folder), task, batches, max_length=MAX_LENGTH, passes=3, dtype="bfloat16")
                rows = f"packing.rows_per_device={1 if task == 'dpo' else 2}"
                trainers = (ours("remat=dots", rows, *overrides, **ALL_MEMORY), peer)
                results = run_in_turn(trainers, Path(folder), turns=args.turns)
                for result in results.values():
                    print(json.dumps(dataclasses.asdict(result)), file=sys.stderr, flush=True)
                firsts = {name: dataclasses.replace(each, losses=each.losses[:1]) for name, each in results.items()}
                try:
                    same_losses(firsts, tolerance=TOLERANCE[task], least=0.5)
                except SystemExit as difference:
                    print(f"\n{shape}, {task}: no table, for {difference}", flush=True)
                    differing.append(f"{shape}, {task}")
                    continue
                flops = needed_flops(config, batches, task)
                units: dict[str, float] = {
                    "pairs/s" if task == "dpo" else "examples/s": size * args.steps,
                    "tokens/s": sum(sum(lengths(batch, task)) for batch in batches),
                    "TFLOP/s": flops / 1e12,
                }
                if device.kind in PEAKS:
                    units["MFU, %"] = 100 * flops / PEAKS[device.kind]
                print(f"\n{shape}, {len(config.windows)} of {layers} layers, {task}, {args.sequences} sequences a step")
                print(f"{describe(batches, task)}\n{table(results, units)}", flush=True)
    print(f"{device.kind}; {about(results)}")
    if differing:
        raise SystemExit(f"losses differ: {'; '.join(differing)}")


@dataclasses.dataclass(frozen=True)
class Device:
    kind: str
    memory: float
    """Bytes that JAX may take of it; of a CPU, infinite."""


def find_device(peer_python: Path | None, *, needed: bool) -> Device:
    """What both trainers will run on; found by other processes, for one that uses a GPU keeps its memory.

    Raises:
      UserError: a GPU is needed, and one of the trainers finds none.
    """
    look = "import jax, json; d = jax.devices()[0]; s = d.memory_stats() or {}"
    tell = "print(json.dumps([d.platform, d.device_kind, s.get('bytes_limit')]))"
    found = last_line([sys.executable, "-c", f"{look}; {tell}"])
    platform, kind, memory = json.loads(found)
    if needed:
        anywhere = "--shapes tiny runs without one"
        if platform != "gpu":
            raise UserError(f"no GPU here that JAX finds, only {platform}; fusejax[gpu] is for NVIDIA's; {anywhere}")
        has_gpu = "import torch; print(torch.cuda.is_available())"
        python = peer_python or interpreter("trl")
        if last_line([str(python), "-c", has_gpu]) != "True":
            raise UserError(f"no GPU here that the PyTorch of {python} finds; {anywhere}")
    return Device(kind, memory or math.inf)


def last_line(command: list[str]) -> str:
    process = subprocess.run(command, env={**os.environ, **ALL_MEMORY}, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr[-4000:]}")
    return process.stdout.strip().splitlines()[-1]


def read_model(shape: str) -> dict[str, Any]:
    """The shape's `config.json`."""
    if shape == "tiny":
        return {**read_model("llama3.2-1b"), **TINY}
    return json.loads((CONFIGS / f"{shape}.json").read_text())


def apart(function, *args) -> None:
    """Calls the function in a process of its own, so that this one holds nothing of the GPU."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(function, *args).result()


def batches_of(examples: list[Example] | None, words: int, *, size: int, steps: int) -> list[list[Example]]:
    if examples is None:
        return random_batches(words, steps=steps, examples=size, prompt=512, answer=MAX_LENGTH - 512)
    return [examples[step * size : (step + 1) * size] for step in range(steps)]


def layers_that_fit(config: DecoderConfig, memory: float) -> int:
    """How many of the model's layers leave room for the rest of a step; at least one."""
    head = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    room = STATE_SHARE * memory / STATE_BYTES - head
    return int(max(1, min(config.num_layers, room // layer_weights(config))))


def layer_weights(config: DecoderConfig) -> int:
    """Of a layer's products; its norms are nothing beside them."""
    attention = 2 * config.head_dim * (config.num_heads + config.num_kv_heads)
    return config.hidden_size * (attention + 3 * config.intermediate_size)


def needed_flops(config: DecoderConfig, batches: list[list[Example]], task: str) -> float:
    """FLOPs of a training pass over all batches, as in PaLM (arXiv:2204.02311), appendix B, but no more than needed.

    6 a weight and token, forwards and backwards together. Of the output projection, tokens are those of the answers. In
    attention, 12 a channel of the heads and pair of tokens, where no token sees a later one.
    """
    head = config.vocab_size * config.hidden_size
    channels = config.num_heads * config.head_dim
    answers = ("chosen", "rejected") if task == "dpo" else ("chosen",)
    targets = sum(len(example[which]) for batch in batches for example in batch for which in answers)
    total = 6 * head * targets
    for length in (length for batch in batches for length in lengths(batch, task)):
        pairs = length * (length + 1) // 2
        total += config.num_layers * (6 * layer_weights(config) * length + 12 * channels * pairs)
    return total


if __name__ == "__main__":
    run(main)
