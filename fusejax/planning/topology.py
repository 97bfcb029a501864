"""TPU slices by their Google Cloud names, and devices to compile for on a machine without a TPU.

    topology = parse_topology("2xv5p-128")     # two slices of 64 chips each
    mesh = make_mesh(config.mesh, topology.devices())

What Google calls a chip is one `jax.Device`, but for TPU7x (Ironwood): JAX sees the two halves of its chips, each with
half of the HBM, as devices of their own. A slice's shape, its links and what is billed count chips; a mesh, a program's
memory and its time count devices.

Sources, read in November 2026:

- Peaks, HBM and its bandwidth, shapes: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x
  (Ironwood)" (docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}). Names of TPU7x slices by their number of cores:
  `system_characteristics.py` of Google's XPK.
- Links: "How to Scale Your Model", part 2 (jax-ml.github.io/scaling-book/tpus), whose one-way rates are what programs
  get. Google's pages have a tenth more: 400, 1200 and 800 GB/s of a v5e, v5p and v6e chip, over all its links and both
  directions. That book does not have TPU7x: its rate is v5p's, as Google's pages have 1200 GB/s for both.
- Data-centre network: the same pages, as 25, 50, 100 and 100 Gbit/s of a v5e, v5p, v6e and TPU7x chip. Google publishes
  no figure for v4; that book has 50 Gbit/s for any chip without one of its own.
- Which axes wrap around: that book, and the same in MaxText's `accelerator_to_spec_map.py`.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies

from fusejax.common.cli import UserError
from fusejax.distributed.chips import PEAK_FLOPS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of TPUs."""

    name: str
    devices_per_chip: int
    flops: float
    """Peak of products of bfloat16 matrices, in FLOP/s of a device."""
    bandwidth: float
    """Of a device's HBM, in bytes/s."""
    hbm: int
    """Bytes that a program may use: what the compiler takes to be available, a little less than it has."""
    clock: float
    """Cycles a second of its cores: the peak, divided by what the matrix units compute in a cycle."""
    link_bandwidth: float
    """Of one link to a neighbouring chip, in bytes/s in each direction. A chip has two links along each axis."""
    dcn_bandwidth: float
    """Of a chip's share of its host's data-centre network, which joins slices, in bytes/s in each direction."""
    cores: int
    """What each chip adds to the number in a slice's name: of v4, v5p and TPU7x it counts cores, two per chip."""
    shapes: Mapping[int, str]
    """The slices there are: the number in their name -> chips along each axis."""


_SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    8: "2x2x1",
    16: "2x2x2",
    32: "2x2x4",
    64: "2x4x4",
    128: "4x4x4",
    256: "4x4x8",
    512: "4x8x8",
    1024: "8x8x8",
    2048: "8x8x16",
    4096: "8x16x16",
    8192: "16x16x16",
    12288: "16x16x24",
}
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            devices_per_chip=1,
            flops=PEAK_FLOPS["TPU v4"],
            bandwidth=1200e9,
            hbm=int(30.75 * GIB),
            clock=1.05e9,
            link_bandwidth=45e9,
            dcn_bandwidth=6.25e9,
            cores=2,
            shapes={size: shape for size, shape in _CUBES.items() if size <= 4096},
        ),
        Chip(
            name="v5e",
            devices_per_chip=1,
            flops=PEAK_FLOPS["TPU v5 lite"],
            bandwidth=819e9,
            hbm=int(15.75 * GIB),
            clock=1.5e9,
            link_bandwidth=45e9,
            dcn_bandwidth=3.125e9,
            cores=1,
            shapes=_SQUARES,
        ),
        Chip(
            name="v5p",
            devices_per_chip=1,
            flops=PEAK_FLOPS["TPU v5"],
            bandwidth=2765e9,
            hbm=int(95.74 * GIB),
            clock=1.75e9,
            link_bandwidth=90e9,
            dcn_bandwidth=6.25e9,
            cores=2,
            shapes=_CUBES,
        ),
        Chip(
            name="v6e",
            devices_per_chip=1,
            flops=PEAK_FLOPS["TPU v6 lite"],
            bandwidth=1638e9,
            hbm=int(31.25 * GIB),
            clock=1.75e9,
            link_bandwidth=90e9,
            dcn_bandwidth=12.5e9,
            cores=1,
            shapes=_SQUARES,
        ),
        Chip(
            name="tpu7x",
            devices_per_chip=2,
            flops=PEAK_FLOPS["TPU7x"],
            bandwidth=7380e9 / 2,
            hbm=int(94.75 * GIB),
            clock=2.2e9,
            link_bandwidth=90e9,
            dcn_bandwidth=12.5e9,
            cores=2,
            shapes={2: "1x1x1", **_CUBES, 18432: "16x24x24"},
        ),
    )
}
_ALIASES = {"v5litepod": "v5e", "v7x": "tpu7x"}
MACHINES = {
    "ct4p-hightpu-4t": "v4-8",
    "ct5l-hightpu-1t": "v5e-1",
    "ct5l-hightpu-4t": "v5e-4",
    "ct5l-hightpu-8t": "v5e-8",
    "ct5lp-hightpu-1t": "v5e-1",
    "ct5lp-hightpu-4t": "v5e-4",
    "ct5lp-hightpu-8t": "v5e-8",
    "ct5p-hightpu-4t": "v5p-8",
    "ct6e-standard-1t": "v6e-1",
    "ct6e-standard-4t": "v6e-4",
    "ct6e-standard-8t": "v6e-8",
    "tpu7x-standard-1t": "tpu7x-2",
    "tpu7x-standard-4t": "tpu7x-8",
}
"""Machine type -> the slice that is one such machine."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more slices of the same kind."""

    name: str
    """As asked for."""
    chip: Chip
    shape: str
    """Chips along each axis of a slice, such as `2x2x2`."""
    chips: int
    """Of all slices."""
    slices: int

    @property
    def axes(self) -> tuple[int, ...]:
        """Chips along each axis of a slice."""
        return tuple(map(int, self.shape.split("x")))

    @property
    def wraps(self) -> tuple[bool, ...]:
        """For each axis of a slice, whether its last chip is linked to its first, so that the axis is a ring.

        In two dimensions these links are part of the pod of 16x16, so an axis has them when it spans the pod. In three
        they run through optical switches, which join cubes of 4x4x4 chips: slices of whole cubes have them on all axes,
        smaller slices on none.
        """
        if len(self.axes) == 2:
            return tuple(size == 16 for size in self.axes)
        return (all(size % 4 == 0 for size in self.axes),) * 3

    @property
    def num_devices(self) -> int:
        """Of all slices."""
        return self.chips * self.chip.devices_per_chip

    def devices(self) -> list[jax.Device]:
        """The devices of all slices, to lay a mesh over and compile for; nothing can run on them.

        Raises:
          UserError: the TPU compiler is not installed.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise UserError("planning needs libtpu, the TPU compiler: install fusejax with the extra `tpu`")
        _settle_libtpu()
        options: dict[str, Any] = {}
        if math.prod(self.axes) == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]  # by default, libtpu assumes hosts of four chips
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # by default, of its cores alone; TPU VMs run them as one device
        if self.slices > 1:
            options["num_slices"] = self.slices
        name = f"{self.chip.name}:{self.shape}"
        return list(topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices)


def parse_topology(name: str) -> Topology:
    """The slices called `name`, in upper or lower case.

    - As an accelerator type: `v5e-8` or `v5litepod-8` (the same), `v5p-128` (64 chips of two cores).
    - By the slice's shape: `v5p-4x4x4`.
    - As a machine type of Compute Engine and GKE, for one such machine: `ct6e-standard-8t`.
    - Any of these with `Nx` before it, for N of them, joined by the data-centre network: `2xv6e-256`.

    Raises:
      UserError: there are none of that name.
    """
    several = re.match(r"([1-9]\d*)x", name.lower())
    slices, one = (int(several[1]), name.lower()[several.end() :]) if several else (1, name.lower())
    generation, _, size = MACHINES.get(one, one).partition("-")
    chip = CHIPS.get(_ALIASES.get(generation, generation))
    if chip is None:
        every = [f"{chip.name}-{size}" for chip in CHIPS.values() for size in chip.shapes]
        near = difflib.get_close_matches(one, [*every, *MACHINES], n=1)
        there_are = f"{', '.join(map(_names, CHIPS.values()))}, machine types such as ct6e-standard-8t"
        raise UserError(f"--topology {name}: unknown; there are {there_are}; NxNAME for N{_hint(near)}")
    sizes = {str(size): shape for size, shape in chip.shapes.items()} | {shape: shape for shape in chip.shapes.values()}
    if size not in sizes:
        near = [f"{chip.name}-{min(chip.shapes, key=lambda there: abs(there - int(size)))}"] if size.isdecimal() else []
        cores = ", counting cores, of which a chip has two" if chip.cores == 2 else ""
        raise UserError(f"--topology {name}: no such slice; there are {_names(chip)}{cores}{_hint(near)}")
    return Topology(name, chip, sizes[size], slices * math.prod(map(int, sizes[size].split("x"))), slices)


def _names(chip: Chip) -> str:
    return f"{chip.name}-{{{','.join(map(str, chip.shapes))}}}"


def _hint(near: list[str]) -> str:
    return f"; did you mean {near[0]}?" if near else ""


def _settle_libtpu() -> None:
    """Keeps libtpu from looking for a TPU, from refusing to load while another program uses one, and from logging."""
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask what this machine is
        "TPU_ACCELERATOR_TYPE": "v5p-8",  # any will do: it is not what is compiled for
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(key, value)
