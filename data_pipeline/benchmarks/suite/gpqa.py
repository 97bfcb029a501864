"""GPQA-Diamond: 198 questions of biology, physics and chemistry with four options (Rein et al., 2023).

FuseChat-3.0's scripts have the options in an order that was drawn once, in a file of theirs: a file with `options` and
`answer` keeps its order in the profile `fusechat3`. The Hub's rows name the right option and three others. For them,
and in the profile `clean` always, the order is that of the hashes of question and option: the same on every machine,
whatever file it is. Its authors ask that no question be shown where crawlers find it.
"""

import hashlib
from collections.abc import Mapping, Sequence

from data_pipeline.benchmarks.benchmark import DataFile, Item, Profile, Row
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.choices import Choices

_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


class GPQA(Choices):
    name, title, published = "gpqa", "GPQA-Diamond", "gpqa_diamond"
    files: Mapping[str, DataFile] = {
        "gpqa": DataFile(
            "Idavidrein/gpqa",
            "gpqa_diamond",
            split="train",
            bring="gpqa_diamond.csv, or log in to the Hub once its authors granted access",
        )
    }

    def item(self, row: Row, where: str, identity: str) -> Item:
        if "Correct Answer" in row:
            options = [columns.text(row, where, name).strip() for name in ("Correct Answer", *_WRONG)]
            question = columns.text(row, where, "Question")
            shuffled = [options[index] for index in by_hash(question, options)]
            right = shuffled.index(options[0])
            row = row | {"options": shuffled, "answer": right}
        return super().item(row, where, identity)

    def order(self, item: Item, profile: Profile) -> Sequence[int]:
        if profile == "fusechat3":
            return super().order(item, profile)
        return by_hash(item.fields["question"], item.fields["options"])


def by_hash(question: str, options: Sequence[str]) -> list[int]:
    """The options' places, sorted by SHA-256 of question and option.

    >>> by_hash("1 + 1?", ["1", "2", "3"])
    [1, 0, 2]
    """
    hashes = [hashlib.sha256(f"{question.strip()}\n{option.strip()}".encode()).digest() for option in options]
    return sorted(range(len(options)), key=lambda index: hashes[index])
