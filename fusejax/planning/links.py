"""How long a collective takes on a slice's links, as far as their bandwidth decides.

The model: chips form a grid, with a link to each neighbour along each axis that carries `Chip.link_bandwidth` bytes/s
each way, and with links that close an axis to a ring where `Topology.wraps` says so. A group of chips uses the links
inside the box that it spans. A collective then takes as long as its busiest link or chip needs for the bytes that any
algorithm must send there, plus `HOP_SECONDS` for each hop between the chips that lie farthest apart:

- all-gather and reduce-scatter of B bytes (the whole array) among n chips: each chip receives or sends B (n - 1) / n
  over all of its links at once; a chip at the end of an axis that does not wrap has one link along it, others two.
- all-reduce: twice that.
- all-to-all of B bytes a chip: the same B (n - 1) / n, or what crosses the middle of the longest axis, B k / 4 for an
  axis of k chips, half of it if it wraps, whichever takes longer.
- permutation of B bytes a chip: B times the most hops along an axis.

Between slices a collective is divided: each chip of a slice exchanges its part with those at its place in the others,
at `Chip.dcn_bandwidth`. That time is added.

Links are counted as in "How to Scale Your Model", parts 2 and 3 (jax-ml.github.io/scaling-book).
"""

import dataclasses
import math
from collections.abc import Sequence

from fusejax.planning.topology import Topology

HOP_SECONDS = 1e-6
"""From one chip to the next, whatever is sent; the source above."""

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Links:
    """The links between the devices of a program.

    Args:
      topology: the slices.
      places: (slice, coordinates along the slice's axes) of each device, by its number in the program. Devices that
        share a chip share its place, and exchange data for nothing.
    """

    topology: Topology
    places: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of(cls, topology: Topology, devices: Sequence) -> "Links":
        """The links between `jax.Device`s, in the order of a mesh (`mesh.devices.flat`)."""
        width = len(topology.axes)
        places = tuple((getattr(d, "slice_index", 0) or 0, tuple(d.coords)[:width]) for d in devices)
        return cls(topology, places)

    def seconds(self, kind: str, size: int, group: Sequence[int]) -> float:
        """How long one collective takes.

        Args:
          kind: one of `KINDS`, other than the permutation.
          size: bytes of the whole array: an all-gather's result, the argument of the others.
          group: the numbers of the devices that take part.
        """
        places = {self.places[number] for number in group}
        slices = {place[0] for place in places}
        chips = {place[1] for place in places}
        extents = [len({chip[axis] for chip in chips}) for axis in range(len(self.topology.axes))]
        box = math.prod(extents) == len(chips)
        times = 2 if kind == "all-reduce" else 1
        seconds = 0.0
        if len(chips) > 1:
            links = sum(map(self._links, range(len(extents)), extents)) if box else 1
            bandwidth = self.topology.chip.link_bandwidth
            seconds = times * size * (1 - 1 / len(chips)) / (links * bandwidth)
            if kind == "all-to-all":
                seconds = max(seconds, max(map(self._across, range(len(extents)), extents)) * size / bandwidth)
            hops = sum(map(self._farthest, range(len(extents)), extents)) if box else len(chips) - 1
            seconds += times * hops * HOP_SECONDS
        return seconds + self.between_slices(kind, size / len(chips), len(slices))

    def between_slices(self, kind: str, size: float, slices: int | None = None) -> float:
        """How long a collective of `size` bytes a chip takes between chips of several slices, by default of all."""
        times = 2 if kind == "all-reduce" else 1
        return times * size * (1 - 1 / (slices or self.topology.slices)) / self.topology.chip.dcn_bandwidth

    def permute_seconds(self, size: int, pairs: Sequence[tuple[int, int]]) -> float:
        """How long a permutation takes that sends `size` bytes from each pair's first device to its second."""
        longest, farthest, between = 0, 0, False
        for source, target in pairs:
            (first, start), (second, end) = self.places[source], self.places[target]
            between |= first != second
            hops = [self._hops(axis, abs(a - b)) for axis, (a, b) in enumerate(zip(start, end, strict=True))]
            longest, farthest = max(longest, *hops), max(farthest, sum(hops))
        chip = self.topology.chip
        seconds = longest * size / chip.link_bandwidth + farthest * HOP_SECONDS
        return seconds + (size / chip.dcn_bandwidth if between else 0.0)

    def _is_ring(self, axis: int, extent: int) -> bool:
        return self.topology.wraps[axis] and extent == self.topology.axes[axis] and extent > 2

    def _links(self, axis: int, extent: int) -> int:
        """Links along an axis of the chip that has the fewest."""
        return 0 if extent == 1 else 2 if self._is_ring(axis, extent) else 1

    def _across(self, axis: int, extent: int) -> float:
        """What an all-to-all sends over the busiest link along an axis, in units of a chip's bytes."""
        return 0.0 if extent == 1 else extent / (8 if self._is_ring(axis, extent) else 4)

    def _farthest(self, axis: int, extent: int) -> int:
        return extent // 2 if self._is_ring(axis, extent) else extent - 1

    def _hops(self, axis: int, distance: int) -> int:
        size = self.topology.axes[axis]
        return min(distance, size - distance) if self.topology.wraps[axis] else distance


def sent_bytes(kind: str, size: int, members: int) -> float:
    """Bytes that each device sends at least; `size` as of `Links.seconds`, of a permutation what each device sends."""
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (1 - 1 / members)
