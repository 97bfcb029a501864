"""Safetensors into device arrays, tensor by tensor, wherever the file lies and however many hosts take part.

Every host reads a part of each tensor's rows, in Hugging Face's layout, because only rows are contiguous in a file.
Most of our kernels are split along the other axis, where a device's part is a few bytes of every row. So the hosts
share out the rows, and the devices exchange what they need over their interconnect, which is far faster than any
storage. Each byte of a checkpoint is then read once, however finely the parameters are split; where they are
replicated, once by each host that holds a replica.

Readers run ahead of the devices, but hold little (see `_LOOK_AHEAD`), and a parameter that stacks many tensors is
assembled on the devices alone: host memory beside the arrays does not depend on the model's depth.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from fusejax.cli import UserError
from fusejax.files import is_remote
from fusejax.models import safetensors_file
from fusejax.models.names import Parameter, strip_rows
from fusejax.models.safetensors_file import DTYPES, Tensor

Shardings = Callable[[str, tuple[int, ...]], NamedSharding]
"""From a parameter's path and shape to where it lives."""

_LOOK_AHEAD = 2**28
"""How many bytes may be read but not yet on a device. But a tensor that is larger is read when nothing else is."""
_READERS = 8
_ALIGNMENT = 64
_TASK_BYTES = 2**24
"""What one reader reads at a time; of a remote file, with one request."""


def read_parameters(
    tensors: Mapping[str, Tensor], table: list[Parameter], *, dtype: jnp.dtype, shardings: Shardings
) -> dict[str, jax.Array]:
    """Every parameter by its path. With several processes, all must call this, with the same arguments.

    Args:
      tensors: has all that the table names, in their shapes (`check_tensors`).
      table: see `names.parameters`.
      dtype: what the parameters are converted to, on the devices.
      shardings: their meshes must have axes of type `Auto`.

    Raises:
      UserError: a file cannot be read, or is shorter than its header said.
    """
    where = {parameter.path: shardings(parameter.path, parameter.shape) for parameter in table}
    stacks = tuple((parameter.path, parameter.shape, where[parameter.path]) for parameter in table if parameter.stacked)
    arrays = _empty(stacks, dtype)
    for part, buffers in _read_ahead(_parts(tensors, table, where)):
        path, sharding = part.parameter.path, where[part.parameter.path]
        shards = [
            jax.device_put(buffer, device)
            for devices, buffer in zip(part.rows.values(), buffers, strict=True)
            for device in devices
        ]
        matrix = jax.make_array_from_single_device_arrays(part.parameter.matrix_shape, part.sharding, shards)
        layout = _Layout(part.parameter.inner_shape, sharding, _matrix_sharding(part.parameter, sharding))
        if part.parameter.stacked:
            arrays[path] = _fill(arrays[path], matrix, part.block, layout=layout)
        elif (
            matrix.dtype == dtype
            and matrix.shape == layout.shape
            and matrix.sharding.is_equivalent_to(sharding, matrix.ndim)
        ):
            arrays[path] = matrix
        else:
            arrays[path] = _convert(matrix, dtype=dtype, layout=layout)
        arrays[path].block_until_ready()
        del shards, matrix, buffers
    return arrays


def find_tensors(directory: epath.Path, files: list[str]) -> dict[str, Tensor]:
    """All tensors of some files of a directory, by name; only headers are read, of many files at once.

    Raises:
      FileNotFoundError: a file is not there.
      UserError: a file is no whole safetensors file.
    """
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        headers = list(pool.map(safetensors_file.read_header, [directory / name for name in files]))
    return {name: tensor for header in headers for name, tensor in header.items()}


def check_tensors(tensors: Mapping[str, Tensor], table: list[Parameter], directory: epath.Path, *, tied: bool) -> None:
    """Every tensor of the table is there in its shape, and no other.

    Raises:
      UserError: it is not so; a tensor is named.
    """
    expected = {name: parameter for parameter in table for name in parameter.hf_names}
    found = set(tensors)
    if tied and "lm_head.weight" in found:
        # Some exporters write the tied projection, too. Another content would be lost: it is an error then.
        if not _equal(tensors["lm_head.weight"], tensors.get("model.embed_tokens.weight")):
            raise UserError(
                f"{directory}: tie_word_embeddings is set, but lm_head.weight differs from model.embed_tokens.weight"
            )
        found.remove("lm_head.weight")
    # Llama checkpoints of 2023 carry the rotary frequencies, which follow from config.json.
    found = {name for name in found if not name.endswith(".rotary_emb.inv_freq")}
    if missing := expected.keys() - found:
        raise UserError(f"{directory}: {_listed('missing tensor', missing)}")
    if unexpected := found - expected.keys():
        raise UserError(f"{directory}: {_listed('unexpected tensor', unexpected)}")
    for name, parameter in expected.items():
        shape, dtype = tensors[name].shape, tensors[name].dtype
        if shape != parameter.hf_shape:
            raise UserError(f"{directory}: {name} has shape {shape}; config.json asks for {parameter.hf_shape}")
        if dtype not in DTYPES:
            raise UserError(f"{directory}: {name} is {dtype}; only {', '.join(DTYPES)} can be read")


def _listed(what: str, names: set[str]) -> str:
    shown = sorted(names)[:3]
    return f"{what}{'s' * (len(names) > 1)} {', '.join(shown)}" + f" and {len(names) - 3} more" * (len(names) > 3)


def _equal(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors on disk are equal, bit for bit, compared some bytes at a time."""
    if other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    for start in range(0, one.nbytes, _TASK_BYTES):
        size = min(_TASK_BYTES, one.nbytes - start)
        pieces = bytearray(size), bytearray(size)
        for tensor, piece in zip((one, other), pieces, strict=True):
            safetensors_file.read_range(tensor.file, tensor.offset + start, memoryview(piece))
        if pieces[0] != pieces[1]:
            return False
    return True


# What to read


@dataclasses.dataclass(frozen=True)
class _Part:
    """A tensor, and those of its rows that this process reads."""

    parameter: Parameter
    block: int
    """Which of the parameter's stacked tensors it is."""
    tensor: Tensor
    sharding: NamedSharding
    """Of the matrix (`Parameter.matrix_shape`) as it is read: split along rows alone."""
    rows: dict[tuple[int, int], list[Any]]
    """From a range of rows to the devices that get it."""

    @property
    def dtype(self) -> np.dtype:
        """As it goes to the device, where the conversion is done; but no device has float64."""
        dtype = DTYPES[self.tensor.dtype]
        return np.dtype(np.float32) if dtype == np.float64 else dtype

    @property
    def nbytes(self) -> int:
        """Of the host's buffers."""
        row = math.prod(self.tensor.shape[1:]) * self.dtype.itemsize
        return row * sum(stop - start for start, stop in self.rows)


def _parts(tensors: Mapping[str, Tensor], table: list[Parameter], where: Mapping[str, NamedSharding]) -> list[_Part]:
    """In the order in which they lie in the files, which is the same in every process."""
    parts = []
    for parameter in table:
        sharding = _read_sharding(parameter, where[parameter.path])
        rows: dict[tuple[int, int], list[Any]] = collections.defaultdict(list)
        for device, index in sharding.addressable_devices_indices_map(parameter.matrix_shape).items():
            assert index is not None
            start, stop, _ = index[parameter.row_axis].indices(parameter.hf_shape[0])
            rows[start, stop].append(device)
        parts += [
            _Part(parameter, block, tensors[name], sharding, rows) for block, name in enumerate(parameter.hf_names)
        ]
    return sorted(parts, key=lambda part: (str(part.tensor.file), part.tensor.offset))


def _read_sharding(parameter: Parameter, sharding: NamedSharding) -> NamedSharding:
    """The matrix split along its rows, over all mesh axes that split the parameter at all."""
    groups = [[axis for entry in group for axis in entry] for group in _mesh_axes(parameter, sharding)]
    own = groups.pop(parameter.row_axis)
    axes = own + [axis for group in groups for axis in group]
    if parameter.hf_shape[0] % math.prod(sharding.mesh.shape[axis] for axis in axes):
        axes = own
    spec: list[Any] = [None] * len(parameter.hf_shape)
    spec[parameter.row_axis] = tuple(axes)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def _matrix_sharding(parameter: Parameter, sharding: NamedSharding) -> NamedSharding:
    """The matrix split as the parameter is: of flattened axes only the first can split it in whole ranges."""
    groups = _mesh_axes(parameter, sharding)
    return NamedSharding(sharding.mesh, PartitionSpec(*(tuple(group[0]) for group in groups)))


def _mesh_axes(parameter: Parameter, sharding: NamedSharding) -> list[list[list[str]]]:
    """The mesh axes that split each axis, grouped as the matrix flattens them."""
    entries = [*sharding.spec, *[None] * (len(parameter.shape) - len(sharding.spec))]
    entries = entries[1:] if parameter.stacked else entries
    named = iter([[entry] if isinstance(entry, str) else list(entry or ()) for entry in entries])
    return [[next(named) for _ in axes] for axes in parameter.axes]


# Reading


def _read_ahead(parts: list[_Part]) -> Iterator[tuple[_Part, list[np.ndarray]]]:
    """The parts in order, each with one matrix for each range of its rows, while the next are being read."""
    limit = min(_LOOK_AHEAD, max(part.nbytes for part in parts))
    spare: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    waiting = collections.deque(parts)
    reading: collections.deque[tuple[_Part, list[np.ndarray], list[concurrent.futures.Future[None]]]]
    reading = collections.deque()
    held = 0
    with concurrent.futures.ThreadPoolExecutor(_READERS, "weights") as pool:
        try:
            while waiting or reading:
                while waiting and (not reading or held + waiting[0].nbytes <= limit):
                    part = waiting.popleft()
                    held += part.nbytes
                    reading.append((part, *_start_reading(part, spare, pool)))
                part, buffers, tasks = reading.popleft()
                for task in tasks:
                    task.result()
                yield part, buffers
                if part.parameter.stacked:  # the buffers have been copied; others may have become the parameter itself
                    for buffer in buffers:
                        spare[buffer.nbytes].append(buffer.reshape(-1).view(np.uint8))
                        del buffer
                del buffers
                held -= part.nbytes
        finally:
            pool.shutdown(cancel_futures=True)


def _start_reading(
    part: _Part, spare: dict[int, list[np.ndarray]], pool: concurrent.futures.Executor
) -> tuple[list[np.ndarray], list[concurrent.futures.Future[None]]]:
    """Buffers in our orientation, and what fills them. Spare memory by its size is used again: new memory is slow."""
    buffers, tasks = [], []
    row_bytes = part.tensor.nbytes // part.tensor.shape[0]
    step = max(1, _TASK_BYTES // row_bytes)
    for first, last in part.rows:
        shape = list(part.parameter.matrix_shape)
        shape[part.parameter.row_axis] = last - first
        nbytes = math.prod(shape) * part.dtype.itemsize
        if not spare[nbytes]:
            spare.clear()  # so that spare memory and memory in use are together no more than was ever in use
            spare[nbytes].append(_aligned(nbytes))
        memory = spare[nbytes].pop()
        buffer = memory.view(part.dtype).reshape(shape)
        by_row = buffer.T if part.parameter.transposed else buffer
        buffers.append(buffer)
        for start in range(first, last, step):
            stop = min(start + step, last)
            tasks.append(pool.submit(_read_rows, part.tensor, start, by_row[start - first : stop - first]))
    return buffers, tasks


def _aligned(nbytes: int) -> np.ndarray:
    """Bytes that a CPU device can use as they are, without copying them."""
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def _read_rows(tensor: Tensor, first: int, target: np.ndarray) -> None:
    """Reads as many rows as `target` has, which may be a transposed view, or of another dtype."""
    dtype = DTYPES[tensor.dtype]
    if dtype == target.dtype:  # only bits are moved; NumPy is slow at moving dtypes that are not its own
        dtype = np.dtype(f"u{dtype.itemsize}")
        target = target.view(dtype)
    row_bytes = tensor.nbytes // tensor.shape[0]
    # What was just read is still in the core's cache when it is moved. But of a remote file, a request has its price.
    strip = strip_rows(row_bytes)
    direct = dtype == target.dtype and target.flags.c_contiguous
    at_a_time = len(target) if direct or is_remote(tensor.file) else min(strip, len(target))
    buffer = target if direct else np.empty((at_a_time, *target.shape[1:]), dtype)
    for start in range(0, len(target), at_a_time):
        rows = buffer[: len(target) - start]
        content = rows.reshape(-1).view(np.uint8).data
        safetensors_file.read_range(tensor.file, tensor.offset + (first + start) * row_bytes, content)
        if not direct:
            for i in range(0, len(rows), strip):
                moved = rows[i : i + strip]
                target[start + i : start + i + len(moved)] = moved


# On the devices


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What becomes of a matrix: first it is split as the parameter is, then its axes are what they are there."""

    shape: tuple[int, ...]
    sharding: NamedSharding
    matrix_sharding: NamedSharding

    @property
    def on_cpu(self) -> bool:
        return self.sharding.mesh.devices.flat[0].platform == "cpu"

    def __call__(self, matrix: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(matrix, self.matrix_sharding).reshape(self.shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _empty(stacks: tuple[tuple[str, tuple[int, ...], NamedSharding], ...], dtype: jnp.dtype) -> dict[str, jax.Array]:
    """Arrays by path, with anything in them."""
    return {
        path: jax.lax.with_sharding_constraint(jax.lax.empty(shape, dtype), sharding)
        for path, shape, sharding in stacks
    }


@functools.partial(jax.jit, donate_argnums=0, static_argnames="layout")
def _fill(stack: jax.Array, matrix: jax.Array, block: int, *, layout: _Layout) -> jax.Array:
    """Puts one tensor into its place, in the very memory of `stack`."""
    update = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    if layout.on_cpu and matrix.dtype == stack.dtype:
        # As integers: bfloat16 would go through float32 there, at half the speed. Elsewhere this would make a copy.
        bits = functools.partial(jax.lax.bitcast_convert_type, new_dtype=f"uint{8 * stack.dtype.itemsize}")
        filled = update(bits(stack), layout(bits(matrix)), block)
        filled = jax.lax.bitcast_convert_type(filled, stack.dtype)
    else:
        filled = update(stack, layout(matrix).astype(stack.dtype), block)
    return jax.lax.with_sharding_constraint(filled, layout.sharding)


@functools.partial(jax.jit, static_argnames=("dtype", "layout"))
def _convert(matrix: jax.Array, *, dtype: jnp.dtype, layout: _Layout) -> jax.Array:
    return jax.lax.with_sharding_constraint(layout(matrix).astype(dtype), layout.sharding)
