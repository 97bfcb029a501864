"""Where each parameter and each batch lies on the mesh: one table from parameter name to mesh axes."""

import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from fusejax.common.cli import UserError
from fusejax.distributed.mesh import BATCH_AXES, REPLICAS, axis_size

VOCABULARY = r"embedder\.embedding|lm_head\.embedding"
"""Parameters with a row for each token id. Rows of zeros are added where `tensor` does not divide their number."""

# The leading axis of everything under `blocks` is the scanned stack of layers and is never split. Weights are [outputs,
# inputs]: `tensor` splits heads and the MLP's inner channels, `fsdp` rows, which are contiguous in memory and in files.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (VOCABULARY, PartitionSpec("tensor", "fsdp")),
    (r"blocks\.\d+\.attention\.(query|key|value)\.weight", PartitionSpec(None, ("tensor", "fsdp"), None)),
    (r"blocks\.\d+\.attention\.(query|key|value)\.bias", PartitionSpec(None, "tensor")),
    (r"blocks\.\d+\.attention\.(query|key)_norm\.scale", PartitionSpec(None, None)),
    (r"blocks\.\d+\.attention\.output\.weight", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks\.\d+\.mlp\.(gate|up)\.weight", PartitionSpec(None, ("tensor", "fsdp"), None)),
    (r"blocks\.\d+\.mlp\.down\.weight", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks\.\d+\.\w+_norm\.scale", PartitionSpec(None, None)),
    (r"final_norm\.scale", PartitionSpec(None)),
)

BATCH = PartitionSpec(BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def parameter_sharding(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of the parameter called `name` (its path, joined by dots).

    Raises:
      UserError: an axis of the mesh does not divide the size that it would split, which is not the vocabulary's.
      KeyError: no rule matches; whoever adds a parameter adds its rule.
    """
    spec = next((spec for pattern, spec in RULES if re.fullmatch(pattern, name)), None)
    if spec is None:
        raise KeyError(f"no sharding rule matches the parameter {name}")
    if len(spec) != len(shape):
        raise KeyError(f"the sharding rule {spec} does not fit the parameter {name} of shape {shape}")
    padded = re.fullmatch(VOCABULARY, name)
    for axis, (size, entry) in enumerate(zip(shape, spec, strict=True)):
        axes = mesh_axes(entry)
        if size % axis_size(mesh, axes) and not (padded and axis == 0):
            parts = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in axes if mesh.shape[axis] > 1)
            raise UserError(f"{parts} does not divide {name}, shape {shape}, along size {size}")
    return NamedSharding(mesh, spec)


def mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that split one axis of an array, from its entry in a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def padded_shape(shape: tuple[int, ...], sharding: NamedSharding) -> tuple[int, ...]:
    """The shape with as many more rows as the sharding needs to split them evenly."""
    parts = axis_size(sharding.mesh, mesh_axes(sharding.spec[0])) if sharding.spec else 1
    return (-(-shape[0] // parts) * parts, *shape[1:])


def parameter_name(path: Any) -> str:
    """The name of a parameter from its path in nested dictionaries."""
    return ".".join(str(key.key) for key in path)


def parameter_shardings(params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """`parameter_sharding` of every array (or shape) in nested dictionaries."""
    return jax.tree_util.tree_map_with_path(
        lambda path, array: parameter_sharding(parameter_name(path), array.shape, mesh), params
    )


def laid_out(params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shapes of parameters as they are on the mesh: with their shardings, and padded where these need it."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(padded_shape(x.shape, sharding), x.dtype, sharding=sharding),
        params,
        parameter_shardings(params, mesh),
    )


def parameter_specs(params: Any, mesh: Mesh) -> Any:
    """`parameter_shardings` without the mesh."""
    return jax.tree.map(lambda sharding: sharding.spec, parameter_shardings(params, mesh))


def with_replicas(spec: PartitionSpec) -> PartitionSpec:
    """The spec with a leading axis that has one entry per replica of the parameters."""
    return PartitionSpec(REPLICAS, *spec)
