"""Devices as a mesh with the axes `data`, `fsdp` and `tensor`."""

import math

import jax
from jax.sharding import AxisType, Mesh

from fusejax.cli import UserError
from fusejax.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
_TYPES = (AxisType.Auto,) * len(AXES)


def make_mesh(config: MeshConfig) -> Mesh:
    """Lays all devices out; the axis with -1 takes what the others leave.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    sizes = [config.data, config.fsdp, config.tensor]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = devices // rest
    if math.prod(sizes) != devices:
        raise UserError(
            f"mesh: data x fsdp x tensor = {config.data} x {config.fsdp} x {config.tensor} "
            f"does not fill {devices} devices"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=_TYPES)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def one_device_mesh() -> Mesh:
    """The first device alone, for what is not worth spreading."""
    return jax.make_mesh((1, 1, 1), AXES, axis_types=_TYPES, devices=jax.local_devices()[:1])
