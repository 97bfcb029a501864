"""Finds the program in an answer: in fenced blocks, closed or not, or in the text itself."""

import ast
import contextlib
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.scoring.code.code_tests import UNPARSABLE, bound_names, own_names

_FENCE = re.compile(r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
_LANGUAGE = re.compile(r"\{?\.?([\w+-]*)")
_DEFINES = re.compile(r"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+(\w+)[ \t]*[(:\[]", re.MULTILINE)
_SEEMS_TO_DEFINE = re.compile(r"^[^\n\w]*(?:async[ \t]+def|def|class)[ \t]+\w+[ \t]*[(:\[]", re.MULTILINE)
_CODE_LINE = re.compile(r"^([ \t]*)(?:import|from|async[ \t]+def|def|class|@)\b|^([ \t]*)@\w", re.MULTILINE)
_CONTINUES = re.compile(r"[ \t)\]}]|$|(?:else|elif|except|finally)\b")
_IMPORTS = (ast.Import, ast.ImportFrom)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_STATEMENTS = (*_IMPORTS, *_DEFINITIONS, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.For, ast.Try, ast.With)

_PROSE = 50
"""Most lines behind a block that was never closed."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    """As its fence says, in small letters; "" where it says none."""
    code: str

    @property
    def python(self) -> bool:
        return self.language.startswith(("py", "ipython"))


def find(text: str, wanted: Iterable[str] = ()) -> tuple[str | None, str | None]:
    """The program in an answer, and why it may not be the one that is meant (then no verdict stands); None for neither.

    Of Python's blocks (else those that name no language, else the text outside, else other blocks), the last that
    defines a wanted name, with the blocks that define what this one uses; else the last block that defines something;
    else the last block. A definition without a body (`pass`, `...`) counts only where there is no other.

    Args:
      text: the answer.
      wanted: names that the tests use.

    >>> find("```python\\ndef f():\\n    return 1\\n```\\nTest:\\n```python\\ndef test_f(): f()\\n```", ["f"])
    ('def f():\\n    return 1\\n', None)
    """
    found, outside = blocks(text)
    wanted = list(wanted)
    fallback: list[str] | None = None
    for tier in _tiers(found, outside):
        if chosen := _needed(tier, wanted):
            return "\n".join(chosen), _unreadable(tier, wanted)
        fallback = fallback or tier
    if fallback:
        defining = [body for body in fallback if _DEFINES.search(body)]
        return (defining or fallback)[-1], None
    foreign = any(block.language for block in found)
    return None, None if foreign or not _SEEMS_TO_DEFINE.search(text) else "code_not_found"


def _tiers(found: list[Block], outside: str) -> Iterator[list[str]]:
    """The places where a program may be, the likeliest first."""
    yield [block.code for block in found if block.python]
    yield [block.code for block in found if not block.language]
    yield [code] if (code := unfenced(outside)) else []
    yield [block.code for block in found if block.language and not block.python and unfenced(block.code)]


def blocks(text: str) -> tuple[list[Block], str]:
    """The fenced blocks of a text, and what is outside of them. A block that is not closed reaches to the next fence
    that names a language, or to the end.

    >>> found, outside = blocks("Here:\\n~~~py\\nx = 1\\n~~~\\n```\\ny = 2")
    >>> [(block.language, block.code) for block in found], outside
    ([('py', 'x = 1\\n'), ('', 'y = 2\\n')], 'Here:\\n')
    """
    found, outside = list[Block](), list[str]()
    marks, language, lines = "", "", list[str]()
    for line in text.splitlines():
        fence = _FENCE.match(line)
        closing = marks and line.lstrip().startswith(marks)
        if marks and not closing:
            lines.append(line)
            continue
        if marks:
            found.append(Block(language, _dedented(lines)))
        elif fence is None:
            outside.append(line)
        opens = fence is not None and (not marks or _language(fence) != "")
        marks, lines = (fence["marks"], []) if fence is not None and opens else ("", [])
        language = _language(fence) if fence is not None else ""
    if marks:
        found.append(Block(language, _without_prose_behind(_dedented(lines))))
    return found, _joined(outside) if found else text


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent(_joined(lines))


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _without_prose_behind(code: str) -> str:
    """A block that was never closed, up to where its text goes on: behind that, nothing looks like code."""
    lines = code.splitlines()
    ends = [end for end in range(len(lines), 0, -1) if end == len(lines) or lines[end][:1].strip()]
    for end in ends[:_PROSE]:
        if _CODE_LINE.search(_joined(lines[end:])):
            break
        if _parsed(_joined(lines[:end])) is not None:
            return _joined(lines[:end])
    return code


def _language(fence: re.Match) -> str:
    found = _LANGUAGE.match(fence["info"])
    return found[1].lower() if found else ""


def unfenced(text: str) -> str | None:
    """The program in a text without fences: all of it, or its statements, without the prose between them; None if there
    is none, or a definition that does not parse.

    >>> unfenced("Sure:\\n\\ndef f(x):\\n    return x\\n\\nIt returns x.")
    'def f(x):\\n    return x\\n'
    """
    if not _DEFINES.search(text):
        return None
    if _parsed(text) is not None:
        return text
    first = _CODE_LINE.search(text)
    indent = len((first[1] or first[2] or "") if first else "")
    kept: list[str] = []
    group: list[str] = []
    for line in [*text.splitlines(), "."]:
        inside = not line[:indent].strip()
        line = line[indent:] if inside else line.strip()
        if inside and group and (_CONTINUES.match(line) or all(part.startswith("@") for part in group)):
            group.append(line)
            continue
        tree = _parsed("\n".join(group))
        if tree is not None and tree.body and all(map(_is_code, tree.body)):
            kept += "\n".join(group).rstrip().splitlines()
        elif _DEFINES.search("\n".join(group)):
            return None
        group = [line]
    code = _joined(kept)
    return code if _DEFINES.search(code) and _parsed(code) is not None else None


def _is_code(statement: ast.stmt) -> bool:
    """Not `Note: see below`, nor a word alone, which are Python too."""
    return isinstance(statement, _STATEMENTS) and getattr(statement, "value", statement) is not None


def _parsed(code: str) -> ast.Module | None:
    with contextlib.suppress(*UNPARSABLE):
        return ast.parse(code)
    return None


def _needed(candidates: list[str], wanted: list[str]) -> list[str]:
    """The blocks that define the wanted names, and what those blocks use in turn, in their order."""
    trees = {index: tree for index, block in enumerate(candidates) if (tree := _parsed(block)) is not None}
    defined: dict[str, int] = {}
    # Later ones count. An import counts least: `from solution import f` defines no f.
    for rank in (_is_import, _is_stub, lambda statement: not _is_import(statement) and not _is_stub(statement)):
        for index, tree in trees.items():
            for statement in tree.body:
                if rank(statement):
                    defined |= dict.fromkeys(own_names(statement), index)
    names, chosen = list(wanted), set[int]()
    while names:
        index = defined.get(names.pop(), -1)
        if index >= 0 and index not in chosen:
            chosen.add(index)
            tree = trees[index]
            names += {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - bound_names(tree)
    return [candidates[index] for index in sorted(chosen)]


def _unreadable(candidates: list[str], wanted: list[str]) -> str | None:
    """A later block that defines a wanted name again, but does not parse: which of the two is meant?"""
    readable = [_parsed(block) is not None for block in candidates]
    for index, block in enumerate(candidates):
        if not readable[index] and any(readable[:index]) and set(_DEFINES.findall(block)) & set(wanted):
            return "several_programs: the last does not parse"
    return None


def _is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, _IMPORTS)


def _is_stub(statement: ast.AST) -> bool:
    """A definition without content: its body says nothing but `pass`, `...`, a docstring or `NotImplementedError`."""
    if not isinstance(statement, _DEFINITIONS):
        return False
    return all(
        isinstance(node, ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node))
        or (isinstance(statement, ast.ClassDef) and isinstance(node, _DEFINITIONS) and _is_stub(node))
        for node in statement.body
    )
