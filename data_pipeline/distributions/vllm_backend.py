"""Log-probabilities with vLLM in this process: conversations as prompts, whose `prompt_logprobs` it gives.

vLLM does not count the memory of prompt log-probabilities when it sizes its cache (7.5 GiB have been seen, for 8,192
tokens and a vocabulary of 152,064), so few tokens are computed at a time here. Should memory still run out, lower
`max_num_batched_tokens` or `gpu_memory_utilization` in `distributions.engine`. Cached prefixes have no such
log-probabilities: there are versions that crash or give too few of them, so the cache is off and they are counted.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vllm
from vllm.sampling_params import RequestOutputKind

from data_pipeline.distributions.backend import Asked, Rows
from fusejax.common.cli import UserError, one_line

BATCHED_TOKENS = 2048
"""Most tokens computed at a time."""
WAITING = 64
"""Conversations under way at a time. Their log-probabilities are Python numbers until one is finished."""


class VllmBackend:
    """A loaded engine.

    Raises:
      UserError: vLLM cannot load the model, or does not know an engine argument.
    """

    engine = f"vllm {vllm.__version__}"

    def __init__(self, name: str, directory: Path, dtype: str, context: int, top_k: int, arguments: dict[str, Any]):
        self._name, self._top_k = name, top_k
        chosen: dict[str, Any] = {
            "max_num_batched_tokens": BATCHED_TOKENS,
            "max_num_seqs": WAITING,
            "enable_chunked_prefill": True,
            "disable_log_stats": True,
        }
        # Whatever is asked for: without these, the numbers are not there, or are others.
        fixed = {"enable_prefix_caching": False, "max_logprobs": top_k, "logprobs_mode": "raw_logprobs"}
        try:
            self._engine = vllm.LLMEngine.from_engine_args(
                vllm.EngineArgs(model=str(directory), dtype=dtype, max_model_len=context, **chosen | arguments | fixed)
            )
        except Exception as error:  # Whatever a broken checkpoint, or too little memory, makes vLLM raise.
            raise UserError(f"sources: {name}: vLLM cannot load {directory}: {one_line(error)}") from error

    def rows(self, asked: Sequence[Asked]) -> Iterator[Rows]:
        """See `backend.Backend`."""
        params = self._params()
        waiting = iter(enumerate(asked))
        found: dict[int, Rows] = {}
        under_way = 0
        while len(found) < len(asked):
            while under_way < WAITING and (each := next(waiting, None)) is not None:
                index, one = each
                self._engine.add_request(str(index), {"prompt_token_ids": one.tokens.tolist()}, params)
                under_way += 1
            for output in self._engine.step():
                if output.finished:
                    index = int(output.request_id)
                    found[index] = self._read(asked[index], output.prompt_logprobs)
                    under_way -= 1
        return (found[index] for index in range(len(asked)))

    def close(self) -> None:
        """Ends the engine, and with it the processes that hold the model."""
        self._engine.engine_core.shutdown()
        del self._engine

    def _params(self) -> vllm.SamplingParams:
        return vllm.SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=self._top_k,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _read(self, asked: Asked, given: Any) -> Rows:
        """The rows of the answer. The engine gives, for each token but the first, that token and the K likeliest."""
        count, width = len(asked.tokens) - 1, self._top_k + 1
        sizes = np.subtract(given.end_indices, given.start_indices)
        if sizes.tolist() != [0] + [width] * count:
            raise UserError(
                f"sources: {self._name}: {self.engine} gave {len(sizes) - 1} places and {int(sizes.sum())} "
                f"log-probabilities, not {count} and {count * width}: other engine arguments may help"
            )
        ids, ranks, logprobs = (
            np.array(each, kind).reshape(count, width)[asked.first - 1 :]
            for each, kind in ((given.token_ids, np.int32), (given.ranks, np.int32), (given.logprobs, np.float32))
        )
        if (ids[:, 0] != asked.tokens[asked.first :]).any() or (ranks[:, 1:] != np.arange(1, width)).any():
            raise UserError(
                f"sources: {self._name}: {self.engine} gave log-probabilities of other tokens, or in disorder"
            )
        return Rows(logprobs[:, 0], ids[:, 1:], logprobs[:, 1:])
