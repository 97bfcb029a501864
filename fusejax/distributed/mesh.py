"""Devices as a mesh with the axes `slice`, `data`, `fsdp` and `tensor`.

A slice is a set of TPU chips joined by fast links; several slices are connected by the slower data centre network, over
which only gradients are summed, once per step.
"""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from fusejax.common.cli import UserError
from fusejax.config import MeshConfig

AXES = ("slice", "data", "fsdp", "tensor")
REPLICAS = ("slice", "data")
"""Along these axes, parameters are replicated."""
BATCH_AXES = ("slice", "data", "fsdp")
"""Rows of a batch are split over these."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices (by default all) as a mesh; an axis of -1 takes the devices of a slice that the others leave.

    Raises:
      UserError: the axes do not multiply to the number of devices of a slice.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    per_slice = len(devices) // slices
    sizes = [config.data, config.fsdp, config.tensor]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = per_slice // rest
    if math.prod(sizes) != per_slice:
        raise UserError(
            f"mesh: data x fsdp x tensor = {config.data} x {config.fsdp} x {config.tensor} does not fill "
            f"{per_slice} devices" + (f" of each of {slices} slices" if slices > 1 else "")
        )
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, *sizes), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh((1, *sizes), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_size(mesh: Mesh | AbstractMesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def one_device_mesh() -> Mesh:
    """The first device alone, for what is not worth spreading."""
    return make_mesh(MeshConfig(), jax.local_devices()[:1])
