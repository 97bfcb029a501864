"""A benchmark in two turns, small and whole: sums, and then whether the model is sure."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from data_pipeline.benchmarks.benchmark import (
    Answer,
    Asked,
    DataFile,
    Family,
    Grade,
    Item,
    Profile,
    Prompt,
    Row,
    Tools,
    weighted_mean,
)
from data_pipeline.sampling.sampler import Sampling


class Sums:
    name, title, scale, published, turns = "gsm8k", "Sums", 100.0, "gsm8k", 2
    files: Mapping[str, DataFile] = {"sums": DataFile("nobody/sums", bring="sums of your own")}

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        return [Item(f"{row['a']}+{row['b']}", row, text=f"{row['a']} + {row['b']}") for row in rows["sums"]]

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked:
        """Warmer for larger numbers, so that one batch has several temperatures."""
        return Asked(Sampling(temperature=0.0 if item.fields["a"] < 3 else 1.0), 6, samples=2)

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        turns = ({"role": "user", "content": f"{item.fields['a']} + {item.fields['b']}"},)
        if not earlier:
            return Prompt(turns, prefix="It is")
        return Prompt(
            (*turns, {"role": "assistant", "content": f"It is{earlier[0]}"}, {"role": "user", "content": "sure"})
        )

    def grade(self, answers: Sequence[Answer], profile: Profile, tools: Tools) -> list[Grade]:
        """Right where the first answer is longer than the second: something that a random model varies in."""
        return [Grade(float(len(first) > len(second)), first) for first, second in (each.texts for each in answers)]

    def score(self, rows: pl.DataFrame, weights: np.ndarray) -> float:
        return 100 * weighted_mean(rows["score"].to_numpy(), weights)
