"""AlpacaEval 2: 805 instructions, answers compared with GPT-4 Turbo's by a judge that says one letter.

A judge sees the two answers in an order that is drawn once for each instruction, named m and M, and is asked for the
name of the better one. What counts is not the name but how likely it was: the preference is the probability of ours
among the two. Two numbers come of it: the win rate, which is the mean preference, and the length-controlled win rate
(length_control.py), which is the benchmark's.

The baseline's answers are at tatsu-lab/alpaca_eval on the Hub, and so are the comparisons of the baseline with itself
(`df_gamed.csv`) that length control needs; their licence is CC-BY-NC-4.0.
"""

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from data_pipeline.benchmarks.benchmark import (
    Answer,
    Asked,
    Call,
    DataFile,
    Family,
    Grade,
    Item,
    Profile,
    Prompt,
    Reply,
    Row,
    weighted_mean,
)
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.length_control import Compared, Gamed, length_controlled
from data_pipeline.benchmarks.suite.raw_prompts import one_turn
from data_pipeline.sampling.sampler import Sampling
from fusejax.common.cli import UserError

_BASELINE, _GAMED = "alpacaeval2", "alpacaeval2_gamed"
_BASELINES = ("gpt4_1106_preview_verbose", "gpt4_1106_preview_concise")
"""The baseline asked for longer and for shorter answers, in the order of `df_gamed.csv`."""

_SAMPLING: dict[Family, Sampling] = {
    "llama": Sampling(temperature=0.6, top_p=0.9),
    "qwen": Sampling(temperature=0.7, top_p=0.8, top_k=20),
    "gemma": Sampling(temperature=0.5),
    "other": Sampling(temperature=0.6, top_p=0.9),
}
"""FuseEval's. The penalties in its configurations (presence and frequency 0.1, repetition 1.05) are not read by the
code that it runs. Other families: Llama's."""

# The prompt of `alpaca_eval_clf_gpt4_turbo` (tatsu-lab/alpaca_eval cd543a1, Apache-2.0), word for word: another prompt
# is another judge.
_SYSTEM = (
    "You are a highly efficient assistant, who evaluates and selects the best large language model (LLMs) based on the "
    "quality of their responses to a given instruction. This process will be used to create a leaderboard reflecting "
    "the most accurate and human-preferred answers."
)
_USER = '''I require a leaderboard for various large language models. I'll provide you with prompts given to these models and their corresponding outputs. Your task is to assess these responses, and select the model that produces the best output from a human perspective.

## Instruction

{
    "instruction": """{instruction}""",
}

## Model Outputs

Here are the unordered outputs from the models. Each output is associated with a specific model, identified by a unique model identifier.

{
    {
        "model_identifier": "m",
        "output": """{output_1}"""
    },
    {
        "model_identifier": "M",
        "output": """{output_2}"""
    }
}

## Task

Evaluate the models based on the quality and relevance of their outputs, and select the model that generated the best output. Answer by providing the model identifier of the best model. We will use your output as the name of the best model, so make sure your output only contains one of the following model identifiers and nothing else (no quotes, no spaces, no new lines, ...): m or M.

## Best Model Identifier'''  # noqa: E501


class AlpacaEval2:
    name = "alpacaeval2"
    title = "AlpacaEval-2"
    scale = 100.0
    published = "alpacaeval2_lc"
    files: Mapping[str, DataFile] = {
        _BASELINE: DataFile(
            "tatsu-lab/alpaca_eval",
            file="alpaca_eval_gpt4_baseline.json",
            bring="instruction, output and dataset of the baseline: alpaca_eval_gpt4_baseline.json of "
            "tatsu-lab/alpaca_eval on the Hub",
        ),
        _GAMED: DataFile(
            "tatsu-lab/alpaca_eval", file="df_gamed.csv", bring="df_gamed.csv of tatsu-lab/alpaca_eval on the Hub"
        ),
    }
    turns = 1

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        """An item per row of the baseline; its id is the row's number, by which `df_gamed.csv` names instructions.

        Raises:
          UserError: a column is missing, or an instruction in `df_gamed.csv`.
        """
        gamed: dict[tuple[str, int], Row] = {}
        for place, row in enumerate(rows[_GAMED]):
            index = int(columns.number(row, columns.at(_GAMED, place), "index"))
            gamed.setdefault((columns.text(row, columns.at(_GAMED, place), "model"), index), row)
        items = []
        for place, row in enumerate(rows[_BASELINE]):
            pair = [gamed.get((model, place)) for model in _BASELINES]
            if any(each is None for each in pair):
                raise UserError(f"{_GAMED}: no row of {' and '.join(_BASELINES)} with index {place}")
            longer, shorter = (each for each in pair if each is not None)
            fields: Row = {
                "instruction": columns.text(row, columns.at(_BASELINE, place), "instruction"),
                "output": columns.text(row, columns.at(_BASELINE, place), "output"),
                "difficulty": columns.number(longer, columns.at(_GAMED, place), "instruction_difficulty"),
                "longer_preference": columns.number(longer, columns.at(_GAMED, place), "preference"),
                "longer_delta": columns.number(longer, columns.at(_GAMED, place), "std_delta_len"),
                "shorter_preference": columns.number(shorter, columns.at(_GAMED, place), "preference"),
                "shorter_delta": columns.number(shorter, columns.at(_GAMED, place), "std_delta_len"),
            }
            items.append(Item(f"{place:04d}", fields, text=fields["instruction"]))
        return items

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked:
        return Asked(_SAMPLING[family], max_tokens=4096)

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        return one_turn(item.fields["instruction"], family, profile)

    def calls(self, answer: Answer) -> list[Call]:
        """None for an answer that is the baseline's: there is no better one."""
        baseline, ours = answer.item.fields["output"], answer.texts[0]
        if baseline == ours:
            return []
        instruction = answer.item.fields["instruction"]
        first, second = (ours, baseline) if switched(instruction) else (baseline, ours)
        texts = {"{instruction}": instruction, "{output_1}": first, "{output_2}": second}
        # All at once: an answer may hold what looks like a place for another text.
        user = re.sub("|".join(map(re.escape, texts)), lambda found: texts[found[0]], _USER)
        turns = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": user})
        # As published. Where a server has no logprobs, a letter drawn at this temperature is right on average.
        return [Call("comparison", turns, max_tokens=1, temperature=1.0, top_logprobs=5)]

    def again(self, call: Call, replies: Sequence[Reply]) -> Call | None:
        return None

    def judged(self, answer: Answer, replies: Mapping[str, Sequence[Reply]]) -> Grade:
        """`score` is the preference from 0 to 1, higher for ours. Further columns: what length control needs, and
        `binarised`, 1 where a letter stands for its probability."""
        fields = answer.item.fields
        values: dict[str, float | None] = {
            "length": float(len(answer.texts[0])),
            "baseline_length": float(len(fields["output"])),
            **{name: fields[name] for name in _CONTROLS},
            "binarised": 0.0,
        }
        if not replies:
            return Grade(0.5, detail="same as the baseline", values=values)
        reply = replies["comparison"][-1]
        first, extracted = preferred_first(reply)
        if first is None:
            return Grade(None, detail=f"unanswered: {extracted}", values=values)
        values["binarised"] = float(reply.top is None)
        return Grade(first if switched(fields["instruction"]) else 1 - first, extracted, values=values)

    def score(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> float:
        """The length-controlled win rate in percent. Call `prepare` for many weights."""
        return self.prepare(rows)(weights)

    def prepare(self, rows: pl.DataFrame) -> Callable[[Float[np.ndarray, "N"]], float]:
        """The score of these rows as a function of weights: see `length_controlled`, which says what is fixed."""
        # Cross-validation deals rows into folds by their order: the baseline's.
        rows = rows.with_row_index("place").sort("id", "index", "place")
        order = rows["place"].to_numpy()
        gamed = rows.unique("id", keep="first", maintain_order=True)
        compared = Compared(*(_column(rows, name) for name in ("score", "length", "baseline_length", "difficulty")))
        preference, delta = (
            np.concatenate([_column(gamed, f"{which}_{name}") for which in ("longer", "shorter")])
            for name in ("preference", "delta")
        )
        fitted = length_controlled(compared, Gamed(preference, delta, np.tile(_column(gamed, "difficulty"), 2)))
        return lambda weights: fitted(weights[order])

    def details(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> dict[str, float]:
        """The win rate in percent, and the share of letters in place of probabilities, if there are any."""
        binarised = weighted_mean(_column(rows, "binarised"), weights)
        found = {"win rate": 100 * weighted_mean(_column(rows, "score"), weights)}
        return found | ({"binarised": binarised} if binarised else {})


_CONTROLS = ("difficulty", "longer_preference", "longer_delta", "shorter_preference", "shorter_delta")


def switched(instruction: str) -> bool:
    """Whether our answer comes first: the draw of `alpaca_eval`, by which its published judgments were made."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def preferred_first(reply: Reply) -> tuple[float | None, str]:
    """The probability that the first answer, m, is better, and the likeliest letter; None and why where there is none.

    >>> preferred_first(Reply("m", "stop", (("m", -1.0), ("M", -1.0), ("The", -1.5))))
    (0.5, 'm')
    >>> preferred_first(Reply(" M.", "stop"))
    (0.0, 'M')
    >>> preferred_first(Reply("", "error"))
    (None, 'error: ')
    """
    if reply.top is not None:
        likely = {name: math.exp(logprob) for name, logprob in reply.top if name in ("m", "M")}
        total = sum(likely.values())
        if not total:
            return None, f"neither m nor M is likely after {reply.text[:20]!r}"
        first = likely.get("m", 0.0) / total
        return first, "m" if first >= 0.5 else "M"
    letter = re.fullmatch(r"\W*([mM])\W*", reply.text)
    if reply.finish_reason == "error" or letter is None:
        return None, f"{reply.finish_reason}: {reply.text[:60]}"
    return float(letter[1] == "m"), letter[1]


def _column(rows: pl.DataFrame, name: str) -> Float[np.ndarray, "N"]:
    return rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
