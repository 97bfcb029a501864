"""How far the mathematics verifier agrees with the labels of people who looked.

    python benchmarks/gsm8k_agreement.py math_gsm8k_model_solutions.jsonl.gz

The file is `example_model_solutions.jsonl` of openai/grade-school-math: 659 problems with the answers of four models,
2,636 in all, each labelled `is_correct` by its authors. Each answer is judged as it stands, and again with its final
answer written in other usual ways; plain Math-Verify (label first, as its README has it) stands beside.

Measured with Math-Verify 0.9.0; an unknown verdict counts as "not correct":

    how the answer ends            agreement    share  unknown  Math-Verify
    as it stands (`A: 18`)        2636/2636  100.00%        8      100.00%
    `\\boxed{18}`                  2636/2636  100.00%        8      100.00%
    `#### 18`                     2636/2636  100.00%        8      100.00%
    `The answer is $18.`          2636/2636  100.00%        8      100.00%

There is no disagreement to explain: the unknown ones, all labelled wrong, may be roundings of the label. These answers
are numbers with a marker, where plain Math-Verify errs as little; it is on the answers in
`tests/data_pipeline/test_math_scorer.py` (other notations, tiny and huge numbers, words) that the two part.
"""

import argparse
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import math_verify

from data_pipeline.config import ScorerConfig
from data_pipeline.scorers.base import Item
from data_pipeline.scorers.math import MathScorer

ENDINGS: dict[str, Callable[[str], str]] = {
    "as it stands (`A: 18`)": lambda answer: f"A: {answer}",
    r"`\boxed{18}`": lambda answer: rf"So it is \boxed{{{answer}}}.",
    "`#### 18`": lambda answer: f"#### {answer}",
    "`The answer is $18.`": lambda answer: f"The answer is ${answer}.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    rows = list(read(parser.parse_args().file))
    print(f"{'how the answer ends':<28}{'agreement':>12}{'share':>9}{'unknown':>9}{'Math-Verify':>13}")
    for name, ending in ENDINGS.items():
        texts = [rewrite(text, ending) for _, text, _ in rows]
        items = [Item({"answer": gold}, text) for (gold, _, _), text in zip(rows, texts, strict=True)]
        scores = MathScorer(ScorerConfig(correctness="math_verify"), workers=None).score(items)
        verdicts = [score.verdict for score in scores]
        agreed = sum((v == "correct") == label for v, (_, _, label) in zip(verdicts, rows, strict=True))
        plain = sum(plainly(gold, text) == label for (gold, _, label), text in zip(rows, texts, strict=True))
        print(
            f"{name:<28}{agreed:>6}/{len(rows)}{agreed / len(rows):>9.2%}{verdicts.count('unknown'):>9}"
            f"{plain / len(rows):>13.2%}"
        )
        for score, (gold, _, label), text in zip(scores, rows, texts, strict=True):
            if (score.verdict == "correct") != label:
                print(f"  labelled {label}, judged {score}: label ends {gold[-40:]!r}, answer ends {text[-80:]!r}")


def read(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(reference solution, answer, label) of every answer in the file."""
    with gzip.open(path) as lines:
        for line in lines:
            problem = json.loads(line)
            for solution in problem.values():
                if isinstance(solution, dict):
                    yield problem["ground_truth"], solution["solution"], solution["is_correct"]


def rewrite(text: str, ending: Callable[[str], str]) -> str:
    """The solution with another form of its line `A: ...`."""
    return re.sub(r"^A:\s*(.*?)\s*$", lambda match: ending(match[1]), text, flags=re.MULTILINE)


def plainly(gold: str, text: str) -> bool:
    """Math-Verify on the label's final number and the whole text."""
    label = gold.rpartition("A:")[2].strip()
    return math_verify.verify(math_verify.parse(f"${label}$"), math_verify.parse(text))


if __name__ == "__main__":
    main()
