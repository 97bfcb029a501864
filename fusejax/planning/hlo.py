"""The text of a compiled program (`jax.stages.Compiled.as_text`), taken apart into computations and instructions."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

_COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(\S+) = ")
_OPCODE = re.compile(r"([\w-]+)\(")
_NAME = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = _BITS.match(self.dtype)
        # `pred` takes a byte; a token takes none.
        return math.prod(self.shape) * (int(bits[1]) // 8 if bits else int(self.dtype == "pred"))


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    result: str
    """Its type; a tuple in parentheses."""
    opcode: str
    arguments: str
    """What is in its parentheses."""
    attributes: str
    """What follows them."""
    is_root: bool
    """Whether it is the result of its computation."""

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of those arguments that are instructions of the same computation."""
        return tuple(_NAME.findall(self.arguments))

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Those of the result, in order."""
        return tuple(
            Array(dtype, tuple(map(int, filter(None, shape.split(",")))))
            for dtype, shape in _ARRAY.findall(self.result)
        )

    def attribute(self, name: str) -> str | None:
        """The name of a computation, or a number: `attribute("calls")`."""
        found = re.search(rf'\b{name}"?[=:]"?%?([\w.-]+)', self.attributes)
        return found[1] if found else None


Computation = dict[str, Instruction]
"""Instructions by name, in the order in which they run, as the program is scheduled."""


@dataclasses.dataclass(frozen=True)
class Program:
    entry: str
    """The name of the computation that begins."""
    computations: dict[str, Computation]


def parse(text: str) -> Program:
    """Takes a program's text apart.

    Raises:
      ValueError: it is not the text of a program, or its instructions are not scheduled.
    """
    header = text[: text.find("\n")]
    if not header.startswith("HloModule"):
        raise ValueError("not a compiled program's text: it does not begin with HloModule")
    if "is_scheduled=true" not in header:
        raise ValueError("the program is not scheduled: it was printed before it was compiled")
    entry, computations = "", dict[str, Computation]()
    current: Computation = {}
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            current = computations[start[2]] = {}
            entry = start[2] if start[1] else entry
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    return Program(entry, computations)


def called(program: Program, instruction: Instruction) -> Iterator[tuple[str, Computation]]:
    """The computations that an instruction names, such as a fusion's or a loop's."""
    for name in _NAME.findall(instruction.attributes):
        if name in program.computations:
            yield name, program.computations[name]


def product_flops(convolution: Instruction, others: Computation) -> float:
    """FLOPs of a matrix product, all of which a TPU's compiler writes as convolutions; padding counts for nothing.

    Args:
      others: the instructions of its computation.
    """
    left, right = (others[name].arrays[0].shape for name in convolution.operands)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    if labels is None:
        raise ValueError(f"the convolution {convolution.name} does not say what its axes are")
    inputs, kernel, outputs = labels.groups()
    result = convolution.arrays[0].shape
    flops = 2 * math.prod(result) * math.prod(right) / right[kernel.index("o")]
    for axis, window in enumerate(_windows(convolution)):
        label = str(axis)
        flops *= window.used(left[inputs.index(label)], result[outputs.index(label)])
    return flops


@dataclasses.dataclass(frozen=True)
class _Window:
    """A convolution's window along one axis."""

    size: int
    stride: int
    padding: int
    spread: tuple[int, int]
    """How far apart the elements of input and kernel are put."""

    def used(self, inputs: int, outputs: int) -> float:
        """The share of its places, over all outputs, that hold an element of the input."""
        places = np.add.outer(np.arange(outputs) * self.stride, np.arange(self.size) * self.spread[1]) - self.padding
        inside = (places >= 0) & (places <= (inputs - 1) * self.spread[0]) & (places % self.spread[0] == 0)
        return float(inside.mean())


def _windows(convolution: Instruction) -> list[_Window]:
    found = re.search(r"window=\{([^}]*)\}", convolution.attributes)
    if found is None:
        return []
    given = dict(part.split("=") for part in found[1].split())
    sizes = list(map(int, given["size"].split("x")))
    ones = "x".join("1" for _ in sizes)

    def numbers(name: str) -> list[int]:
        return list(map(int, given.get(name, ones).split("x")))

    padding = [int(pad.split("_")[0]) for pad in given.get("pad", "x".join("0_0" for _ in sizes)).split("x")]
    spread = zip(numbers("lhs_dilate"), numbers("rhs_dilate"), strict=True)
    return [_Window(*each) for each in zip(sizes, numbers("stride"), padding, spread, strict=True)]


def _instruction(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if start is None:
        return None
    at = start.end()
    end = _closing(line, at) + 1 if line[at] == "(" else line.index(" ", at)
    opcode = _OPCODE.match(line, end + 1)
    if opcode is None:
        return None
    after = _closing(line, opcode.end() - 1)
    return Instruction(start[2], line[at:end], opcode[1], line[opcode.end() : after], line[after + 1 :], bool(start[1]))


def _closing(line: str, at: int) -> int:
    """The position of the parenthesis that closes the one at `at`."""
    depth = 0
    for parenthesis in re.compile(r"[()]").finditer(line, at):
        depth += 1 if parenthesis[0] == "(" else -1
        if depth == 0:
            return parenthesis.start()
    raise ValueError(f"a parenthesis is not closed: {line[:200]}")
