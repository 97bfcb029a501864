"""When the operations of a compiled program run, and how much of its communication nothing hides.

A TPU program's text is its schedule: the compiler has put the operations into the order in which the core runs them,
and says of most how many cycles they take. `read` walks through that order with a clock:

- An operation on the core takes its `estimated_cycles`; an attention kernel, of which the compiler says nothing, the
  time of its FLOPs at the chip's peak; others without an estimate the time to write and read their result.
- A collective takes what `Links` says, and the links serve one after the other. A synchronous one makes the core wait.
  An asynchronous one runs from its start, or from when the links are free, while the core goes on to its end; if it is
  not done by then, the core waits for the rest.
- A loop takes its number of turns times its body.

What the core waits is *exposed*. The model leaves out what collectives take from the core or from HBM's bandwidth
while both work, and how chips wait for each other.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from fusejax.planning.hlo import Computation, Instruction, Program, called, parse, product_flops
from fusejax.planning.links import KINDS, Links, sent_bytes

_LIST = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[('[^\]]*)\] \{('\w+'(?:,'\w+')*)\}")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")
_NUMBERS = re.compile(r"\{([\d, ]+)\}")
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEETING = re.compile(r'_xla_host_transfer_rendezvous="([^"]+)"')
_CHAIN = re.compile(r'chain_id="(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# The compiler's names for the two ends of an all-gather that it spreads over the products between them. The products
# hold copies of it, which send nothing of their own.
_START, _DONE, _BETWEEN = "async-collective-start", "async-collective-done", "async_collective_fusion"
_SCATTER = "all-reduce-scatter"
"""Computations whose all-reduce sends no more than a reduce-scatter."""
_FREE = frozenset(
    [
        *("after-all", "bitcast", "constant", "copy-done", "copy-start", "get-tuple-element", "iota", "opt-barrier"),
        *("parameter", "partition-id", "recv", "recv-done", "replica-id", "reshape", "send", "send-done"),
        *("slice-done", "slice-start", "tuple"),
    ]
)
"""Operations that take no time, or whose time is that of copies beside the core."""


@dataclasses.dataclass
class Traffic:
    """What each device sends."""

    bytes: float = 0.0
    seconds: float = 0.0
    """How long the links are busy with it."""
    exposed_seconds: float = 0.0
    """How long the core waits for it."""

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.bytes + other.bytes, self.seconds + other.seconds, self.exposed_seconds + other.exposed_seconds
        )

    def __mul__(self, times: float) -> "Traffic":
        return Traffic(self.bytes * times, self.seconds * times, self.exposed_seconds * times)


@dataclasses.dataclass
class Schedule:
    """Of one run of a program, or of a part of it."""

    flops: float = 0.0
    """Of matrix products and attention kernels, on each device."""
    compute_seconds: float = 0.0
    traffic: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    """By the kind of collective, one of `links.KINDS`."""

    @property
    def communication(self) -> Traffic:
        return sum(self.traffic.values(), Traffic())

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.communication.exposed_seconds

    def __add__(self, other: "Schedule") -> "Schedule":
        kinds = [kind for kind in KINDS if kind in self.traffic or kind in other.traffic]
        nothing = Traffic()
        traffic = {kind: self.traffic.get(kind, nothing) + other.traffic.get(kind, nothing) for kind in kinds}
        return Schedule(self.flops + other.flops, self.compute_seconds + other.compute_seconds, traffic)

    def __mul__(self, times: float) -> "Schedule":
        traffic = {kind: each * times for kind, each in self.traffic.items()}
        return Schedule(self.flops * times, self.compute_seconds * times, traffic)


def read(
    text: str,
    links: Links,
    *,
    kernel_flops: Callable[[Instruction], float] = lambda kernel: 0.0,
    turns: int | None = None,
) -> Schedule:
    """The schedule of one run of a compiled program.

    Args:
      text: `jax.stages.Compiled.as_text()`, of a program for TPUs.
      links: between the devices that it runs on.
      kernel_flops: FLOPs of a `custom-call` on each device.
      turns: of loops whose number of turns depends on data.

    Raises:
      ValueError: the text is not a scheduled program, or has a collective that is not understood, or a loop whose
        number of turns depends on data, while `turns` is not given.
    """
    program = parse(text)
    return _Reader(program, links, kernel_flops, turns).walk(program.entry)


@dataclasses.dataclass(frozen=True)
class _Collective:
    kind: str
    bytes: float
    seconds: float
    between_slices: bool = False
    """Whether it uses the data-centre network alone, which works beside the links."""


class _Reader:
    def __init__(self, program: Program, links: Links, kernel_flops: Callable[[Instruction], float], turns: int | None):
        self.program, self.links, self.kernel_flops, self.turns = program, links, kernel_flops, turns
        self.chip = links.topology.chip

    def walk(self, name: str) -> Schedule:
        """The schedule of a computation."""
        instructions = self.program.computations[name]
        clock = free = free_between = computed = flops = 0.0
        traffic: dict[str, Traffic] = defaultdict(Traffic)
        ends: dict[str, tuple[str, float]] = {}  # asynchronous collectives under way: start -> kind, when it is done

        def wait(kind: str, until: float) -> None:
            nonlocal clock
            traffic[kind].exposed_seconds += max(0.0, until - clock)
            clock = max(clock, until)

        for instruction in instructions.values():
            if _ends(instruction) and (start := self._key(instruction, instructions)) in ends:
                wait(*ends.pop(start))
                continue
            collective = self._collective(instruction, instructions)
            if collective is not None:
                if collective.between_slices:
                    end = free_between = max(free_between, clock) + collective.seconds
                else:
                    end = free = max(free, clock) + collective.seconds
                found = traffic[collective.kind]
                found.bytes += collective.bytes
                found.seconds += collective.seconds
                if _starts(instruction):
                    ends[self._key(instruction, instructions)] = collective.kind, end
                else:
                    wait(collective.kind, end)
                continue
            inner = self._inner(instruction)
            for kind, each in inner.traffic.items():
                traffic[kind] += each
            # What is under way outside shares the links with what is inside.
            busy = inner.communication.seconds
            ends = {start: (kind, end + busy * (end > clock)) for start, (kind, end) in ends.items()}
            free = max(free, clock) + busy if busy else free
            seconds = self._seconds(instruction, instructions)
            computed += inner.compute_seconds + seconds
            flops += inner.flops + self._flops(instruction, instructions)
            clock += inner.seconds + seconds
        if ends:
            raise ValueError(f"collectives of {name} that never end: {', '.join(ends)}")
        return Schedule(flops, computed, {kind: traffic[kind] for kind in KINDS if kind in traffic})

    def _flops(self, instruction: Instruction, others: Computation) -> float:
        if instruction.opcode == "custom-call":
            return self.kernel_flops(instruction)
        if instruction.opcode == "fusion":
            inside = (computation for _, computation in called(self.program, instruction))
            return sum(self._flops(inner, computation) for computation in inside for inner in computation.values())
        return product_flops(instruction, others) if instruction.opcode == "convolution" else 0.0

    def _inner(self, instruction: Instruction) -> Schedule:
        """What runs inside of a loop, a branch or a call."""
        if instruction.opcode == "while":
            return self.walk(instruction.attribute("body") or "") * self._turns(instruction)
        if instruction.opcode == "conditional":
            branches = [self.walk(name) for name, _ in called(self.program, instruction)]
            return max(branches, key=lambda branch: branch.seconds)
        if instruction.opcode == "call":
            return self.walk(instruction.attribute("to_apply") or "")
        return Schedule()

    def _turns(self, loop: Instruction) -> int:
        """What the compiler says, or how often a counter from 0 can be increased until it reaches a limit."""
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        condition = self.program.computations[loop.attribute("condition") or ""]
        body = self.program.computations[loop.attribute("body") or ""]
        less = _root(condition)
        counter, limit = (condition[name] for name in less.operands)
        if less.opcode == "compare" and "direction=LT" in less.attributes and limit.opcode == "constant":
            carried = body[_root(body).operands[int(counter.attribute("index") or 0)]]
            while carried.opcode == "copy":
                carried = body[carried.operands[0]]
            added = [body[name] for name in carried.operands]
            steps = [int(each.arguments) for each in added if each.opcode == "constant"]
            if carried.opcode != "add" or len(steps) != 1:
                raise ValueError(f"the loop {loop.name} counts in an unknown way")
            return -(-int(limit.arguments) // steps[0])
        if self.turns is None:
            raise ValueError(f"the loop {loop.name} has a number of turns that depends on data")
        return self.turns

    def _seconds(self, instruction: Instruction, others: Computation) -> float:
        """Of an operation on the core."""
        if cycles := instruction.attribute("estimated_cycles"):
            return int(cycles) / self.chip.clock
        if instruction.opcode == "custom-call":
            return self.kernel_flops(instruction) / self.chip.flops
        if instruction.opcode in _FREE or instruction.opcode in ("while", "conditional", "call"):
            return 0.0
        # An update leaves the rest of its array where it is.
        written = others[instruction.operands[1]] if instruction.opcode == "dynamic-update-slice" else instruction
        return 2 * sum(array.bytes for array in written.arrays) / self.chip.bandwidth

    def _collective(self, instruction: Instruction, others: Computation) -> _Collective | None:
        """The collective that an instruction is, or starts."""
        if instruction.opcode == "send" and (transfer := _TRANSFER.search(instruction.attributes)):
            kind, slices = transfer[1].lower().replace("_", "-"), self.links.topology.slices
            if kind not in KINDS:
                raise ValueError(f"{instruction.name} sends in an unknown way between slices, {transfer[1]}")
            size = sum(array.bytes for array in others[instruction.operands[0]].arrays)
            return _Collective(kind, sent_bytes(kind, size, slices), self.links.between_slices(kind, size), True)
        found = self._found(instruction, others)
        if found is None:
            return None
        kind, inner, around = found
        size = sum(array.bytes for name in inner.operands for array in around[name].arrays)
        if kind == "collective-permute":
            pairs = [_pair(each) for each in _numbers(_PAIRS, inner)]
            return _Collective(kind, sent_bytes(kind, size, len(pairs)), self.links.permute_seconds(size, pairs))
        groups = _groups(inner, len(self.links.places))
        if kind == "all-gather":
            size *= len(groups[0])
        seconds = max(self.links.seconds(kind, size, group) for group in groups)
        return _Collective(kind, sent_bytes(kind, size, len(groups[0])), seconds)

    def _found(self, instruction: Instruction, others: Computation) -> tuple[str, Instruction, Computation] | None:
        """The kind of the collective that an instruction is, or starts; the instruction that says what it sends, and
        the computation that this belongs to."""
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            return kind, instruction, others
        if instruction.opcode not in ("fusion", "call-start", "async-start"):
            return None
        for name, computation in called(self.program, instruction):
            for inner in computation.values():
                if inner.opcode not in KINDS or name.startswith(_BETWEEN):
                    continue
                if name.startswith(_SCATTER):
                    return "reduce-scatter", inner, computation
                if instruction.opcode == "fusion" and not instruction.name.startswith(_START):
                    raise ValueError(
                        f"the fusion {instruction.name} has a collective, {inner.name}, in an unknown form"
                    )
                return inner.opcode, inner, computation
        return None

    def _key(self, instruction: Instruction, others: Computation) -> str:
        """What a start and its end have in common: the start's name, the chain of what is spread over products, or the
        meeting point of what goes between slices."""
        if instruction.opcode == "recv-done":
            instruction = others[instruction.operands[0]]
        if meeting := _MEETING.search(instruction.attributes):
            return meeting[1]
        if instruction.opcode == "fusion":
            for _, computation in called(self.program, instruction):
                for inner in computation.values():
                    if chain := _CHAIN.search(inner.attributes):
                        return f"chain {chain[1]}"
        return instruction.name if instruction.opcode.endswith("-start") else instruction.operands[0]


def _root(computation: Computation) -> Instruction:
    return next(each for each in computation.values() if each.is_root)


def _ends(instruction: Instruction) -> bool:
    return instruction.opcode.endswith("-done") or instruction.name.startswith(_DONE)


def _starts(instruction: Instruction) -> bool:
    return instruction.opcode == "send" or instruction.opcode.endswith("-start") or instruction.name.startswith(_START)


def _pair(text: str) -> tuple[int, int]:
    source, target = map(int, text.split(","))
    return source, target


def _groups(collective: Instruction, devices: int) -> list[list[int]]:
    """The numbers of the devices of each group."""
    if listed := _numbers(_LIST, collective):
        return [list(map(int, group.split(","))) for group in listed]
    if match := _IOTA.search(collective.attributes):
        count, size, shape, order = match.groups()
        numbers = np.arange(int(count) * int(size)).reshape([int(n) for n in shape.split(",")])
        if order:
            numbers = numbers.transpose([int(axis) for axis in order.split(",")])
        return numbers.reshape(int(count), int(size)).tolist()
    if match := _MESH.search(collective.attributes):
        names, sizes = zip(*_AXIS.findall(match[1]), strict=True)
        along = [names.index(name.strip("'")) for name in match[2].split(",")]
        numbers = np.arange(devices).reshape([int(size) for size in sizes])
        numbers = np.moveaxis(numbers, along, range(-len(along), 0))
        return numbers.reshape(-1, math.prod(int(sizes[axis]) for axis in along)).tolist()
    if "replica_groups={}" in collective.attributes or "replica_groups" not in collective.attributes:
        return [list(range(devices))]
    raise ValueError(f"{collective.name} has groups of devices in an unknown form")


def _numbers(pattern: re.Pattern[str], instruction: Instruction) -> list[str]:
    found = pattern.search(instruction.attributes)
    return _NUMBERS.findall(found[1]) if found else []
