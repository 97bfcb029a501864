"""TPU slices by their Google Cloud names, and devices to compile for on a machine without a TPU.

    topology = parse_topology("2xv5p-128")     # two slices of 64 chips each
    mesh = make_mesh(config.mesh, topology.devices())

Sources, read in November 2026:

- Peaks, HBM and its bandwidth, shapes: Google Cloud's pages "TPU v5e", "TPU v5p" and "TPU v6e"
  (docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}).
- Links: "How to Scale Your Model", part 2 (jax-ml.github.io/scaling-book/tpus), whose one-way rates are what programs
  get. Google's pages have a tenth more: 400, 1200 and 800 GB/s of a chip, over all its links and both directions.
- Data-centre network: the same pages, as 25, 50 and 100 Gbit/s of a chip (v5e: 200 of a host with eight).
- Which axes wrap around: "How to Scale Your Model", ibid., and the same in MaxText's `accelerator_to_spec_map.py`.
"""

import dataclasses
import importlib.util
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
    """One generation of TPUs; figures are of one chip."""

    name: str
    flops: float
    """Peak of products of bfloat16 matrices, in FLOP/s."""
    bandwidth: float
    """Of HBM, in bytes/s."""
    hbm: int
    """Bytes that a program may use: what the compiler takes to be available, a little less than the chip has."""
    clock: float
    """Cycles a second of its cores: the peak, divided by what the matrix units compute in a cycle."""
    link_bandwidth: float
    """Of one link to a neighbouring chip, in bytes/s in each direction. A chip has two links along each axis."""
    dcn_bandwidth: float
    """Of a chip's share of its host's data-centre network, which joins slices, in bytes/s in each direction."""
    cores: int
    """What each chip adds to the number in a slice's name: v5p counts two cores per chip."""
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
            name="v5e",
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
            flops=PEAK_FLOPS["TPU v6 lite"],
            bandwidth=1638e9,
            hbm=int(31.25 * GIB),
            clock=1.75e9,
            link_bandwidth=90e9,
            dcn_bandwidth=12.5e9,
            cores=1,
            shapes=_SQUARES,
        ),
    )
}
_NAME = re.compile(r"(?:(?P<slices>[1-9]\d*)x)?(?P<chip>v\w+?)-(?P<size>\d+)")


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

    def devices(self) -> list[jax.Device]:
        """A device for each chip, to lay a mesh over and compile for; nothing can run on them.

        Raises:
          UserError: the TPU compiler is not installed.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise UserError("planning needs libtpu, the TPU compiler: install fusejax with the extra `tpu`")
        _settle_libtpu()
        # By default, libtpu assumes hosts of four chips.
        options: dict[str, Any] = {"chips_per_host_bounds": [1, 1, 1]} if self.shape == "1x1" else {}
        if self.slices > 1:
            options["num_slices"] = self.slices
        name = f"{self.chip.name}:{self.shape}"
        return list(topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices)


def parse_topology(name: str) -> Topology:
    """The slices called `name`: `v5e-16`, `v5litepod-16` (the same), `v5p-128` (64 chips of two cores), `2xv6e-256`.

    Raises:
      UserError: there are none of that name.
    """
    match = _NAME.fullmatch(name)
    chip = CHIPS.get(match["chip"].replace("v5litepod", "v5e")) if match else None
    if match is None or chip is None:
        raise UserError(f"--topology {name}: unknown; there are {', '.join(map(_names, CHIPS.values()))}; NxNAME for N")
    shape = chip.shapes.get(int(match["size"]))
    if shape is None:
        raise UserError(f"--topology {name}: no slice of that size; there are {_names(chip)}")
    slices = int(match["slices"] or 1)
    return Topology(name, chip, shape, slices * int(match["size"]) // chip.cores, slices)


def _names(chip: Chip) -> str:
    return f"{chip.name}-{{{','.join(map(str, chip.shapes))}}}"


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
