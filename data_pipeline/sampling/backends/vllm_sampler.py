"""Sampling with vLLM in this process.

The engine is stepped here, not by `LLM.generate`: each answer is kept the moment it is finished, and a request that the
engine refuses fails alone, where `generate` would lose the whole list. A request is one sample with its own seed:
vLLM's n=k uses the seeds s to s+k-1, which would tie the samples of a prompt to each other.
"""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import vllm
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind

from data_pipeline.config import SourceConfig
from data_pipeline.sampling.sampler import Answer, Answered, Batches, Request
from fusejax.common.cli import UserError, one_line


class VllmSampler:
    """A loaded engine."""

    engine = f"vllm {vllm.__version__}"

    def __init__(self, source: SourceConfig, directory: Path, dtype: str, context: int):
        """Loads the model.

        Raises:
          UserError: vLLM cannot load it, or does not know an engine argument.
        """
        arguments: dict[str, Any] = {"max_num_seqs": 256, "disable_log_stats": True} | source.engine
        # Twice what is computed at a time: there is always a next one waiting, and the queue stays short.
        self._under_way = 2 * arguments["max_num_seqs"]
        try:
            self._engine = vllm.LLMEngine.from_engine_args(
                vllm.EngineArgs(model=str(directory), dtype=dtype, max_model_len=context, **arguments)
            )
        except Exception as error:  # Whatever a broken checkpoint, or too little memory, makes vLLM raise.
            raise UserError(f"sources: {source.name}: vLLM cannot load {directory}: {one_line(error)}") from error

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Batches:
        """The missing answers, as they finish; see `sampler.Sampler`."""
        missing = iter([request for request in requests if request.key not in done])
        pending: dict[str, Request] = {}
        exhausted = False
        while pending or not exhausted:
            ready: Answered = []
            while not exhausted and len(pending) < self._under_way:
                request = next(missing, None)
                if request is None:
                    exhausted = True
                    break
                try:
                    self._engine.add_request(request.key, {"prompt_token_ids": list(request.prompt)}, _params(request))
                except (VLLMClientError, ValueError) as error:
                    ready.append((request, Answer("", "error", 0, f"refused: {one_line(error)}")))
                else:
                    pending[request.key] = request
            if pending:
                for output in self._engine.step():
                    if output.finished:
                        ready.append((pending.pop(output.request_id), _answer(output.outputs[0])))
            if ready:
                yield ready

    def close(self) -> None:
        """Ends the engine, and with it the processes that hold the model."""
        self._engine.engine_core.shutdown()
        del self._engine


def _params(request: Request) -> vllm.SamplingParams:
    sampling = request.sampling
    return vllm.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        min_p=sampling.min_p or 0.0,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        stop=list(sampling.stop),
        max_tokens=request.max_tokens,
        seed=request.seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _answer(completion: Any) -> Answer:
    count = len(completion.token_ids)
    if completion.finish_reason not in ("stop", "length"):
        return Answer("", "error", count, f"engine: finished by {completion.finish_reason!r}")
    return Answer(completion.text, completion.finish_reason, count)
