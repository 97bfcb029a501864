"""How many examples FuseChat-3.0 made from which data set, as its authors published it: reports compare with this."""

from collections.abc import Iterable
from dataclasses import dataclass

from data_pipeline.config import PromptsConfig


@dataclass(frozen=True)
class Counts:
    """Examples that were made of a data set's prompts."""

    sft: int
    dpo: int

    @property
    def total(self) -> int:
        return self.sft + self.dpo


RECIPE = {
    "openbmb/UltraFeedback": Counts(20_439, 30_659),
    "Magpie-Align/Magpie-Pro-DPO-100K-v0.1": Counts(8_149, 12_225),
    "nvidia/HelpSteer2": Counts(3_774, 5_661),
    "nvidia/OpenMathInstruct-2": Counts(40_188, 11_615),
    "greengerong/leetcode": Counts(1_877, 1_236),
    "bigcode/self-oss-instruct-sc2-exec-filter-50k": Counts(10_160, 2_732),
    "llamafactory/alpaca_gpt4_zh": Counts(2_471, 0),
    "Magpie-Align/Magpie-Qwen2-Pro-200K-Chinese": Counts(7_481, 0),
}
"""By Hub id. From the README of `SLIT-AI/FuseChat-3.0`, as of February 2025."""


def published(entries: Iterable[PromptsConfig]) -> dict[str, Counts]:
    """Name of a data set in the config -> what the recipe made of it; data sets outside the recipe are left out.

    A data set is recognised by its Hub id: the path, the adapter, or the name itself.
    """
    found = {entry.dataset: (entry.path, entry.adapter, entry.dataset) for entry in entries}
    return {name: RECIPE[known] for name, ids in found.items() for known in ids if known in RECIPE}
