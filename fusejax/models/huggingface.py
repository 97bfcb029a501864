"""Hugging Face checkpoints in and out, tensor by tensor: the whole model is never in host memory twice.

Import is strict: a tensor that is missing, unexpected or misshapen is named. The names are in `names.py`.
"""

import contextlib
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fusejax.cli import UserError, one_line
from fusejax.files import check_writable, temporary_name, write_text
from fusejax.models.config import DecoderConfig
from fusejax.models.decoder import Decoder, Remat, named_parameters
from fusejax.models.names import Parameter, parameters

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = ("F64", "F32", "F16", "BF16")
# What belongs to a tokenizer, or to generating with it; everything else of a checkpoint is weights and config.json.
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "generation_config.json",
)

Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""From a parameter's path and shape to where it lives."""


def resolve(source: str) -> Path:
    """The local directory of a checkpoint, downloaded first where `source` is a Hub id.

    Raises:
      UserError: neither a directory nor a repository that can be had.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"model {source}: a file; expected the directory of a Hugging Face checkpoint, or a Hub id")
    try:
        patterns = ["*.json", "model*.safetensors", *_TOKENIZER_FILES]
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=patterns))
    except HFValidationError:
        raise UserError(f"model {source}: no such directory, and not a Hub id either") from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"model {source}: no such directory, and not to be had from the Hub ({one_line(error)})"
        ) from None


def read_config(directory: str | Path) -> DecoderConfig:
    """The decoder's shape from `config.json`.

    Raises:
      UserError: no such file, not JSON, or a model that is not supported.
    """
    path = Path(directory) / "config.json"
    values = read_json(path)
    try:
        return DecoderConfig.from_hf(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def init(
    config: DecoderConfig,
    *,
    seed: int = 0,
    param_dtype: jnp.dtype = jnp.float32,
    compute_dtype: jnp.dtype = jnp.float32,
    remat: Remat = "none",
) -> Decoder:
    """A decoder with random parameters, the same for the same seed."""
    make = functools.partial(Decoder, config, param_dtype=param_dtype, compute_dtype=compute_dtype, remat=remat)
    # JAX's default generator would take seconds to compile.
    return nnx.jit(lambda: make(rngs=nnx.Rngs(jax.random.key(seed, impl="rbg"))))()


def load(
    source: str,
    *,
    param_dtype: jnp.dtype = jnp.float32,
    compute_dtype: jnp.dtype = jnp.float32,
    remat: Remat = "none",
    shardings: Shardings | None = None,
) -> Decoder:
    """Reads a checkpoint; each device's part of each parameter is read on its own.

    Args:
      source: a directory with `config.json` and safetensors (one file, or several with an index), or a Hub id.
      param_dtype: what the parameters are converted to.
      compute_dtype: see `Decoder`.
      remat: see `Decoder`.
      shardings: where each parameter lives; by default all on the first device.

    Raises:
      UserError: as `resolve` and `read_config`, or a file or tensor of the checkpoint is wrong.
    """
    directory = resolve(source)
    config = read_config(directory)
    if shardings is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def shardings(path: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
            return here

    make = functools.partial(Decoder, config, param_dtype=param_dtype, compute_dtype=compute_dtype, remat=remat)
    shapes = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(shapes, nnx.Param)
    variables = named_parameters(state)
    table = parameters(config)
    with _open(directory) as tensors:
        _check(tensors, table, directory, tied=config.tie_embeddings)
        for parameter in table:
            read = functools.partial(_read, tensors, parameter, dtype=param_dtype)
            sharding = shardings(parameter.path, parameter.shape)
            array = jax.make_array_from_callback(parameter.shape, sharding, read)
            variables.pop(parameter.path).set_value(array)
    assert not variables, f"not in the table of names: {sorted(variables)}"
    return nnx.merge(graphdef, state)


def save(
    model: nnx.Module | nnx.State,
    config: DecoderConfig,
    directory: str | Path,
    *,
    hf_config: Mapping[str, Any],
    dtype: Any,
    max_shard_bytes: float = 5e9,
    tokenizer_from: str | Path | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes `config.json` and sharded safetensors with their index, ready for transformers and vLLM.

    Everything is written to a temporary directory beside `directory`, which then takes its name: there is never half
    an export.

    Args:
      model: the decoder, or its parameters.
      config: its shape, which must be what `hf_config` says.
      directory: must not exist, or be empty.
      hf_config: what goes into `config.json`; its dtype is set here.
      dtype: of the tensors written, such as "bfloat16".
      max_shard_bytes: of one file, but never less than one tensor.
      tokenizer_from: a checkpoint whose tokenizer files are copied along (`copy_tokenizer`).
      generation_config: what goes into `generation_config.json`; by default it is only copied along.

    Raises:
      UserError: as `check_target`.
    """
    directory = Path(directory).resolve()
    if DecoderConfig.from_hf(dict(hf_config)) != config:
        raise ValueError("hf_config describes another decoder than config")
    check_target(directory)
    partial = temporary_name(directory)
    partial.mkdir(parents=True)
    try:
        _write_weights(named_parameters(model), config, partial, jnp.dtype(dtype), max_shard_bytes)
        key = "dtype" if "dtype" in hf_config else "torch_dtype"  # transformers 5 renamed it, and reads both
        _write_json(partial / "config.json", {**hf_config, key: jnp.dtype(dtype).name})
        if tokenizer_from is not None:
            copy_tokenizer(tokenizer_from, partial)
        if generation_config is not None:
            _write_json(partial / "generation_config.json", generation_config)
        partial.replace(directory)
    except BaseException:
        shutil.rmtree(partial)
        raise


def check_target(directory: Path) -> None:
    """Whether `save` can make `directory`, to be asked before the weights are read.

    Raises:
      UserError: it holds something already, or must not be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already; remove it or choose another directory")
    check_writable(directory.absolute().parent, "the folder")


def copy_tokenizer(source: str | Path, target: str | Path) -> None:
    """Copies the tokenizer's files, with the chat template and `generation_config.json`, where there are any."""
    for pattern in _TOKENIZER_FILES:
        for path in Path(source).glob(pattern):
            if path.is_dir():
                shutil.copytree(path, Path(target) / path.name, dirs_exist_ok=True)
            else:
                shutil.copy(path, Path(target) / path.name)


@contextlib.contextmanager
def _open(directory: Path) -> Iterator[dict[str, Any]]:
    """The checkpoint's tensors by name, as safetensors slices: nothing is read yet but the headers."""
    index = directory / _INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index}: no weight_map")
    elif (directory / _SINGLE).exists():
        weight_map = None
    else:
        raise UserError(f"{directory}: neither {_SINGLE} nor {_INDEX}; other formats of weights are not read")
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for name in sorted(set(weight_map.values())) if weight_map is not None else [_SINGLE]:
            path = directory / name
            try:
                file = stack.enter_context(safe_open(path, framework="np"))
            except FileNotFoundError:
                raise UserError(f"{path}: no such file, but {_INDEX} names it") from None
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: not a whole safetensors file ({error})") from None
            tensors |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        yield tensors


def _check(tensors: Mapping[str, Any], table: list[Parameter], directory: Path, *, tied: bool) -> None:
    """Every tensor of the table is there in its shape, and no other."""
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
        shape, dtype = tuple(tensors[name].get_shape()), tensors[name].get_dtype()
        if shape != parameter.hf_shape:
            raise UserError(f"{directory}: {name} has shape {shape}; config.json asks for {parameter.hf_shape}")
        if dtype not in _DTYPES:
            raise UserError(f"{directory}: {name} is {dtype}; only {', '.join(_DTYPES)} can be read")


def _listed(what: str, names: set[str]) -> str:
    shown = sorted(names)[:3]
    return f"{what}{'s' * (len(names) > 1)} {', '.join(shown)}" + f" and {len(names) - 3} more" * (len(names) > 3)


def _equal(one: Any, other: Any, rows: int = 4096) -> bool:
    """Whether two matrices on disk are equal, compared some rows at a time."""
    if other is None or one.get_shape() != other.get_shape():
        return False
    size = one.get_shape()[0]
    parts = (slice(start, min(start + rows, size)) for start in range(0, size, rows))
    return all(np.array_equal(one[part], other[part]) for part in parts)


def _read(tensors: Mapping[str, Any], parameter: Parameter, index: tuple[slice, ...], dtype: jnp.dtype) -> np.ndarray:
    """One device's part of a parameter."""
    if not parameter.stacked:
        return parameter.read(tensors[parameter.hf_names[0]], index).astype(dtype)
    blocks, *rest = index
    names = parameter.hf_names[blocks]
    sizes = [len(range(*part.indices(size))) for part, size in zip(rest, parameter.shape[1:], strict=True)]
    array = np.empty((len(names), *sizes), dtype)
    for i, name in enumerate(names):
        array[i] = parameter.read(tensors[name], tuple(rest))
    return array


def _write_weights(
    variables: Mapping[str, nnx.Param],
    config: DecoderConfig,
    directory: Path,
    dtype: np.dtype,
    max_shard_bytes: float,
) -> None:
    table = parameters(config)
    entries = [(name, parameter, block) for parameter in table for block, name in enumerate(parameter.hf_names)]
    shards: list[list[tuple[str, Parameter, int]]] = [[]]
    room = max_shard_bytes
    for entry in entries:
        size = math.prod(entry[1].hf_shape) * dtype.itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(entry)
        room -= size

    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name, parameter, block in shard:
            array = variables[parameter.path].get_value()
            array = np.asarray(array[block] if parameter.stacked else array)
            tensors[name] = parameter.to_hf(array.astype(dtype, copy=False))
            weight_map[name] = file
        save_file(tensors, directory / file, metadata={"format": "pt"})  # which transformers insists on
    total = sum(math.prod(parameter.hf_shape) * len(parameter.hf_names) for parameter in table) * dtype.itemsize
    _write_json(directory / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    for file in set(weight_map.values()):  # safetensors lets no one else read its files
        shutil.copymode(directory / _INDEX, directory / file)


def read_json(path: Path) -> dict[str, Any]:
    """The object in one of a checkpoint's JSON files.

    Raises:
      UserError: no such file, or no JSON object in it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a Hugging Face checkpoint") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
