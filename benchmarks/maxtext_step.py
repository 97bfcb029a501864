"""MaxText's training step beside ours, both compiled for a TPU slice that is not there.

    python -m benchmarks.maxtext_step --topology v5p-16 [--model llama3.1-8b] [--rows 4] [--length 2048] [key=value ...]
        [--maxtext setting=value ...] [--flags=--xla_...] [--keep FOLDER]

A step is one microbatch of `--rows` rows a chip and the update: float32 parameters and moments, products in bfloat16,
each layer recomputed in the backward pass. `key=value` are settings of our run, which also keeps a sum of gradients:
its steps may take several microbatches. MaxText's is the program that its `train_compile` compiles, in an environment
below `.venv-peers` that is made the first time (with `python3.12`, if this Python is older). MaxText fine-tunes with
the same program. It is compiled as it is, and again with the flags that its own script for a 7B model gives libtpu on
this kind of chip, or with `--flags`.

`fusejax.planning.schedule` reads all texts; `--keep` keeps MaxText's. None of this was measured on a TPU.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # the programs are for devices that are not here

from benchmarks.training.compare import HERE, interpreter
from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.models.decoder.config import DecoderConfig
from fusejax.planning.architecture import find_architecture
from fusejax.planning.hlo import Instruction
from fusejax.planning.links import Links
from fusejax.planning.plan import Planner
from fusejax.planning.schedule import Traffic, read
from fusejax.planning.topology import Topology, parse_topology
from fusejax.planning.workload import workload

CONFIGS = Path(__file__).parents[1] / "configs" / "fusechat3"
SCRIPTS = {"v5e": "v5e/llama2_7b.sh", "v5p": "v5p/llama2_7b.sh", "v6e": "v6e/llama2_7b_4096.sh"}
"""Of MaxText, for runs whose figures it has published."""
COMMON = {
    "attention": "flash",
    "base_output_directory": "unused",
    "dataset_type": "synthetic",
    "enable_checkpointing": "false",
    "enable_dropout": "false",
    "ici_fsdp_parallelism": "-1",
    "remat_policy": "full",
    "run_name": "unused",
}
# Matrix products per query-key pair of MaxText's attention kernels: forward; gradients of keys and values; of queries.
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
_KERNEL = re.compile(r"splash_mha_(fwd|dkv|dq)")
_MASK = re.compile(r"s8\[\d+,(\d+),(\d+)\]")
_QUERIES = re.compile(r"bf16\[(?:(\d+),)?(\d+),(\d+),(\d+)\]")


@dataclasses.dataclass(frozen=True)
class Step:
    hbm: int
    """Bytes on each chip."""
    sent: Traffic
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--model", default="llama3.1-8b", help="of configs/fusechat3; MaxText must have the name, too")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--maxtext", nargs="*", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--flags")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    file = CONFIGS / f"{args.model}-sft.yaml"
    shape = [
        f"packing.row_length={args.length}",
        f"packing.rows_per_device={args.rows}",
        "remat=full",
        "data.eval=null",
    ]
    config = load_config(TrainConfig, file, [*shape, *args.overrides])
    model, _ = find_architecture(config.model, file)
    topology = parse_topology(args.topology)
    settings = COMMON | {
        "compile_topology": args.topology.rpartition("x")[2],
        "compile_topology_num_slices": str(topology.slices),
        "max_target_length": str(args.length),
        "model_name": args.model,
        "per_device_batch_size": str(args.rows),
    }
    settings |= dict(setting.split("=", 1) for setting in args.maxtext)
    flags = args.flags if args.flags is not None else own_flags(topology)
    tokens = args.rows * args.length
    print(f"{args.model}, {args.rows} rows of {args.length} a chip, {args.topology}; a step:\n\n{HEADER}", flush=True)
    mine, flops = ours(topology, config, model)
    print(line("fusejax", mine, topology, tokens, flops), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        for name, given, place in ("MaxText", "", "plain"), ("MaxText, its flags", flags, "flags"):
            step = theirs(topology, settings, given, folder=folder / place)
            print(line(name, step, topology, tokens, flops), flush=True)


def ours(topology: Topology, config: TrainConfig, model: DecoderConfig) -> tuple[Step, float]:
    """Our step, and the model's FLOPs for a token of it."""
    examples = config.packing.rows_per_device * topology.chips
    tokens = 0.99 * config.row_length  # so that an example fills a row
    config = config.model_copy(update={"batch_size": examples})
    plan = Planner(topology, model, workload(config, examples=examples, tokens_per_example=tokens)).plan(config)["sft"]
    if plan.speed is None:
        raise SystemExit(f"our step does not fit {topology.name}")
    assert plan.microbatches == 1
    step = Step(plan.hbm.total, plan.speed.communication, plan.speed.step_seconds)
    return step, plan.speed.model_flops / (examples * tokens)


def theirs(topology: Topology, settings: Mapping[str, str], flags: str, *, folder: Path) -> Step:
    folder.mkdir(parents=True, exist_ok=True)
    command = [interpreter("maxtext"), HERE / "maxtext_program.py", ".", *map("=".join, settings.items())]
    environment = {**os.environ, "LIBTPU_INIT_ARGS": flags}
    process = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"MaxText failed:\n{process.stderr[-4000:]}")
    found = json.loads((folder / "program.json").read_text())
    print(f"  {found['versions']}{flags and f'; {flags.strip()}'}", file=sys.stderr, flush=True)
    links = Links(topology, tuple((number, tuple(at)[: len(topology.axes)]) for number, at in found["places"]))
    schedule = read((folder / "program.txt").read_text(), links, kernel_flops=their_attention_flops)
    return Step(found["hbm"], schedule.communication, schedule.seconds)


def their_attention_flops(kernel: Instruction) -> float:
    """FLOPs on each device of one of MaxText's attention kernels; 0 if it is none.

    Counts causal attention: a window that is shorter than a row is not looked for.
    """
    match = _KERNEL.match(kernel.name)
    if match is None:
        return 0.0
    # Its arguments begin with the mask's blocks and the queries: [rows, heads, length, width], or without the only row.
    mask, queries = _MASK.search(kernel.attributes), _QUERIES.search(kernel.attributes)
    if mask is None or queries is None:
        raise ValueError(f"the attention kernel {kernel.name} has unknown arguments")
    rows, heads, length, width = map(int, queries.groups("1"))
    blocks = [length // int(count) for count in mask.groups()]
    # A backward kernel that has the gradient of the queries, too, returns a part of it for each block of keys.
    fused = any(len(array.shape) > queries[0].count(",") + 1 for array in kernel.arrays)
    return (_PRODUCTS[match[1]] + fused) * 2 * width * rows * heads * visible_pairs(length, *blocks)


def visible_pairs(length: int, queries: int, keys: int) -> int:
    """Pairs in all blocks of `queries` x `keys` in which any query may see a key."""
    return sum(-(-(start + queries) // keys) for start in range(0, length, queries)) * queries * keys


def own_flags(topology: Topology) -> str:
    """What MaxText's own script gives libtpu on this kind of chip."""
    script = SCRIPTS.get(topology.chip.name)
    if script is None:
        raise SystemExit(f"MaxText has no script for a 7B model on {topology.chip.name}: say --flags")
    packages = next((interpreter("maxtext").parents[1] / "lib").glob("python*/site-packages"))
    text = (packages / "maxtext" / "configs" / "tpu" / script).read_text()
    return next(iter(re.findall(r'LIBTPU_INIT_ARGS="([^"]*)"', text)))


COLUMNS = ("HBM, GB", "sent, GB", "sending, s", "exposed, s", "step, s", "tokens/s", "MFU")
HEADER = f"{'':20}" + "".join(f"{column:>12}" for column in COLUMNS)


def line(name: str, step: Step, topology: Topology, tokens: int, flops: float) -> str:
    """`tokens` of a step on each chip, `flops` of the model for each; tokens/s are of a chip."""
    rate = tokens / step.seconds
    values = (
        f"{step.hbm / 1e9:.1f}",
        f"{step.sent.bytes / 1e9:.1f}",
        f"{step.sent.seconds:.3f}",
        f"{step.sent.exposed_seconds:.3f}",
        f"{step.seconds:.3f}",
        f"{rate:,.0f}",
        f"{rate * flops / topology.chip.flops:.1%}",
    )
    return f"{name:20}" + "".join(f"{value:>12}" for value in values)


if __name__ == "__main__":
    main()
