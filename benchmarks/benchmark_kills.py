"""`python -m data_pipeline benchmark` by a real vLLM as model and as judge, killed by SIGKILL again and again.

    python -m benchmarks.benchmark_kills DATA --vllm PYTHON --model DIRECTORY [--kills 10] [--limit 8] [--seed 0]

DATA holds the benchmarks' files, as `data_dir`; those whose files are there are run. vLLM serves the model, which
answers as two models, one of them against the other, and judges, too: a small model's verdicts are noise, but requests,
swaps, parse failures and resumption are real. Every graded table, results.json, table.md and report.html must be those
of an unbroken run, byte for byte. What a run had said last when it was killed is printed.
"""

import argparse
import random
import tempfile
from pathlib import Path

import yaml

from benchmarks.pipeline_kills import killed, served
from data_pipeline.benchmarks.registry import BENCHMARKS, benchmark
from fusejax.common.files import ROW_SUFFIXES

COMPARED = ("graded/*/*.parquet", "results.json", "table.md", "report.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--vllm", required=True, metavar="PYTHON")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--limit", type=int, default=8, help="items of each benchmark")
    parser.add_argument("--context", type=int, default=4096, help="tokens of prompt and answer together")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, served(arguments.vllm, arguments.model, Path(name) / "log") as url:
        folder = Path(name)
        server = {"url": url, "served_as": "tiny", "concurrency": 16}
        model = {"model": str(arguments.model), "max_model_len": arguments.context, "server": server}
        values = {
            "output_dir": str(folder / "run"),
            "models": {"first": {**model, "against": "second"}, "second": model},
            "sampler": {"backend": "openai", "dtype": "float32"},
            "benchmarks": [each for each in BENCHMARKS if there(arguments.data, each)],
            "limit": arguments.limit,
            "data_dir": str(arguments.data.absolute()),
            "judge": {"default": {"url": url, "model": "tiny", "concurrency": 16}},
            "bootstrap": 200,
        }
        config = folder / "bench.yaml"
        config.write_text(yaml.safe_dump(values, sort_keys=False))
        generator = random.Random(arguments.seed)
        raise SystemExit(
            not killed(["benchmark", "--config", str(config)], folder, COMPARED, arguments.kills, generator)
        )


def there(data: Path, name: str) -> bool:
    """Whether all files of a benchmark are in the folder."""
    return all(any((data / f"{file}{suffix}").exists() for suffix in ROW_SUFFIXES) for file in benchmark(name).files)


if __name__ == "__main__":
    main()
