"""What a benchmark run takes without its models: prompts built, tokenised, keyed, and answers graded.

    python -m benchmarks.benchmark_prompts DATA --model DIRECTORY

DATA holds the benchmarks' files, as `data_dir`; of those that are graded here without a judge and whose files are
there, rows are repeated until there are as many items as the benchmark has, each with a number before its question, so
that no two prompts are equal. Nor are two answers: a plain text that ends in another number and a letter, or in code.
The model's tokenizer alone is needed. Prints seconds and the peak of memory.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

from benchmarks.benchmark_kills import there
from benchmarks.process import about
from benchmarks.training.worker import peak_of_process
from data_pipeline.benchmarks import data, published
from data_pipeline.benchmarks.asking import Asker, Said
from data_pipeline.benchmarks.benchmark import Answer, Graded, Item
from data_pipeline.benchmarks.config import BenchmarkConfig
from data_pipeline.benchmarks.grading import graded
from data_pipeline.benchmarks.registry import BENCHMARKS, benchmark

ABOUT = {"mmlu_redux": 5300, "livecodebench": 450, "livecodebench_v4": 450}
"""Items of benchmarks whose published number is of an unknown set."""
ANSWER = "Adding both gives 3 + 4 = 7.\n\nThe best answer is A.\n\nSo it is $\\boxed{{\\frac{{{number}}}{{7}}}}$."
CODE = "    return {number}\n"
SCRIPT = "```python\nprint({number})\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    chosen = [benchmark(name) for name in BENCHMARKS if there(arguments.data, name)]
    chosen = [each for each in chosen if isinstance(each, Graded)]
    with tempfile.TemporaryDirectory() as folder:
        config = BenchmarkConfig.model_validate(
            {
                "output_dir": folder,
                "models": {"model": {"model": arguments.model}},
                "benchmarks": [each.name for each in chosen],
                "data_dir": str(arguments.data),
            }
        )
        started = time.perf_counter()
        asker = Asker(config, "model")
        total = 0
        for each in chosen:
            before = time.perf_counter()
            items = repeated(data.items(config, each), published.ITEMS[each.name] or ABOUT[each.name])
            total += len(items)
            questions = asker.questions(each, items)
            keys, _ = asker.requests(questions, [Said() for _ in questions], 0)
            built = time.perf_counter()
            text = CODE if each.name in ("humaneval", "mbpp") else SCRIPT if "livecode" in each.name else ANSWER
            answers = [
                Answer(question.item, question.index, (text.format(number=number),), ("stop",), 40)
                for number, question in enumerate(questions)
            ]
            rows = graded(config, each, "model", answers, data.sha256(items))
            now = time.perf_counter()
            print(
                f"{each.name}: {len(items):,} items, {len(set(keys)):,} keys in {built - before:.1f} s, "
                f"{len(rows):,} answers graded in {now - built:.1f} s",
                flush=True,
            )
        seconds, peak = time.perf_counter() - started, peak_of_process() / 2**20
        print(f"{total:,} items: {seconds:.0f} s, peak {peak:,.0f} MiB; {about('polars')}")


def repeated(items: list[Item], count: int) -> list[Item]:
    found = []
    for number in range(count):
        item = items[number % len(items)]
        fields = dict(item.fields)
        key = next((name for name in ("question", "question_content", "prompt") if name in fields), None)
        if key is not None:
            fields[key] = f"{number}. {fields[key]}" if key != "prompt" else f"# {number}\n{fields[key]}"
        found.append(dataclasses.replace(item, id=f"{item.id}-{number}", unit="", fields=fields))
    return found


if __name__ == "__main__":
    main()
