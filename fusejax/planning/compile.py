"""What the TPU compiler reports for one program: its memory and its cost."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

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


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run of a program, per chip. Costs add up, and scale with the number of layers."""

    flops: float
    """As the compiler counts them, without `attention`."""
    attention: float
    """FLOPs of fused attention kernels."""
    bytes: float
    """Read from and written to HBM."""
    seconds: float
    """The compiler's estimate; see `Chip.knows_seconds`."""

    def __add__(self, other: "Cost") -> "Cost":
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Cost(*(a + b for a, b in zip(mine, others, strict=True)))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(value * factor for value in dataclasses.astuple(self)))


@contextmanager
def uncached() -> Iterator[None]:
    """Turns JAX's compilation cache off: it cannot read programs back for devices that are not there."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it looks at the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


class DoesNotFit(Exception):
    """The compiler found no room in HBM for a program."""


def memory(program: Any, *arguments: Any) -> Memory:
    """Compiles a program to measure its HBM; does not raise if it does not fit.

    Args:
      program: a `jax.jit`.
      arguments: shapes with shardings over the devices to compile for.
    """
    given = sum(map(shard_bytes, jax.tree.leaves(arguments)))
    try:
        found = program.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        return Memory(max(0, _needed(str(error)) - given), 0, fits=False)
    # The peak is what the compiler's own limit applies to. Its `temp_size_in_bytes` counts memory once per buffer that
    # uses it in turn, so it can exceed the chip's memory for programs that fit.
    return Memory(found.peak_memory_in_bytes - given, found.generated_code_size_in_bytes, fits=True)


def cost(program: Any, *arguments: Any, attention: Callable[[str], float]) -> Cost:
    """Compiles a program to estimate its time. Program and arguments as of `memory`.

    Args:
      attention: from the compiled program's text to the FLOPs of its fused attention kernels.

    Raises:
      DoesNotFit: the unrolled program takes more HBM than there is.
    """
    try:
        compiled = program.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise DoesNotFit from error
    found = compiled.cost_analysis()
    values = (found.get(key, 0.0) for key in ("flops", "bytes accessed", "optimal_seconds"))
    flops, size, seconds = map(float, values)
    return Cost(flops=flops, attention=attention(compiled.as_text()), bytes=size, seconds=seconds)


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
