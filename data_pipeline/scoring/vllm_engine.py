"""vLLM's engine for reward models, in this process's environment."""

import atexit
import weakref
from pathlib import Path
from typing import Any

import vllm

from data_pipeline.domains import RewardModelConfig
from fusejax.common.cli import UserError, one_line

MAX_SEQUENCES = 256
"""Most conversations per step."""


def load(directory: Path, config: RewardModelConfig, **arguments: Any) -> vllm.LLM:
    """An engine that pools, which ends before the interpreter does.

    Args:
      directory: the checkpoint.
      config: the section of the domain; its `engine` overrides `arguments`.
      arguments: what the kind of model asks for.

    Raises:
      UserError: vLLM does not load the model, or one of the config's engine arguments is wrong.
    """
    chosen: dict[str, Any] = {
        "runner": "pooling",
        "dtype": config.dtype,
        # A conversation longer than a batch goes through in chunks.
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": config.batch_tokens,
        # vLLM wants no more sequences in a batch than tokens.
        "max_num_seqs": min(MAX_SEQUENCES, config.batch_tokens),
    }
    try:
        engine = vllm.LLM(model=str(directory), **chosen | arguments | config.engine)
    except Exception as error:  # Whatever a broken checkpoint or a full GPU makes vLLM raise.
        raise UserError(f"reward model {directory}: vLLM cannot load it: {one_line(error)}") from error
    # Left to the interpreter, the engine's process ends while this one is being torn down; the thread that watches it
    # then wakes inside a library that Python is about to leave, and now and then the whole process aborts.
    # By a weak reference: an engine that nobody needs any more gives its memory back.
    core = weakref.ref(engine.llm_engine.engine_core)
    atexit.register(lambda: (alive := core()) and alive.shutdown())
    return engine
