"""The numbers that FuseChat-3.0 published, and what must be the same for ours to be comparable.

`published.json` holds the tables of `SLIT-AI/FuseChat-3.0` 5af2bad (README.md, 2025-04-18; two decimals of MT-Bench and
AlignBench from bb38687), with the leaderboards' digits of AlpacaEval-2 for the final models (`tatsu-lab/alpaca_eval`
cd543a1), and AlpacaEval's raw win rates and Arena-Hard's style-controlled ones from the model cards (f7f7602).
"""

import json
import math
from pathlib import Path

from data_pipeline.benchmarks.benchmark import Profile

NUMBERS: dict[str, dict[str, float]] = json.loads(Path(__file__).with_name("published.json").read_text())
"""Model -> row -> number, in percent, or of 10."""
MODELS = tuple(NUMBERS)
JUDGES = {
    "alpacaeval2": "gpt-4-1106-preview",
    "arena_hard": "gpt-4-1106-preview",
    "mt_bench": "gpt-4-0125-preview",
    "alignbench": "gpt-4",
}
"""Benchmark -> the judge of its published numbers. None of them is served any more."""
UNKNOWN = {
    "mmlu_redux": "which questions the published row has is not published; its scripts evaluate all of MMLU",
    "mmlu": "the published row is called MMLU-Redux, for the 1B models MMLU",
    **dict.fromkeys(("livecodebench", "livecodebench_v4"), "which problems the published row has is not published"),
    "math": "published answers are compared by another grader",
    "gsm8k": "published answers are compared by another grader",
    "amc23": "published answers are compared by another grader",
    **dict.fromkeys(("humaneval", "mbpp"), "published programs are cut out and timed by EvalPlus"),
}
"""Benchmark -> why its published number may be of something else."""
ITEMS = {
    "alpacaeval2": 805, "arena_hard": 500, "mt_bench": 80, "alignbench": 683, "gsm8k": 1319, "math": 5000, "amc23": 40,
    "mmlu_pro": 12_032, "mmlu_redux": None, "mmlu": 14_042, "gpqa": 198, "humaneval": 164, "mbpp": 378,
    "livecodebench": None, "livecodebench_v4": None,
}  # fmt: skip
"""Benchmark -> how many items its published number is of; None where that is not known."""


def number(model: str, row: str) -> float | None:
    """What is published of a model; None if it is not. There is one row of MMLU, under either name."""
    names = ("mmlu", "mmlu_redux") if row in ("mmlu", "mmlu_redux") else (row,)
    return next((NUMBERS[model][name] for name in names if name in NUMBERS[model]), None)


def caveats(benchmark: str, profile: Profile, judge: str | None, items: int) -> list[str]:
    """Why a number of ours and the published one are not of the same thing; none if they are.

    Args:
      benchmark: its name.
      profile: with which the model was asked.
      judge: the model that judged, if one did.
      items: how many were asked.
    """
    found = []
    if benchmark in JUDGES and judge != JUDGES[benchmark]:
        found.append(f"judged by {judge}, published by {JUDGES[benchmark]}: no difference is shown between two judges")
    if benchmark in UNKNOWN:
        found.append(UNKNOWN[benchmark])
    if ITEMS.get(benchmark) is not None and items != ITEMS[benchmark]:
        found.append(f"of {items:,} items, published of {ITEMS[benchmark]:,}")
    if profile == "clean":
        found.append(
            "asked with the model's chat template, published with the scripts' own prompts (profile fusechat3)"
        )
    return found


def sampling_error(value: float, scale: float, items: int) -> float:
    """The standard error of a share of right answers, as published without one: binomial.

    >>> round(sampling_error(50.0, 100.0, 100), 2)
    5.0
    """
    share = min(max(value / scale, 0.0), 1.0)
    return scale * math.sqrt(share * (1 - share) / items)
