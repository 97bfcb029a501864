"""A run's checkpoint as a Hugging Face directory."""

from pathlib import Path

from flax import nnx

from fusejax.cli import UserError
from fusejax.data.chat import load_tokenizer
from fusejax.distributed.mesh import one_device_mesh
from fusejax.models import huggingface
from fusejax.models.generation_config import generation_config
from fusejax.training.start import StartingModel


def export(run_dir: str, output: str, *, step: int | None, dtype: str) -> None:
    """Writes sharded safetensors, `config.json`, `generation_config.json` and the tokenizer's files.

    Args:
      run_dir: the run's `output_dir`.
      output: where to; must not exist, or be empty.
      step: the checkpoint; by default the one with the lowest evaluation loss, or without evaluations the newest.
      dtype: of the tensors written, `bfloat16` or `float32`.

    Raises:
      UserError: `run_dir` holds no run or no such checkpoint; `output` is taken or cannot be written.
    """
    if not Path(run_dir).is_dir():
        raise UserError(f"--checkpoint {run_dir}: no such directory")
    run = StartingModel(run_dir)
    if not run.is_run:
        raise UserError(f"--checkpoint {run_dir}: no run of fusejax.train (it has no checkpoints/ and model/)")
    huggingface.check_target(Path(output))
    # Read in the dtype that is written: rounding once, here, is rounding the trained weights.
    params = run.load(one_device_mesh(), dtype=dtype, step=step)
    graph, _ = run.graph(param_dtype=dtype, compute_dtype=dtype)
    huggingface.save(
        nnx.merge(graph, params),
        run.config,
        output,
        hf_config=huggingface.read_json(run.directory / "config.json"),
        dtype=dtype,
        tokenizer_from=run.directory,
        generation_config=generation_config(run.directory, load_tokenizer(run.directory)),
    )
