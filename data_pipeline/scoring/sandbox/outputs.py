"""Compares what a script printed with what it should have printed, as LiveCodeBench does."""

from decimal import Decimal, InvalidOperation

_SHOWN = 80
"""Most characters of a line in a detail."""


def difference(found: str, expected: str) -> str | None:
    """The first difference of two outputs, None if they are equal.

    White space around the whole and around each line does not count. Lines are equal as text, or as numbers that are
    written apart: exactly, so that 1.0 equals 1, but 0.1 does not equal 0.10001.

    >>> difference("1.0 2\\nyes ", "1 2.00\\nyes\\n")
    >>> difference("1\\nno", "1\\nyes")
    "line 2: 'no', expected 'yes'"
    """
    found, wanted = found.strip(), expected.strip().split("\n")
    # No more of them than are looked at: a program may print millions.
    lines = found.split("\n", len(wanted))[: len(wanted)]
    for number, (line, right) in enumerate(zip(lines, wanted, strict=False), 1):
        line, right = line.strip(), right.strip()
        if line != right and not _equal_numbers(line, right):
            return f"line {number}: {_shown(line)}, expected {_shown(right)}"
    count = found.count("\n") + 1
    return f"{count} lines, expected {len(wanted)}" if count != len(wanted) else None


def _equal_numbers(line: str, right: str) -> bool:
    parts, wanted = line.split(), right.split()
    try:
        return len(parts) == len(wanted) and list(map(Decimal, parts)) == list(map(Decimal, wanted))
    except InvalidOperation:
        return False


def _shown(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")
