"""How fast and how right the sandbox for programs judges.

    python benchmarks/sandbox.py [code_leetcode_train.jsonl.gz] [--unsafe] [--survivors FILE]

Without a file: runs a minute of a program that does next to nothing, and tests a minute of a script that reads standard
input, with NumPy and all that benchmarks may import. The file is a slice of newfacade/LeetCodeDataset:
problems with a reference solution and a few assertions each. Then also how many solutions pass, and of those that do

- spoiled: what the solution returns is always another value of the same type: wrong at first sight;
- mutants: one operator, number, comparison, condition or returned value is changed somewhere. Such a change may mean
  the same, or only matter for arguments that the assertions do not have; so those that pass here run again in plain
  Python, where nothing keeps them from their tests. They pass there, too, or the sandbox erred.

What passes is written to `--survivors` as differences, to be read.

Measured on 2 cores with other work on them (load 6):

    bubblewrap                   runs a minute   correct   wrong   unknown
    trivial                             15,110      2000       0         0
    reference, 1,000 solutions           4,502       995       1         4
    spoiled                              5,157         1     994         0
    mutants                                482       141     854         0

Scripts, with NumPy loaded: 23,060 tests a minute at load 4, when the trivial programs were at 11,073.

The four unknown import a package that is not Python's own (sortedcontainers); the wrong one, word-ladder-ii, lists what
a set holds in the order of its hashes, and fails in plain Python for half of the seeds. The spoiled one that passes
calls itself, so that its negations cancel out. It and all 141 mutants that pass do so in plain Python, too: they mean
the same (a larger table), or the two or three assertions of the problem do not tell. Mutants take their time because
some loop until a limit ends them.
"""

import argparse
import ast
import collections
import contextlib
import difflib
import gzip
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.code.imports import BENCHMARK_IMPORTS, preloaded
from data_pipeline.scoring.code.scorer import CodeScorer
from data_pipeline.scoring.sandbox.judge import Case, Limits, Sandbox, Script, strongest
from data_pipeline.scoring.scorer import Item, Score

COMPARISONS = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip

PRINTS_A_SUM = "n = int(input())\nprint(sum(map(int, input().split())))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--unsafe", action="store_true", help="run even where no sandbox holds")
    parser.add_argument("--timeout", type=float, default=5, help="CPU seconds a program (default 5)")
    parser.add_argument("--survivors", type=Path, help="where to write the mutants that pass")
    parser.add_argument("--rows", type=int, help="only the first so many problems")
    options = parser.parse_args()
    config = VerifierLimits(timeout_seconds=options.timeout)
    scorer = CodeScorer(config, os.cpu_count(), allow_unsafe=options.unsafe)
    print(f"sandbox: {scorer.sandbox}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} before")
    programs = [f"def f(x):\n    return x + {number}\n" for number in range(2000)]
    judge("trivial", scorer, [item(["assert f(0) >= 0"], program) for program in programs])
    print_sums(Limits(options.timeout, config.memory_mb), options.unsafe)
    if options.file is None:
        return
    with gzip.open(options.file) as lines:
        rows = [json.loads(line) for line in lines][: options.rows]
    scores = judge("reference", scorer, [item(tests(row), row["completion"]) for row in rows])
    for row, score in zip(rows, scores, strict=True):
        if score.verdict != "correct":
            print(f"    {row['task_id']}: {score.verdict}: {score.detail}")
    passed = [row for row, score in zip(rows, scores, strict=True) if score.verdict == "correct"]
    differences: list[str] = []
    for name, change in (("spoiled", spoil), ("mutants", mutate)):
        changed = [(row, text) for row in passed if (text := change(row))]
        scores = judge(name, scorer, [item(tests(row), text) for row, text in changed])
        kept = [(*pair, score) for pair, score in zip(changed, scores, strict=True) if score.verdict != "wrong"]
        plain = [passes_plainly(row, text, options.timeout) for row, text, _ in kept]
        erred = plain.count(False)
        print(f"    {len(kept)} not judged wrong: {len(kept) - erred} pass in plain Python, too; {erred} fail there")
        for (row, text, score), passes in zip(kept, plain, strict=True):
            original = ast.unparse(ast.parse(row["completion"])).splitlines()
            difference = "\n".join(difflib.unified_diff(original, text.splitlines(), n=30, lineterm=""))
            title = f"{name} {row['task_id']}: {score.verdict}: {score.detail}; passes in plain Python: {passes}"
            differences.append(f"## {title}\n{difference}\n")
    if options.survivors:
        options.survivors.write_text("\n".join(differences))


def tests(row: dict[str, Any]) -> list[str]:
    return [row["prompt"], row["test"], f"check({row['entry_point']})"]


def item(tests: list[str], program: str) -> Item:
    return Item({"tests": tests}, f"```python\n{program}\n```")


def judge(name: str, scorer: CodeScorer, items: list[Item]) -> list[Score]:
    started = time.monotonic()
    scores = scorer.score(items)
    seconds = time.monotonic() - started
    verdicts = collections.Counter(score.verdict for score in scores)
    shares = ", ".join(f"{verdict} {count} ({count / len(items):.1%})" for verdict, count in verdicts.most_common())
    print(f"{name}: {len(items)} runs, {len(items) / seconds * 60:,.0f} a minute: {shares}", flush=True)
    return scores


def print_sums(limits: Limits, allow_unsafe: bool) -> None:
    """Scripts of 20 tests each, as benchmarks run them."""
    script = Script("", PRINTS_A_SUM, tuple(Case(f"2\n{n} 1\n", f"{n + 1}\n") for n in range(20)))
    workers = os.cpu_count() or 1
    with (
        Sandbox(
            limits, preloaded(BENCHMARK_IMPORTS), workers=workers, tier=strongest(allow_unsafe=allow_unsafe)
        ) as sandbox,
        ThreadPoolExecutor(workers) as threads,
    ):
        sandbox.run_script(script)
        started = time.monotonic()
        verdicts = collections.Counter(outcome.verdict for outcome in threads.map(sandbox.run_script, [script] * 200))
        seconds = time.monotonic() - started
    print(f"scripts: 200 of 20 tests, {200 * 20 / seconds * 60:,.0f} tests a minute: {dict(verdicts)}", flush=True)


def passes_plainly(row: dict[str, Any], program: str, seconds: float) -> bool:
    """Whether program and tests run through in a Python of their own, without a sandbox."""
    text = "\n".join([row["prompt"], program, *tests(row)[1:]])
    with contextlib.suppress(subprocess.TimeoutExpired):
        command = [sys.executable, "-s", "-P", "-c", text]
        environment = {"PYTHONHASHSEED": "0"}
        return not subprocess.run(command, timeout=seconds, env=environment, capture_output=True).returncode
    return False


_SPOILED = """
    def {name}(self, *arguments, **named):
        def other(value):
            match value:
                case bool(): return not value
                case int() | float(): return value + 1
                case str(): return value + "x"
                case list(): return value[:-1] if value else [0]
                case None: return 0
            return None
        return other(self.original_{name}(*arguments, **named))
"""


def spoil(row: dict[str, Any]) -> str | None:
    """The solution with another result; None where it returns none, but changes its argument."""
    name = row["entry_point"].rpartition(".")[2]
    (solution,) = [node for node in ast.parse(row["completion"]).body if getattr(node, "name", "") == "Solution"]
    method = next(node for node in solution.body if getattr(node, "name", "") == name)
    if not any(isinstance(node, ast.Return) and node.value for node in ast.walk(method)):
        return None
    renamed = re.sub(rf"\bdef {name}\b", f"def original_{name}", row["completion"])
    return renamed.rstrip() + "\n" + _SPOILED.format(name=name)


def mutate(row: dict[str, Any]) -> str | None:
    """The solution with one change; None where there is nothing to change."""
    tree = ast.parse(row["completion"])
    if not (places := list(_places(tree))):
        return None
    index, change = random.Random(row["task_id"]).choice(places)
    _apply(list(ast.walk(tree))[index], change)
    return ast.unparse(ast.fix_missing_locations(tree))


def _places(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(index of a node in `ast.walk`, what to do to it)."""
    annotations = {
        id(part)
        for node in ast.walk(tree)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
        for part in ast.walk(annotation)
    }
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in annotations:
            continue
        match node:
            case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
                yield index, "compare"
            case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in OPERATORS:
                yield index, "operate"
            case ast.Constant(value=int(value)) if type(value) is int:
                yield index, "constant"
            case ast.BoolOp():
                yield index, "bool"
            case ast.If() | ast.While() | ast.IfExp():
                yield index, "negate"
            case ast.Return(value=ast.expr()):
                yield index, "return"


def _apply(node: ast.AST, change: str) -> None:
    match change, node:
        case "compare", ast.Compare():
            node.ops[0] = COMPARISONS[type(node.ops[0])]()
        case "operate", ast.BinOp() | ast.AugAssign():
            node.op = OPERATORS[type(node.op)]()
        case "constant", ast.Constant():
            node.value += 1
        case "bool", ast.BoolOp():
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case "negate", ast.If() | ast.While() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case "return", ast.Return():
            node.value = ast.Constant(None)


if __name__ == "__main__":
    main()
