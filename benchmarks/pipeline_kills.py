"""The data pipeline on real prompts and a real vLLM, killed by SIGKILL again and again: are the shards the same?

    python -m benchmarks.pipeline_kills DATA --vllm PYTHON [--kills 10] [--prompts 200] [--seed 0]

DATA holds instruction_alpaca_eval_answers.jsonl.gz, math_gsm8k_train.jsonl.gz, math_gsm8k_model_solutions.jsonl.gz and
code_leetcode_train.jsonl.gz; PYTHON is an interpreter that has vLLM (`make test-vllm` makes .venv-vllm/bin/python).

vLLM serves a tiny random model, which two sources ask at different temperatures; a tiny random ArmoRM gives rewards.
Such models solve nothing, so the answers that come with the data stand beside theirs as given ones: those of other
models and people, some wrong. `python -m data_pipeline run` makes it all into shards, once unbroken and once killed
after random times, as often as said, and run again each time. Every file of shards, selection, scores and samples must
then be the same, byte for byte; so must the data card. What a run had said last when it was killed is printed.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.data_pipeline.helpers import make_checkpoint
from tests.data_pipeline.scoring.armorm import make_armorm

ROOT = Path(__file__).parents[1]
COMPARED = ("samples/*.parquet", "scores/*.parquet", "selection/*.parquet", "sft/*", "dpo/*", "data_card.md")
SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--vllm", required=True, metavar="PYTHON")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=200, help="of each data set")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_checkpoint(folder / "tiny", hidden_size=64, head_dim=32, max_position_embeddings=8192)
        reward = make_armorm(folder / "armorm", max_position_embeddings=8192)
        with served(arguments.vllm, model, folder / "server.log") as url:
            config = folder / "data.yaml"
            config.write_text(yaml.safe_dump(pipeline(folder, arguments.data, arguments.prompts, model, reward, url)))
            raise SystemExit(not killed(["run", "--config", str(config)], folder, COMPARED, arguments.kills, generator))


def pipeline(folder: Path, data: Path, prompts: int, model: Path, reward: Path, url: str) -> dict[str, Any]:
    """The config, whose given answers are written beside it, flat."""
    answers = folder / "given"
    answers.mkdir()
    alpaca = list(rows(data / "instruction_alpaca_eval_answers.jsonl.gz"))
    solved = list(rows(data / "math_gsm8k_model_solutions.jsonl.gz"))
    leetcode = list(rows(data / "code_leetcode_train.jsonl.gz"))
    questions = ({"prompt": row["question"], "answer": row["ground_truth"].rpartition("A:")[2]} for row in solved)
    write(answers / "questions.jsonl", questions)
    write(
        answers / "instruction.jsonl",
        ({"prompt": row["prompt"], "answer": row["response"]} for row in alpaca),
    )
    write(
        answers / "math.jsonl",
        ({"prompt": row["question"], "answer": row[name]["solution"]} for row in solved for name in SOLVERS),
    )
    write(
        answers / "code.jsonl",
        (
            {"prompt": row["query"], "answer": f"```python\n{program}\n```"}
            for row in leetcode
            for program in (row["completion"], row["completion"].replace(" + 1", " + 2"))
        ),
    )
    columns = {"prompt": "prompt"}
    return {
        "output_dir": str(folder / "run"),
        "seed": 42,
        "max_new_tokens": 32,
        "prompts": [
            {
                "path": str(data / "instruction_alpaca_eval_answers.jsonl.gz"),
                "dataset": "alpaca_eval",
                "domain": "instruction",
                "limit": prompts,
                "columns": columns,
            },
            {
                "path": str(answers / "questions.jsonl"),
                "dataset": "gsm8k_test",
                "domain": "math",
                "limit": prompts,
                "columns": {**columns, "answer": "answer"},
            },
            {
                "path": str(data / "math_gsm8k_train.jsonl.gz"),
                "dataset": "gsm8k",
                "domain": "math",
                "limit": prompts,
                "adapter": "openai/gsm8k",
            },
            {
                "path": str(data / "code_leetcode_train.jsonl.gz"),
                "dataset": "LeetCodeDataset",
                "domain": "code",
                "limit": prompts,
                "adapter": "newfacade/LeetCodeDataset",
            },
        ],
        "overlap": {"near_duplicates": 0.8},
        "sources": [
            {
                "name": name,
                "model": str(model),
                "temperature": temperature,
                "server": {"url": url, "served_as": "tiny", "concurrency": 16},
            }
            for name, temperature in (("warm", 0.8), ("hot", 1.2))
        ],
        "given": [
            {
                "name": f"given-{domain}",
                "model": "as given",
                "path": str(answers / f"{domain}.jsonl"),
                "prompt": "prompt",
                "answer": "answer",
                "domains": [domain],
            }
            for domain in ("instruction", "math", "code")
        ],
        "sampler": {"backend": "openai", "dtype": "float32"},
        "samples_per_prompt": {"instruction": 2, "math": 2, "code": 2},
        "scorers": {
            domain: {"reward": {"model": str(reward), "dtype": "float32"}} for domain in ("instruction", "math", "code")
        },
        # A random model's rewards have no scale, so any margin will do.
        "selection": {domain: {"min_margin": 0.0, "max_margin": None} for domain in ("instruction", "math", "code")},
    }


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path) as lines:
        yield from map(json.loads, lines)


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@contextmanager
def served(python: str, model: Path, log: Path) -> Iterator[str]:
    """The URL of a vLLM server in its own environment, as its tests start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", "16384",
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            deadline = time.monotonic() + 300
            while True:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def killed(command: list[str], folder: Path, compared: Sequence[str], kills: int, generator: random.Random) -> bool:
    """Whether a command that is killed again and again writes what it writes unbroken.

    Args:
      command: of `python -m data_pipeline`, which writes into `folder/run`.
      folder: for what both write, and their logs.
      compared: patterns of the files that must be equal.
      kills: how many, each after a random time.
      generator: of these times.
    """
    begun = time.perf_counter()
    finish(command, folder / "unbroken.log")
    seconds = time.perf_counter() - begun
    print((folder / "unbroken.log").read_text())
    # The same place for both: it is part of what is written.
    (folder / "run").rename(folder / "unbroken")
    done = 0
    while done < kills:
        delay = generator.uniform(0, seconds / 2)
        place = killed_after(delay, command, folder / "broken.log")
        if place is None:
            shutil.rmtree(folder / "run")
            continue
        done += 1
        print(f"kill {done:>2} after {delay:6.1f} s: {place}", flush=True)
    finish(command, folder / "last.log")
    found, expected = (digests(folder / name, compared) for name in ("run", "unbroken"))
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    print(
        f"\n{len(found)} files {'DIFFER: ' + ', '.join(differing) if differing else 'equal'}; unbroken {seconds:.0f} s"
    )
    return bool(found) and not differing


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as output:
        whole = [sys.executable, "-m", "data_pipeline", *command]
        return subprocess.Popen(whole, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def finish(command: list[str], log: Path) -> None:
    if start(command, log).wait():
        raise SystemExit(log.read_text()[-4000:])


def killed_after(seconds: float, command: list[str], log: Path) -> str | None:
    """What it had said last when the kill came; None if it came too late."""
    process = start(command, log)
    try:
        if process.wait(seconds):
            raise SystemExit(log.read_text()[-4000:])
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    lines = log.read_text().split("\n")
    return next((line[:90] for line in reversed(lines) if line.strip()), "before it said anything")


def digests(folder: Path, compared: Sequence[str]) -> dict[str, str]:
    files = sorted(file for pattern in compared for file in folder.glob(pattern) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":
    main()
