"""Where a run's parameters come from: a Hugging Face checkpoint, or the checkpoints of another run."""

import hashlib
import re

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from fusejax.common.cli import UserError, note
from fusejax.distributed.sharding import VOCABULARY, laid_out, parameter_name, parameter_sharding
from fusejax.models.decoder.decoder import abstract_decoder
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.models.huggingface.checkpoint_files import check_files
from fusejax.models.huggingface.import_weights import all_finite
from fusejax.training.checkpoints import Checkpoints
from fusejax.training.state import Params


class StartingModel:
    """A model to start from, named as in the key `model` of a run.

    Args:
      source: directory or Hub id of a Hugging Face checkpoint, or the `output_dir` of a run.

    Raises:
      UserError: it is neither, its architecture is not one that the decoder has, or one of its files is broken.
    """

    def __init__(self, source: str):
        self.source = source
        path = epath.Path(source)
        self.is_run = (path / "checkpoints").is_dir() and (path / "model").is_dir()
        self._checkpoint = None if self.is_run else huggingface.find(source)
        self.directory = self._checkpoint.files if self._checkpoint else huggingface.local_files(path / "model")
        """On disk, with `config.json` and the tokenizer."""
        self.config = huggingface.read_config(self.directory)
        check_files(self.directory)

    def graph(self, *, param_dtype: str, compute_dtype: str) -> tuple[nnx.GraphDef, Params]:
        """The decoder without arrays: its graph, and its parameters as shapes."""
        return abstract_decoder(self.config, param_dtype=jnp.dtype(param_dtype), compute_dtype=jnp.dtype(compute_dtype))

    def load(self, mesh: Mesh, *, dtype: str, step: int | None = None) -> Params:
        """The parameters, cast to `dtype` and laid out over `mesh`; of a run, those of `step` or else its best.

        Vocabularies have rows of zeros at their end where the mesh needs them (`sharding.laid_out`).

        Raises:
          UserError: the weights are damaged, NaN or infinite, or not those of the architecture; no such step.
        """
        if self._checkpoint:
            return huggingface.load_parameters(
                self._checkpoint.weights,
                self.config,
                dtype=jnp.dtype(dtype),
                shardings=lambda name, shape: parameter_sharding(name, shape, mesh),
            )
        _, shapes = self.graph(param_dtype=dtype, compute_dtype=dtype)
        with Checkpoints(self.source) as checkpoints:
            step = checkpoints.find_step(step)
            note(f"{self.source}: reading the checkpoint of step {step}")
            params = checkpoints.restore_params(laid_out(shapes, mesh), step, vocab_size=self.config.vocab_size)
        for path, array in jax.tree_util.tree_leaves_with_path(params):
            if not all_finite(array):
                raise UserError(f"{self.source}: {parameter_name(path)} of step {step} has NaN or infinite weights")
        return params


def check_tokens(source: str, vocab_size: int, highest: int) -> None:
    """Refuses token ids that a model has no embedding for, which would otherwise be read as other tokens.

    Raises:
      UserError: `highest` is such an id.
    """
    if highest >= vocab_size:
        raise UserError(
            f"model {source}: its tokenizer gives the token id {highest}, but vocab_size in config.json is "
            f"{vocab_size}: they do not belong together"
        )


def fingerprint(params: Params, vocab_size: int) -> str:
    """A hash of every bit of the parameters, the same however they are stored or laid out over devices.

    Rows beyond `vocab_size`, which a mesh may add, are zeros and count for nothing.

    Each array's words are weighted by their position and added modulo 2^32, so that the sum does not depend on the
    order of devices. Names, dtypes, shapes and sums are then hashed with SHA-256.
    """
    digest = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        is_vocabulary = re.fullmatch(VOCABULARY, parameter_name(path))
        shape = (vocab_size, *array.shape[1:]) if is_vocabulary else array.shape
        digest.update(f"{name} {array.dtype} {shape} {int(_weighted_sum(array)):08x}\n".encode())
    return digest.hexdigest()


@jax.jit
def _weighted_sum(array: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(array, jnp.uint32 if array.dtype == jnp.float32 else jnp.uint16)
    total = words.astype(jnp.uint32)
    for axis in range(array.ndim):
        # Odd weights, a different sequence for each axis, so that swapped rows or columns change the sum.
        weights = (jnp.arange(array.shape[axis], dtype=jnp.uint32) * jnp.uint32(2654435761 + 2 * axis)) | jnp.uint32(1)
        total = total * jax.lax.expand_dims(weights, [d for d in range(array.ndim) if d != axis])
    return jnp.sum(total, dtype=jnp.uint32)
