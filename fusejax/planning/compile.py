"""What the TPU compiler makes of one program: its memory and its text."""

import dataclasses
import math
import re
from typing import Any

import jax

_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED.*\bhbm\b", re.IGNORECASE | re.DOTALL)
# "the total memory required for HLO temporaries (21.39G) exceeds available HBM (15.75G)", or, found later by the
# compiler, "Used 18.53G of 15.75G hbm": both count arguments and outputs in. G is 2^30.
_NEEDED = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\)|Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of HBM on each chip while a program runs, beyond those of its arguments."""

    temporary: int
    """Scratch space, outputs that do not reuse an argument's memory, and the padding of layouts."""
    code: int
    """In memory as long as the program is loaded, whether it runs or not."""
    fits: bool
    """If False, the compiler gave up, and `temporary` is a lower bound of what is needed."""


def compiled(program: Any, *arguments: Any) -> tuple[Memory, str | None]:
    """Compiles a program; returns the HBM that it takes, and its text, which is None if it does not fit.

    Args:
      program: a `jax.jit`.
      arguments: shapes with shardings over the devices to compile for.
    """
    given = sum(map(shard_bytes, jax.tree.leaves(arguments)))
    try:
        executable = program.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        return Memory(max(0, _needed(str(error)) - given), 0, fits=False), None
    found = executable.memory_analysis()
    # The peak is what the compiler's own limit applies to. Its `temp_size_in_bytes` counts memory once per buffer that
    # uses it in turn, so it can exceed the chip's memory for programs that fit.
    memory = Memory(found.peak_memory_in_bytes - given, found.generated_code_size_in_bytes, fits=True)
    return memory, executable.as_text()


def shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    """Bytes of the part of an array that one device holds."""
    return x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))


def tree_bytes(tree: Any) -> int:
    """`shard_bytes` of all arrays of a tree."""
    return sum(map(shard_bytes, jax.tree.leaves(tree)))


def _needed(message: str) -> int:
    match = _NEEDED.search(message)
    if match is None:
        return 0
    number, unit = match.group(1, 2) if match[1] else match.group(3, 4)
    return int(float(number) * _UNITS[unit])
