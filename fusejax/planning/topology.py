"""TPU slices by their Google Cloud names, and devices to compile for on a machine without a TPU.

    topology = parse_topology("2xv5p-128")     # two slices of 64 chips each
    mesh = make_mesh(config.mesh, topology.devices())

Chips, published peaks and shapes are from Google Cloud's pages "TPU v5e", "TPU v5p" and "TPU v6e"
(docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, read in 2026).
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
    knows_seconds: bool
    """Whether the compiler's estimate of a program's time can be used. For some chips it counts an operation that it
    cannot estimate as -1 second."""
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
        Chip("v5e", PEAK_FLOPS["TPU v5 lite"], 819e9, int(15.75 * GIB), False, 1, _SQUARES),
        Chip("v5p", PEAK_FLOPS["TPU v5"], 2765e9, int(95.74 * GIB), True, 2, _CUBES),
        Chip("v6e", PEAK_FLOPS["TPU v6 lite"], 1638e9, int(31.25 * GIB), False, 1, _SQUARES),
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
