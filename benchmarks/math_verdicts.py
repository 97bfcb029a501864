"""How far the mathematics verifier agrees with the labels of people who looked, and how fast it is.

    python benchmarks/math_verdicts.py math_gsm8k_model_solutions.jsonl.gz

The file is `example_model_solutions.jsonl` of openai/grade-school-math: 659 problems with the answers of four models,
2,636 in all, each labelled `is_correct` by its authors. Each answer is judged as it stands, and again with its final
answer written in other usual ways. The last way hides label and answer in square roots, so that every pair that is not
the same text goes through a worker process. Plain Math-Verify (label first, as its README has it) stands beside.

Measured with Math-Verify 0.9.0 on two cores that other programs used as well, so that the speeds tell something only
beside each other; an unknown verdict counts as "not correct":

    how the answer ends           agreement    share  unknown  answers/s  Math-Verify  answers/s
    as it stands (`A: 18`)        2636/2636  100.00%        7      8,482      100.00%        572
    `\\boxed{18}`                  2636/2636  100.00%        7     10,353      100.00%        710
    `#### 18`                     2636/2636  100.00%        7     13,350      100.00%        624
    `The answer is $18.`          2636/2636  100.00%        7      4,693      100.00%        858
    `\\boxed{\\sqrt{18}}`           2636/2636  100.00%       11        204       99.77%         90

There is no disagreement to explain: the unknown ones, all labelled wrong, may be roundings of the label. These answers
are numbers with a marker, where plain Math-Verify errs as little; it is on the answers in
`tests/data_pipeline/scoring/test_math_pairs.py` (other notations, tiny and huge numbers, words) that the two part.
"""

import argparse
import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import math_verify

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.math.scorer import MathScorer
from data_pipeline.scoring.scorer import Item

ENDINGS: dict[str, Callable[[str], str]] = {
    "as it stands (`A: 18`)": lambda answer: f"A: {answer}",
    r"`\boxed{18}`": lambda answer: rf"So it is \boxed{{{answer}}}.",
    "`#### 18`": lambda answer: f"#### {answer}",
    "`The answer is $18.`": lambda answer: f"The answer is ${answer}.",
}
ROOTS = r"`\boxed{\sqrt{18}}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    rows = list(read(parser.parse_args().file))
    print(
        f"{'how the answer ends':<28}{'agreement':>11}{'share':>9}{'unknown':>9}{'answers/s':>11}{'Math-Verify':>13}"
        f"{'answers/s':>11}"
    )
    for name, ending in ENDINGS.items():
        judge(name, [(gold, rewrite(text, ending), label) for gold, text, label in rows])
    judge(ROOTS, [(hidden(gold), hidden(text), label) for gold, text, label in rows])


def judge(name: str, rows: list[tuple[str, str, bool]]) -> None:
    """Prints one line of the table, and the disagreements."""
    started = time.monotonic()
    items = [Item({"answer": gold}, text) for gold, text, _ in rows]
    scores = MathScorer(VerifierLimits(), workers=None).score(items)
    seconds = time.monotonic() - started
    verdicts = [score.verdict for score in scores]
    agreed = sum((verdict == "correct") == label for verdict, (*_, label) in zip(verdicts, rows, strict=True))
    started = time.monotonic()
    plain = sum(plainly(gold, text) == label for gold, text, label in rows)
    plain_seconds = time.monotonic() - started
    print(
        f"{name:<28}{agreed:>6}/{len(rows)}{agreed / len(rows):>9.2%}{verdicts.count('unknown'):>9}"
        f"{len(rows) / seconds:>11,.0f}{plain / len(rows):>13.2%}{len(rows) / plain_seconds:>11,.0f}",
        flush=True,
    )
    for score, (gold, text, label) in zip(scores, rows, strict=True):
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


def hidden(text: str) -> str:
    """The final answer alone, under a root; an answer that is no number stays as it is."""
    value = text.rpartition("A:")[2].strip()
    return rf"\boxed{{\sqrt{{{value}}}+1}}" if re.fullmatch(r"[\d.,]+", value) else rf"\boxed{{{value}}}"


def plainly(gold: str, text: str) -> bool:
    """Math-Verify on the label's final number and the whole text."""
    label = gold if "boxed" in gold else gold.rpartition("A:")[2].strip()
    return math_verify.verify(math_verify.parse(f"${label}$"), math_verify.parse(text))


if __name__ == "__main__":
    main()
