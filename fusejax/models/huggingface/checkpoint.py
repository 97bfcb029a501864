"""Hugging Face checkpoints in and out. `import_weights` and `export_weights` stream the weights.

Import is strict: a tensor that is missing, unexpected or misshapen is named. The names are in `names.py`.
"""

import atexit
import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
from etils import epath
from etils.epath.typing import PathLike
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from fusejax.common.cli import UserError, note, one_line
from fusejax.common.files import check_writable, copy, is_remote, local_copies, temporary_name, write_text
from fusejax.common.small_files import shown
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.decoder import Decoder, abstract_decoder, named_parameters
from fusejax.models.huggingface.checkpoint_files import TOKENIZER_FILES, read_values, tokenizer_files
from fusejax.models.huggingface.export_files import CARD, exported_config, portable, write_json, write_tokenizer
from fusejax.models.huggingface.export_weights import INDEX, Arrays, Source, WeightFiles, on_first_process
from fusejax.models.huggingface.import_weights import (
    Shardings,
    check_tensors,
    find_tensors,
    language_model_tensors,
    read_parameters,
)
from fusejax.models.huggingface.names import parameters
from fusejax.models.huggingface.safetensors_file import Tensor

_SINGLE = "model.safetensors"
_downloads = contextlib.ExitStack()
atexit.register(_downloads.close)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a Hugging Face checkpoint is."""

    weights: epath.Path
    """The directory of its safetensors files, on disk or in a bucket."""
    files: Path
    """A directory on disk with everything else: `config.json`, the tokenizer."""


def find(source: str) -> Checkpoint:
    """A checkpoint by its directory, which may be in `gs://`, or by its Hub id.

    From the Hub, every host downloads the whole checkpoint, to the Hub's cache on its disk.

    Raises:
      UserError: neither a directory nor a repository that can be downloaded.
    """
    if is_remote(source):
        return Checkpoint(epath.Path(source), local_files(source))
    path = Path(source).expanduser()
    if path.exists() and not path.is_dir():
        raise UserError(f"model {source}: a file; expected the directory of a Hugging Face checkpoint, or a Hub id")
    if not path.is_dir():
        path = _download(source)
    return Checkpoint(epath.Path(path), path)


def _download(source: str) -> Path:
    try:
        patterns = ["*.json", "model*.safetensors", CARD, *TOKENIZER_FILES]
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=patterns))
    except HFValidationError:
        raise UserError(f"model {source}: no such directory, and not a Hub id either") from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"model {source}: no such directory, and not to be had from the Hub ({one_line(error)})"
        ) from None


def local_files(directory: PathLike) -> Path:
    """The directory itself or, if it is in `gs://`, a local copy without the weights, kept until the program ends."""
    return _downloads.enter_context(local_copies(directory, ["config.json", CARD, *TOKENIZER_FILES]))


def read_config(directory: PathLike) -> DecoderConfig:
    """The decoder's shape from `config.json`.

    Raises:
      UserError: no such file, not JSON, a wrong value, or a model that is not supported.
    """
    return read_config_file(epath.Path(directory) / "config.json")


def read_config_file(path: epath.Path) -> DecoderConfig:
    """As `read_config`, of a file of any name."""
    values = read_json(path)
    try:
        return DecoderConfig.from_hf(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def init(
    config: DecoderConfig,
    *,
    seed: int = 0,
    param_dtype: DTypeLike = jnp.float32,
    compute_dtype: DTypeLike = jnp.float32,
) -> Decoder:
    """A decoder with random parameters, the same for the same seed."""
    make = functools.partial(Decoder, config, param_dtype=param_dtype, compute_dtype=compute_dtype)
    # JAX's default generator would take seconds to compile.
    return nnx.jit(lambda: make(rngs=nnx.Rngs(jax.random.key(seed, impl="rbg"))))()


def load(
    source: str,
    *,
    param_dtype: DTypeLike = jnp.float32,
    compute_dtype: DTypeLike = jnp.float32,
    shardings: Shardings | None = None,
) -> Decoder:
    """Reads a checkpoint into a decoder.

    Args:
      source: see `find`.
      param_dtype: what the parameters are converted to.
      compute_dtype: see `Decoder`.
      shardings: where each parameter lives; by default all on the first device.

    Raises:
      UserError: as `find`, `read_config` and `load_parameters`.
    """
    checkpoint = find(source)
    config = read_config(checkpoint.files)
    params = load_parameters(checkpoint.weights, config, dtype=param_dtype, shardings=shardings or _on_one_device)
    graph, _ = abstract_decoder(config, param_dtype=param_dtype, compute_dtype=compute_dtype)
    return nnx.merge(graph, params)


def _on_one_device(path: str, shape: tuple[int, ...]) -> NamedSharding:
    mesh = jax.make_mesh((1,), ("device",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:1])
    return NamedSharding(mesh, PartitionSpec())


def load_parameters(
    weights: epath.Path, config: DecoderConfig, *, dtype: DTypeLike, shardings: Shardings
) -> dict[str, Any]:
    """Reads a checkpoint's weights into arrays that may be split over the devices of several processes.

    Args:
      weights: a directory of safetensors, one file or several with an index (`Checkpoint.weights`).
      config: the decoder that they are for.
      dtype: what they are converted to.
      shardings: where each parameter lives.

    Returns:
      Nested dictionaries of arrays, as `abstract_decoder` gives them of shapes.

    Raises:
      UserError: as `find_parameters`; a file cannot be read, or a weight is NaN or infinite.
    """
    tensors = find_parameters(weights, config)
    arrays = read_parameters(tensors, parameters(config), dtype=dtype, shardings=shardings)
    _, shapes = abstract_decoder(config, param_dtype=dtype, compute_dtype=dtype)
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: arrays.pop(".".join(str(key.key) for key in path)), shapes
    )
    assert not arrays, f"not parameters of the decoder: {sorted(arrays)}"
    return params


def find_parameters(weights: epath.Path, config: DecoderConfig) -> dict[str, Tensor]:
    """Where the tensors of a checkpoint are, of all that `names.parameters` lists, and perhaps of a tied head.

    Only headers are read. Of a checkpoint of text and images, the tensors are those of the language model; what is left
    out is said on stderr.

    Raises:
      UserError: a file is wrong; a tensor is missing, unexpected or misshapen.
    """
    tensors, images = language_model_tensors(find_tensors(weights, _weight_files(weights)))
    if images and jax.process_index() == 0:
        size = sum(tensor.nbytes for tensor in images.values()) / 1e9
        note(f"{weights}: the language model is read, and {len(images)} tensors for images ({size:.2f} GB) are not")
    check_tensors(tensors, parameters(config), weights, tied=config.tie_embeddings)
    return tensors


def _weight_files(directory: epath.Path) -> list[str]:
    """The names of a checkpoint's safetensors files, from its index if it has one."""
    index = directory / INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{index}: no weight_map")
        names = sorted(set(weight_map.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise UserError(f"{index}: {shown(outside[0])} is not the name of a file beside it")
        if missing := [name for name in names if not (directory / name).exists()]:
            raise UserError(f"{directory / missing[0]}: no such file, but {INDEX} names it")
        return names
    if not (directory / _SINGLE).exists():
        raise UserError(f"{directory}: neither {_SINGLE} nor {INDEX}; other formats of weights are not read")
    return [_SINGLE]


def save(
    model: nnx.Module | nnx.State | Source,
    config: DecoderConfig,
    directory: PathLike,
    *,
    hf_config: Mapping[str, Any],
    dtype: Any,
    max_shard_bytes: float = 5e9,
    tokenizer_from: str | Path | None = None,
    generation_config: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Writes `config.json` and sharded safetensors with their index, ready for transformers and vLLM.

    On disk everything is written to a temporary directory beside `directory`, which then takes its name: there is never
    half an export. In a bucket, `config.json` is written last, and without it no directory is a checkpoint; what a
    failed export has written is deleted, unless the process is killed.

    Of several processes that share a model's arrays, all must call this; the first writes, and if it fails, all raise.

    Args:
      model: the decoder, its parameters, or another `Source` of these.
      config: its shape, which must be what `hf_config` says.
      directory: must not exist, or be empty.
      hf_config: what `config.json` is made of (`export_files.exported_config`).
      dtype: of the tensors written, such as "bfloat16".
      max_shard_bytes: of one file, but never less than one tensor.
      tokenizer_from: a directory on disk whose tokenizer files come along (`export_files.write_tokenizer`).
      generation_config: what goes into `generation_config.json`; by default it only comes along.
      card: the model card, `README.md`; by default there is none.

    Raises:
      UserError: as `check_target`.
    """
    if DecoderConfig.from_hf(dict(hf_config)) != config:
        raise ValueError("hf_config describes another decoder than config")
    dtype = jnp.dtype(dtype)
    if isinstance(model, nnx.Module | nnx.State):
        arrays = {path: variable.get_value() for path, variable in named_parameters(model).items()}
        source: Source = Arrays(arrays, dtype)
    else:
        source = model
    files = WeightFiles(source, parameters(config), dtype, max_shard_bytes)

    def write() -> None:
        with _making(directory) as target:
            files.write(target)
            if tokenizer_from is not None:
                write_tokenizer(tokenizer_from, target)
            if generation_config is not None:
                write_json(target / "generation_config.json", portable(generation_config))
            if card is not None:
                write_text(target / CARD, card)
            write_json(target / "config.json", exported_config(hf_config, dtype))

    if source.on_all_processes:
        on_first_process(write, files.help, f"export to {directory}")
    else:
        write()


@contextlib.contextmanager
def _making(directory: PathLike) -> Iterator[epath.Path]:
    """A directory to write into; if the block fails, nothing is left of it."""
    check_target(directory)
    if is_remote(directory):
        try:
            yield epath.Path(directory)
        except BaseException:
            epath.Path(directory).rmtree(missing_ok=True)  # it was empty
            raise
        return
    path = Path(directory).resolve()
    partial = temporary_name(path)
    partial.mkdir(parents=True)
    try:
        yield epath.Path(partial)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial)
        raise


def check_target(directory: PathLike) -> None:
    """Checks that `save` can make `directory`; to be called before the weights are read.

    Raises:
      UserError: it holds something already, or must not be written.
    """
    path = epath.Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{directory} exists already; remove it or choose another directory")
    check_writable(path if is_remote(path) else Path(directory).absolute().parent, "the folder")


def copy_tokenizer(source: str | Path, target: PathLike) -> None:
    """Copies the tokenizer's files, with the chat template and `generation_config.json`, where there are any.

    Args:
      source: a directory on disk.
      target: a directory on disk or in a bucket.
    """
    for path in tokenizer_files(Path(source)):
        copy(path, epath.Path(target) / path.relative_to(source))


def read_json(path: PathLike) -> dict[str, Any]:
    """The object in one of a checkpoint's JSON files.

    Raises:
      UserError: no such file, no JSON object in it, or a value that is wrong; see `checkpoint_files.read_values`.
    """
    try:
        return read_values(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a Hugging Face checkpoint") from None
