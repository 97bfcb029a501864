"""The quickstart's stand-in for a reward model: a graded score of any reply, in the range of ArmoRM's.

Like a reward model it only grades; whether mathematics and code are right is for the verifiers to say. Scores lie
between 0.05 and 0.17, so that the recipe's margins of 0.01 to 0.1 mean something: one wrong fact costs 0.04, a broken
layout 0.02, and a reply that is wrong all over is further from a right one than the upper margin allows.
"""

import ast
import re
from typing import Any, Literal

Verdict = Literal["correct", "wrong"]

LOWEST = 0.05


def score(prompt: dict[str, Any], text: str) -> tuple[float, Verdict | None]:
    """Grades one reply.

    Args:
      prompt: a row of the data pipeline's `prompts.parquet`: `domain`, `messages`, `answer`.
      text: the reply.

    Returns:
      The reward, and for the domains of facts the verdict; None where a verifier gives it.
    """
    match prompt["domain"]:
        case "instruction" | "chinese":
            right = text.strip() == prompt["answer"]
            return _facts(prompt["answer"], text), "correct" if right else "wrong"
        case "math":
            return _mathematics(prompt["answer"], text), None
        case "code":
            return _code(prompt["messages"][-1]["content"], text), None
        case other:
            raise ValueError(f"no reward for the domain {other!r}")


def _facts(answer: str, text: str) -> float:
    """0.04 for each of the two facts in its place, 0.02 for the layout, 0.02 for a length like the answer's."""
    word = re.compile(r"[\u4e00-\u9fff]+|[A-Za-z]+")
    wanted, given = word.findall(answer), word.findall(text)
    facts = [index for index, fact in enumerate(wanted) if fact not in ("They", "are", "and")]
    hits = sum(given[index : index + 1] == [wanted[index]] for index in facts)
    layout = word.sub("x", text.strip()) == word.sub("x", answer)
    return LOWEST + 0.04 * hits + 0.02 * layout + 0.02 * (len(given) == len(wanted))


def _mathematics(answer: str, text: str) -> float:
    """0.05 for the right number in the box, 0.03 for true steps, 0.02 for showing two steps, 0.02 for a box."""
    boxed = re.findall(r"\\boxed\{(-?\d+)\}", text)
    steps = [tuple(map(int, numbers)) for numbers in re.findall(r"(\d+) \+ (\d+) = (\d+)", text)]
    steps += [(a, -b, c) for a, b, c in (map(int, numbers) for numbers in re.findall(r"(\d+) - (\d+) = (\d+)", text))]
    true = sum(a + b == c for a, b, c in steps)
    return (
        LOWEST
        + 0.05 * (boxed[-1:] == [answer])
        + 0.03 * (true / len(steps) if steps else 0)
        + 0.02 * (len(steps) == 2)
        + 0.02 * (len(boxed) == 1)
    )


def _code(request: str, text: str) -> float:
    """What can be seen without running it: fenced, parsed, one function of the wanted name, no longer than need be."""
    fenced = re.fullmatch(r"```python\n(.*)\n```", text.strip(), re.DOTALL)
    program = fenced.group(1) if fenced else text
    try:
        statements = ast.parse(program).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return LOWEST + 0.02 * bool(fenced)
    if not statements:
        return LOWEST
    wanted = re.search(r"`(\w+)\(", request)
    name = wanted.group(1) if wanted else None
    named = len(statements) == 1 and isinstance(statements[0], ast.FunctionDef) and statements[0].name == name
    return LOWEST + 0.02 * bool(fenced) + 0.02 + 0.06 * named + 0.02 * (named and len(program) < 100)
