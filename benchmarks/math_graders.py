"""Where the mathematics verifier and the grader of Qwen2.5-Math part, and who is right.

    git clone https://github.com/QwenLM/Qwen2.5-Math
    python -m venv qwen && qwen/bin/pip install sympy==1.12 latex2sympy2==1.9.0 word2number regex numpy
    python -m benchmarks.math_graders Qwen2.5-Math --python qwen/bin/python \\
        --gsm8k gsm8k/test.jsonl --amc23 amc23/test.jsonl

FuseChat-3.0's numbers for GSM8K, MATH and AMC 23 are that grader's, so ours cannot be the same by construction. This
writes the labels of both data files in many ways, right and wrong ones, adds pairs of formulas as MATH has them, and
asks both. What is right is known, since it was written so; where a person may say either (18 % for 18), it is "either".
Each line is one way of writing: how many answers each grader takes for correct, how many ours calls unknown (wrong in a
benchmark, and counted), and an example wherever the two part. Qwen's grader runs with its own interpreter, since its
packages and ours exclude each other, and gets three seconds an answer, as in its own `evaluate.py`.

Measured with AMC 23's 40 labels, the first 100 of GSM8K, and 73 pairs of formulas; the lines on which they part:

                                      truth    answers  Qwen  ours  unknown
    The answer is, bold               right        140     0   140        0
    a sentence, and then its end      right        140     0   140        0
    one more (70001 for 70000)        wrong        140     3     0        0
    a hundred times (1800 for 18)     wrong        140   140     0        0
    a hundredth (0.18 for 18)         wrong        140   140     0        0
    a hundred times, no box           wrong        140   140     0        0
    percent (18% for 18)              either       140   140   137        3
    off by 5 in 100,000               wrong        140   140     0        0
    denied (`The answer is not 18.`)  wrong        140     0   140        0
    formulas                          right         45    35    45        0
    formulas                          wrong         21     8     0        5

Both take an answer that is taken back without another one (`another number last`, too). Of the formulas, Qwen's takes
(0,1) for [0,1], but no list in another order, `2, -2` for `\\pm 2`, nor a mixed number; what ours leaves unknown are
roundings (6.2832 for `2\\pi`). So on answers in a box, which the prompt asks for, ours is the stricter one where
numbers are wrong, and the more lenient one where formulas are right.
"""

import argparse
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from data_pipeline.benchmarks.benchmark import Answer, Tools
from data_pipeline.benchmarks.suite.amc23 import AMC23
from data_pipeline.benchmarks.suite.gsm8k import GSM8K
from data_pipeline.benchmarks.suite.math import MATH

Truth = Literal["right", "wrong", "either"]
WAYS: tuple[tuple[str, Truth, Callable[[float, str], str | None]], ...] = (
    ("boxed", "right", lambda _, text: rf"So the answer is \boxed{{{text}}}."),
    ("boxed, with thousands", "right", lambda n, _: rf"\boxed{{{n:,.0f}}}" if n >= 1000 and whole(n) else None),
    ("boxed, with decimals", "right", lambda n, _: rf"\boxed{{{n:.2f}}}" if whole(n) else None),
    ("boxed, in dollars", "right", lambda _, text: rf"\boxed{{\${text}}}"),
    ("boxed, with a unit", "right", lambda _, text: rf"\boxed{{{text} \text{{ apples}}}}"),
    ("boxed, in degrees", "right", lambda _, text: rf"\boxed{{{text}^\circ}}"),
    ("boxed, as x =", "right", lambda _, text: rf"\boxed{{x = {text}}}"),
    ("boxed fraction", "right", lambda n, _: rf"\boxed{{\frac{{{2 * n:.0f}}}{{2}}}}" if whole(n) else None),
    ("boxed division", "right", lambda n, _: rf"\boxed{{{2 * n:.0f}/2}}" if whole(n) else None),
    ("boxed root", "right", lambda n, _: rf"\boxed{{\sqrt{{{n * n:.0f}}}}}" if whole(n) and 0 <= n < 1e6 else None),
    ("boxed product", "right", lambda n, _: rf"\boxed{{2 \cdot {n / 2}}}" if whole(n) else None),
    ("boxed text", "right", lambda _, text: rf"\boxed{{\text{{{text}}}}}"),
    ("another box before", "right", lambda n, text: rf"First \boxed{{{n + 1:.0f}}}. Finally \boxed{{{text}}}."),
    ("numbers behind", "right", lambda n, text: rf"\boxed{{{text}}} is less than {n + 1:.0f}, as it must be."),
    ("####", "right", lambda _, text: f"#### {text}"),
    ("The answer is", "right", lambda _, text: f"The answer is {text}."),
    ("The answer is, bold", "right", lambda _, text: f"The answer is **{text}**."),
    ("Answer:", "right", lambda _, text: f"Answer: {text}"),
    ("a sentence, and then its end", "right", lambda _, text: f"The answer is {text}, as we have seen above."),
    ("the last number", "right", lambda n, text: f"We add {n - 1:.0f} and 1, and so there are {text}."),
    ("one more", "wrong", lambda n, _: rf"\boxed{{{n + 1:.0f}}}"),
    ("a hundred times", "wrong", lambda n, _: rf"\boxed{{{100 * n:.0f}}}"),
    ("a hundredth", "wrong", lambda n, _: rf"\boxed{{{n / 100:g}}}"),
    ("a hundred times, no box", "wrong", lambda n, _: f"The answer is {100 * n:.0f}."),
    ("percent", "either", lambda _, text: rf"\boxed{{{text}\%}}"),
    ("off by 5 in 100,000", "wrong", lambda n, _: rf"\boxed{{{n * 1.00005:.6f}}}"),
    ("off by 2 in 10,000", "wrong", lambda n, _: rf"\boxed{{{n * 1.0002:.6f}}}"),
    ("negated", "wrong", lambda _, text: rf"\boxed{{-{text}}}"),
    ("two values", "wrong", lambda n, text: rf"\boxed{{{text} \text{{ or }} {n + 1:.0f}}}"),
    ("two values, a comma", "wrong", lambda n, text: rf"\boxed{{{text}, {n + 1:.0f}}}"),
    ("taken back", "wrong", lambda n, text: rf"\boxed{{{text}}}. No, I forgot one: \boxed{{{n + 1:.0f}}}."),
    ("taken back, no box", "wrong", lambda n, text: rf"\boxed{{{text}}}. Wait, that is wrong, it is {n + 1:.0f}."),
    ("denied", "wrong", lambda _, text: f"The answer is not {text}."),
    ("another number last", "wrong", lambda n, text: f"There were {n + 1:.0f} at first, of {text}."),
    ("empty box", "wrong", lambda *_: r"The answer is \boxed{}."),
    ("nothing", "wrong", lambda *_: "I cannot tell."),
)
FORMULAS: tuple[tuple[str, str, Truth], ...] = (
    (r"\frac{1}{2}", r"\frac12", "right"), (r"\frac{1}{2}", "0.5", "right"), (r"\frac{1}{2}", "1/2", "right"),
    (r"\frac{1}{2}", r"\dfrac{2}{4}", "right"), (r"\frac{1}{2}", r"50\%", "either"), (r"\frac{1}{2}", "50", "wrong"),
    (r"\frac{1}{2}", "0.005", "wrong"), (r"\frac{1}{3}", "0.333", "wrong"), (r"\frac{1}{3}", "0.33333", "wrong"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", "right"), (r"11\sqrt{2}", r"\sqrt{242}", "right"),
    (r"11\sqrt{2}", "15.556", "wrong"), (r"2\pi", "6.2832", "wrong"), (r"2\pi", r"2\pi \text{ cm}", "right"),
    (r"2\pi", r"\pi + \pi", "right"), (r"10\text{ cm}", "10", "right"), ("10", r"10\text{ cm}^2", "right"),
    ("10", "10 cm", "right"), ("5", "x = 5", "right"), ("x = 5", "5", "right"), ("y = 2x + 1", "2x + 1", "either"),
    ("y = 2x + 1", "y - 2x - 1 = 0", "right"), ("(x+1)^2", "x^2 + 2x + 1", "right"), ("(x+1)^2", "x^2 + 1", "wrong"),
    ("x^2+2x+1", "1 + 2x + x^2", "right"), ("(0,1]", r"\left(0, 1\right]", "right"), ("(0,1]", "[0,1)", "wrong"),
    ("(0,1]", "(0,1)", "wrong"), ("[0,1]", "(0,1)", "wrong"), (r"(-\infty, 2)", r"x < 2", "right"),
    ("(1,2)", "(2,1)", "wrong"), ("(1,2)", r"\left(1, \frac{4}{2}\right)", "right"), ("1,2", "2,1", "right"),
    ("1,2", "1 \\text{ and } 2", "right"), ("1,2", r"\{1, 2\}", "either"), ("1, 2, 3", "1, 2", "wrong"),
    (r"\{1,2\}", r"\{2,1\}", "right"), (r"\text{(A)}", "A", "right"), (r"\text{(A)}", r"\text{A}", "right"),
    (r"\text{(A)}", "B", "wrong"), (r"\text{Tuesday}", "Tuesday", "right"), (r"\text{Tuesday}", "Monday", "wrong"),
    (r"\text{Yes}", "No", "wrong"), ("3+4i", "4i + 3", "right"), ("3+4i", "3-4i", "wrong"),
    ("10,000", "10000", "right"), ("10,000", "10{,}000", "right"), ("1.5", r"1\frac{1}{2}", "right"),
    ("101_2", "101", "either"), ("101_2", "5", "either"), (r"90^\circ", "90", "right"),
    (r"90^\circ", r"\frac{\pi}{2}", "either"), (r"\$5", "5", "right"), (r"\$5.50", "5.5", "right"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", "right"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", "wrong"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1, 2)", "either"), (r"2^{10}", "1024", "right"),
    (r"\binom{5}{2}", "10", "right"), ("5!", "120", "right"), (r"\log_2 8", "3", "right"), ("e^2", "7.389", "wrong"),
    (r"\sin 30^\circ", r"\frac{1}{2}", "right"), ("-1", "- 1", "right"), (r"\pm 2", "2, -2", "right"),
    (r"\pm 2", "2", "wrong"), (r"3 \pm \sqrt{2}", r"3+\sqrt{2}, 3-\sqrt{2}", "right"),
    (r"6 \times 10^3", "6000", "right"),
    (r"\frac{3}{4}", r"\frac{3}{5}", "wrong"), (r"\frac{x}{7}+\frac{2}{7}", r"\frac{x+2}{7}", "right"),
    (r"x \in [2, 3]", "[2, 3]", "right"), ("f(x) = x^2", "x^2", "right"), ("a + b", "a - b", "wrong"),
)  # fmt: skip
"""(label, what is boxed, whether it is right); of MATH's kind, written for this."""
_QWEN = """
import json, os, signal, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
os.chdir(sys.argv[1])
from grader import math_equal
from parser import extract_answer, parse_ground_truth
def late(*_):
    raise TimeoutError
signal.signal(signal.SIGALRM, late)
for line in sys.stdin:
    kind, row, text = json.loads(line)
    signal.alarm(3)
    try:
        verdict = math_equal(extract_answer(text, kind), parse_ground_truth(row, kind)[1])
    except TimeoutError:
        verdict = False
    finally:
        signal.alarm(0)
    print("verdict", int(verdict), flush=True)
"""


class Case(NamedTuple):
    way: str
    truth: Truth
    kind: str
    row: dict
    text: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of QwenLM/Qwen2.5-Math")
    parser.add_argument("--python", required=True, help="interpreter with what its grader needs")
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--amc23", type=Path, required=True)
    options = parser.parse_args()
    rows = {kind: [json.loads(line) for line in path.read_text().splitlines()] for kind, path in
            (("gsm8k", options.gsm8k), ("amc23", options.amc23))}  # fmt: skip
    cases = [*written(rows), *formulas()]
    theirs, ours = qwens(cases, options.python, options.checkout), verdicts(cases)
    print(f"{'':<34}{'truth':<8}{'answers':>8}{'Qwen':>6}{'ours':>6}{'unknown':>9}{'differ':>8}")
    for way in dict.fromkeys(case.way for case in cases):
        chosen = [index for index, case in enumerate(cases) if case.way == way]
        if cases[chosen[0]].kind == "math":
            continue
        line(way, cases[chosen[0]].truth, [theirs[index] for index in chosen], [ours[index] for index in chosen])
        for index in [index for index in chosen if theirs[index] != (ours[index][0] == "correct")][:1]:
            print(f"    {str(cases[index].row['answer'])[-12:]!r}: {cases[index].text!r}: ours {ours[index][1]}")
    for truth in ("right", "wrong", "either"):
        chosen = [index for index, case in enumerate(cases) if case.kind == "math" and case.truth == truth]
        line("formulas, boxed", truth, [theirs[index] for index in chosen], [ours[index] for index in chosen])
        for index in chosen:
            if theirs[index] != (ours[index][0] == "correct") or (truth != "either" and ours[index][0] == "unknown"):
                shown = "correct" if theirs[index] else "wrong"
                why = ": ".join(ours[index])
                print(f"    {cases[index].row['answer']}  |  {cases[index].way}: Qwen {shown}, ours {why}")


def whole(number: float) -> bool:
    return number == int(number)


def written(rows: dict[str, list[dict]]) -> Iterator[Case]:
    """Every label in every way in which it can be written."""
    for way, truth, write in WAYS:
        for kind, each in rows.items():
            for row in each:
                label = str(row["answer"]).rpartition("####")[2].strip().replace(",", "")
                number = float(label)
                text = write(number, f"{number:.0f}" if whole(number) else label)
                if text is not None:
                    yield Case(way, truth, kind, row, text)


def formulas() -> Iterator[Case]:
    for label, answer, truth in FORMULAS:
        row = {"problem": "q", "solution": rf"It is $\boxed{{{label}}}$.", "answer": label}
        yield Case(answer, truth, "math", row, rf"So the answer is $\boxed{{{answer}}}$.")


def qwens(cases: list[Case], python: str, checkout: Path) -> list[bool]:
    lines = "".join(json.dumps([case.kind, case.row, case.text]) + "\n" for case in cases)
    folder = str((checkout / "evaluation").absolute())
    done = subprocess.run([python, "-c", _QWEN, folder], input=lines, capture_output=True, text=True, check=True)
    return [line == "verdict 1" for line in done.stdout.splitlines() if line.startswith("verdict ")]


def verdicts(cases: list[Case]) -> list[tuple[str, str]]:
    """(verdict, why) of ours."""
    found: list[tuple[str, str]] = []
    for benchmark in (GSM8K(), AMC23(), MATH()):
        answers = [
            Answer(benchmark.items({benchmark.name: [case.row]})[0], 0, (case.text,), ("stop",), 0)
            for case in cases
            if case.kind == benchmark.name
        ]
        for grade in benchmark.grade(answers, "clean", Tools()):
            why = grade.detail or ""
            unknown = why.startswith("unknown")
            found.append(("unknown" if unknown else "correct" if grade.score else "wrong", why))
    order = [index for kind in ("gsm8k", "amc23", "math") for index, case in enumerate(cases) if case.kind == kind]
    return [verdict for _, verdict in sorted(zip(order, found, strict=True))]


def line(way: str, truth: str, theirs: list[bool], ours: list[tuple[str, str]]) -> None:
    correct = [verdict == "correct" for verdict, _ in ours]
    unknown = sum(verdict == "unknown" for verdict, _ in ours)
    differ = sum(one != other for one, other in zip(theirs, correct, strict=True))
    print(f"{way:<34}{truth:<8}{len(ours):>8}{sum(theirs):>6}{sum(correct):>6}{unknown:>9}{differ:>8}", flush=True)


if __name__ == "__main__":
    main()
