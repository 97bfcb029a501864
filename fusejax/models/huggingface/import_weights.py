"""Reads safetensors into device arrays, tensor by tensor, from disk or from a bucket, on any number of hosts.

Every host reads a part of each tensor's rows, which are contiguous in a file, and puts it on its devices. Where a
parameter is split along the other axis, a device's part is a few bytes of every row: the hosts still read whole rows,
and the parts are then redistributed over the devices' interconnect, which is far faster than any storage. So each byte
of a checkpoint is read once, however finely the parameters are split; where they are replicated, once by each host that
holds a replica.

Readers prefetch only a little (see `_LOOK_AHEAD`), and a parameter that stacks many tensors is assembled only on the
devices, so host memory beside the arrays does not depend on the model's depth.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Int

from fusejax.common.cli import UserError
from fusejax.distributed.mesh import axis_size
from fusejax.distributed.sharding import mesh_axes, padded_shape
from fusejax.models.huggingface import safetensors_file
from fusejax.models.huggingface.names import Parameter
from fusejax.models.huggingface.safetensors_file import DTYPES, Tensor

Shardings = Callable[[str, tuple[int, ...]], NamedSharding]
"""From a parameter's path and shape to its sharding."""

# In checkpoints of text and images (Gemma 3): what the language model's names begin with, as published, as transformers
# has them in memory, and as it has them without the head, beside what they begin with in a checkpoint of the language
# model alone; and what the names of all other tensors begin with.
_LANGUAGE_MODEL = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "language_model.": "model.",
}
_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")

# What the names begin with in checkpoints of the model without its head, as `AutoModel` saves them.
_WITHOUT_HEAD = ("embed_tokens.", "layers.", "norm.")

_LOOK_AHEAD = 2**28
"""How many bytes may be read but not yet on a device. A larger tensor is read while nothing else is."""
_READERS = 8
_ALIGNMENT = 64
_TASK_BYTES = 2**24
"""What one reader reads at a time; of a remote file, with one request."""


def read_parameters(
    tensors: Mapping[str, Tensor], table: list[Parameter], *, dtype: DTypeLike, shardings: Shardings
) -> dict[str, jax.Array]:
    """Every parameter by its path. With several processes, all must call this, with the same arguments.

    Args:
      tensors: has all that the table names, in their shapes (`check_tensors`).
      table: see `names.parameters`.
      dtype: what the parameters are converted to, on the devices.
      shardings: their meshes must have axes of type `Auto`. Rows of zeros are added to a parameter whose rows they do
        not divide.

    Raises:
      UserError: a file cannot be read, or is shorter than its header said; a weight is NaN or infinite.
    """
    where = {parameter.path: shardings(parameter.path, parameter.shape) for parameter in table}
    arrays: dict[str, jax.Array] = {}
    finite: list[tuple[_Part, jax.Array]] = []
    with _Readers(_parts(tensors, table, where)) as readers:
        for parameter in table:
            if parameter.stacked:
                arrays[parameter.path] = _empty(parameter.shape, dtype, where[parameter.path])
        for part, buffers in readers:
            path, sharding = part.parameter.path, where[part.parameter.path]
            shards = [
                jax.device_put(buffer, device)
                for devices, buffer in zip(part.rows.values(), buffers, strict=True)
                for device in devices
            ]
            tensor = jax.make_array_from_single_device_arrays(part.shape, part.sharding, shards)
            finite.append((part, all_finite(tensor)))
            if part.parameter.stacked:
                arrays[path] = _fill(arrays[path], tensor, part.block, sharding=sharding)
            else:
                rows, *_ = padded_shape(part.parameter.shape, sharding)
                arrays[path] = _laid_out(tensor, rows=rows, dtype=dtype, sharding=sharding)
            arrays[path].block_until_ready()
            del shards, tensor, buffers
    for part, is_finite in finite:
        if not is_finite:
            name = part.parameter.hf_names[part.block]
            raise UserError(f"{part.tensor.file}: {name} has NaN or infinite weights: the checkpoint is broken")
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


def language_model_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's tensors as the language model by itself has them, and those for images.

    Of a checkpoint of text and images, the language model's tensors get the names that they have without the rest; all
    tensors of any other checkpoint stay as they are, but for the `model.` that they lack where it has no head.
    """
    if not any(name.startswith("model.") for name in tensors):
        tensors = {"model." * name.startswith(_WITHOUT_HEAD) + name: tensor for name, tensor in tensors.items()}
    renamed = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in _LANGUAGE_MODEL if name.startswith(prefix)), "")
        renamed[_LANGUAGE_MODEL.get(prefix, "") + name.removeprefix(prefix)] = tensor
    if renamed.keys() == tensors.keys():
        return renamed, {}
    images = {name: tensor for name, tensor in renamed.items() if name.startswith(_IMAGES)}
    return {name: tensor for name, tensor in renamed.items() if name not in images}, images


def check_tensors(tensors: Mapping[str, Tensor], table: list[Parameter], directory: epath.Path, *, tied: bool) -> None:
    """Checks that the tensors are exactly those of the table, in their shapes.

    Raises:
      UserError: they are not; the message names a tensor.
    """
    expected = {name: parameter for parameter in table for name in parameter.hf_names}
    found = set(tensors)
    if tied and "lm_head.weight" in found:
        # Some exporters also write the tied projection. If it differs from the embedding it would be lost: an error.
        if not _equal(tensors["lm_head.weight"], tensors.get("model.embed_tokens.weight")):
            raise UserError(
                f"{directory}: tie_word_embeddings is set, but lm_head.weight differs from model.embed_tokens.weight"
            )
        found.remove("lm_head.weight")
    # Llama checkpoints of 2023 carry the rotary frequencies, which follow from config.json.
    found = {name for name in found if not name.endswith(".rotary_emb.inv_freq")}
    missing = expected.keys() - found
    if missing == {"lm_head.weight"}:
        raise UserError(
            f"{directory}: missing tensor lm_head.weight: the checkpoint was saved without the model's head; take one "
            "with it, or set tie_word_embeddings in config.json if the embedding is the head"
        )
    if missing:
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
    shape: tuple[int, ...]
    """Of the tensor as it is read: with rows of zeros at the end where the sharding does not divide its own."""
    sharding: NamedSharding
    """Of the tensor as it is read: split only along its rows."""
    rows: dict[tuple[int, int], list[Any]]
    """From a range of rows to the devices that get it."""

    @property
    def dtype(self) -> np.dtype:
        """Of the host's buffers: that of the file, to be converted on the device; but devices have no float64."""
        dtype = DTYPES[self.tensor.dtype]
        return np.dtype(np.float32) if dtype == np.float64 else dtype

    @property
    def nbytes(self) -> int:
        """Of the host's buffers."""
        return sum(map(_padded, self._sizes()))

    def buffers(self, memory: np.ndarray) -> list[np.ndarray]:
        """Views of `memory`, one for each range of rows."""
        starts = itertools.accumulate(map(_padded, self._sizes()), initial=0)
        return [
            memory[start : start + size].view(self.dtype).reshape(-1, *self.tensor.shape[1:])
            for start, size in zip(starts, self._sizes(), strict=False)
        ]

    def _sizes(self) -> list[int]:
        row = math.prod(self.tensor.shape[1:]) * self.dtype.itemsize
        return [row * (stop - start) for start, stop in self.rows]


def _parts(tensors: Mapping[str, Tensor], table: list[Parameter], where: Mapping[str, NamedSharding]) -> list[_Part]:
    """In the order in which they lie in the files, which is the same in every process."""
    parts = []
    for parameter in table:
        shape, sharding = _read_layout(parameter, where[parameter.path])
        rows: dict[tuple[int, int], list[Any]] = collections.defaultdict(list)
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            assert index is not None
            start, stop, _ = index[0].indices(shape[0])
            rows[start, stop].append(device)
        parts += [
            _Part(parameter, block, tensors[name], shape, sharding, rows)
            for block, name in enumerate(parameter.hf_names)
        ]
    return sorted(parts, key=lambda part: (str(part.tensor.file), part.tensor.offset))


def _read_layout(parameter: Parameter, sharding: NamedSharding) -> tuple[tuple[int, ...], NamedSharding]:
    """The tensor split along its rows, over all mesh axes that split the parameter at all, and its shape for that."""
    rows, *others = [mesh_axes(entry) for entry in sharding.spec[parameter.stacked :]] or [()]
    axes = (*rows, *itertools.chain(*others))
    if parameter.stacked and parameter.hf_shape[0] % axis_size(sharding.mesh, axes):
        axes = rows
    split = NamedSharding(sharding.mesh, PartitionSpec(axes))
    return padded_shape(parameter.hf_shape, split), split


# Reading


class _Readers:
    """Threads that read parts ahead of the loop over them, each part into one buffer per range of its rows.

    Parts of stacked parameters, which the devices copy, are read into reused memory, as new memory is slow. The memory
    of any other part may become the parameter itself, so it is not reused.
    """

    def __init__(self, parts: list[_Part]):
        largest = max((part.nbytes for part in parts if part.parameter.stacked), default=0)
        self._limit = min(_LOOK_AHEAD, max(part.nbytes for part in parts))
        self._spare = [_aligned(largest) for _ in range(max(1, self._limit // max(largest, 1)))]
        self._waiting = collections.deque(parts)
        self._reading: collections.deque[tuple[_Part, np.ndarray, list[concurrent.futures.Future[None]]]]
        self._reading = collections.deque()
        self._pool = concurrent.futures.ThreadPoolExecutor(_READERS, "weights")
        self._read_on()

    def __enter__(self) -> "_Readers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[_Part, list[np.ndarray]]]:
        """The parts in order; a part's buffers are valid until the next part is requested."""
        while self._reading:
            part, memory, tasks = self._reading.popleft()
            for task in tasks:
                task.result()
            yield part, part.buffers(memory)
            if part.parameter.stacked:
                self._spare.append(memory)
            del memory
            self._read_on()

    def _read_on(self) -> None:
        while self._waiting and self._has_room(self._waiting[0]):
            part = self._waiting.popleft()
            memory = self._spare.pop() if part.parameter.stacked else _aligned(part.nbytes)
            tasks = [self._pool.submit(_read_rows, *task) for task in _tasks(part, part.buffers(memory))]
            self._reading.append((part, memory, tasks))

    def _has_room(self, part: _Part) -> bool:
        held = sum(other.nbytes for other, *_ in self._reading)
        has_memory = bool(self._spare) or not part.parameter.stacked
        return not self._reading or (held + part.nbytes <= self._limit and has_memory)


def _tasks(part: _Part, buffers: list[np.ndarray]) -> Iterator[tuple[Tensor, int, np.ndarray]]:
    """What each call of `_read_rows` gets."""
    step = max(1, _TASK_BYTES * part.tensor.shape[0] // part.tensor.nbytes)
    for (first, _), buffer in zip(part.rows, buffers, strict=True):
        there = max(0, part.tensor.shape[0] - first)
        buffer[there:] = 0
        for start in range(0, min(there, len(buffer)), step):
            yield part.tensor, first + start, buffer[start : min(start + step, there)]


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _aligned(nbytes: int) -> np.ndarray:
    """Aligned memory, which a CPU device can use without copying it."""
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def _read_rows(tensor: Tensor, first: int, target: np.ndarray) -> None:
    """Reads as many rows as `target` has, which may be of another dtype."""
    dtype = DTYPES[tensor.dtype]
    rows = target if target.dtype == dtype else np.empty(target.shape, dtype)
    row_bytes = tensor.nbytes // tensor.shape[0]
    content = rows.reshape(-1).view(np.uint8).data
    safetensors_file.read_range(tensor.file, tensor.offset + first * row_bytes, content)
    if rows is not target:
        target[...] = rows


# On the devices


@jax.jit
def all_finite(tensor: jax.Array) -> jax.Array:
    """Whether no value is NaN or infinite, asked of the devices, whose memory is far faster than any storage."""
    return jnp.isfinite(tensor).all()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(shape: tuple[int, ...], dtype: DTypeLike, sharding: NamedSharding) -> jax.Array:
    """An uninitialised array."""
    return jax.lax.with_sharding_constraint(jax.lax.empty(shape, dtype), sharding)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="sharding")
def _fill(
    stack: jax.Array, tensor: jax.Array, block: int | Int[jax.Array, ""], *, sharding: NamedSharding
) -> jax.Array:
    """Writes one tensor to index `block` of `stack`, in place."""
    update = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    on_cpu = sharding.mesh.devices.flat[0].platform == "cpu"
    if on_cpu and tensor.dtype == stack.dtype:
        # As integers: bfloat16 would go through float32 there, at half the speed. Elsewhere this would make a copy.
        bits = functools.partial(jax.lax.bitcast_convert_type, new_dtype=f"uint{8 * stack.dtype.itemsize}")
        filled = jax.lax.bitcast_convert_type(update(bits(stack), bits(tensor), block), stack.dtype)
    else:
        filled = update(stack, tensor.astype(stack.dtype), block)
    return jax.lax.with_sharding_constraint(filled, sharding)


def _laid_out(tensor: jax.Array, *, rows: int, dtype: DTypeLike, sharding: NamedSharding) -> jax.Array:
    """The tensor's first rows in a dtype and a sharding; the tensor itself if that is what it is."""
    in_place = tensor.sharding.is_equivalent_to(sharding, tensor.ndim)
    if tensor.dtype == dtype and len(tensor) == rows and in_place:
        return tensor
    return _convert(tensor, rows=rows, dtype=dtype, sharding=sharding)


@functools.partial(jax.jit, static_argnames=("rows", "dtype", "sharding"))
def _convert(tensor: jax.Array, *, rows: int, dtype: DTypeLike, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(tensor[:rows], sharding).astype(dtype)
