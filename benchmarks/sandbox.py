"""How fast and how right the sandbox for programs judges.

    python benchmarks/sandbox.py [code_leetcode_train.jsonl.gz] [--unsafe] [--survivors FILE]

Without a file: runs a minute of a program that does next to nothing. The file is a slice of newfacade/LeetCodeDataset:
problems with a reference solution and about a hundred assertions each. Then also how many solutions pass, and how many
mutants of solutions that passed fail: each has one operator, constant, comparison, condition or statement changed.
Mutants that pass are written to `--survivors` as differences, to be read: a mutant may mean the same as the original.
"""

import argparse
import ast
import collections
import copy
import difflib
import gzip
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.config import ScorerConfig
from data_pipeline.scorers.base import Item, Score
from data_pipeline.scorers.code import CodeScorer

COMPARISONS = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--unsafe", action="store_true", help="run even where no sandbox holds")
    parser.add_argument("--timeout", type=float, default=10, help="CPU seconds a program (default 10)")
    parser.add_argument("--survivors", type=Path, help="where to write the mutants that pass")
    parser.add_argument("--rows", type=int, help="only the first so many problems")
    options = parser.parse_args()
    config = ScorerConfig(correctness="code", timeout_seconds=options.timeout)
    scorer = CodeScorer(config, os.cpu_count(), allow_unsafe=options.unsafe)
    print(f"sandbox: {scorer.sandbox}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} before")
    programs = [f"def f(x):\n    return x + {number}\n" for number in range(2000)]
    judge("trivial", scorer, [item(["assert f(0) >= 0"], program) for program in programs])
    if options.file is None:
        return
    with gzip.open(options.file) as lines:
        rows = [json.loads(line) for line in lines][: options.rows]
    scores = judge("reference", scorer, [item(tests(row), row["completion"]) for row in rows])
    for row, score in zip(rows, scores, strict=True):
        if score.verdict != "correct":
            print(f"    {row['task_id']}: {score.verdict}: {score.detail}")
    passed = [row for row, score in zip(rows, scores, strict=True) if score.verdict == "correct"]
    mutants = [(row, mutant) for row in passed if (mutant := mutate(row["completion"], row["task_id"]))]
    scores = judge("mutants", scorer, [item(tests(row), mutant) for row, mutant in mutants])
    if options.survivors:
        with options.survivors.open("w") as out:
            for (row, mutant), score in zip(mutants, scores, strict=True):
                if score.verdict != "wrong":
                    original = ast.unparse(ast.parse(row["completion"])).splitlines()
                    changes = "\n".join(difflib.unified_diff(original, mutant.splitlines(), n=30, lineterm=""))
                    out.write(f"## {row['task_id']}: {score.verdict}: {score.detail}\n{changes}\n\n")


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


def mutate(program: str, seed: str) -> str | None:
    """The program with one change; None where there is nothing to change."""
    tree = ast.parse(program)
    places = list(_places(tree))
    if not places:
        return None
    change = random.Random(seed).choice(places)
    changed = copy.deepcopy(tree)
    _apply(list(ast.walk(changed))[change[0]], change[1])
    return ast.unparse(ast.fix_missing_locations(changed))


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
