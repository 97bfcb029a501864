"""Sampling with transformers, on CPU or one GPU: batches, a key-value cache, and a decoding loop of our own.

The loop is ours because `generate` draws all rows of a batch from one random stream, so an answer would depend on its
neighbours and on the batch size. Here each request draws its own numbers from its own seed, and the token at a step is
the inverse of the cumulative distribution at its number: the same request gives the same answer in any batch, up to
rounding in the last bits of the logits.
"""

import inspect
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data_pipeline.config import SamplerConfig, SourceConfig
from data_pipeline.sampling.backends.batches import batches
from data_pipeline.sampling.backends.stop_texts import before_stop
from data_pipeline.sampling.sampler import Answer, Batches, Request, Sampling
from fusejax.common.cli import UserError, one_line

SMALL_MODEL = 20_000_000
"""Parameters below which one CPU thread computes a step faster than several that wait for each other."""
_THREADS = torch.get_num_threads()
SLACK = 8
"""Tokens before a stop text that are looked at with it, some of which may have no text of their own."""
COMPACT_BELOW = 0.75
"""Finished rows are dropped from the batch when the share of unfinished ones falls below this."""


class TransformersSampler:
    """A causal language model."""

    engine = f"transformers {transformers.__version__}"

    def __init__(self, config: SamplerConfig, source: SourceConfig, directory: Path):
        self._batch_size, self._chunk_size = config.batch_size, config.chunk_size
        self._tokenizer, self._model = _load(directory, source, config.dtype)
        # `cache` since transformers 5.24; 5.40 is to drop the earlier name.
        parameters = inspect.signature(self._model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._stop = _stop_ids(self._model, self._tokenizer)
        if not self._stop:
            raise UserError(f"sources: {source.name}: {directory} names no end-of-sequence token")

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Batches:
        """The missing answers, one list per batch; see `sampler.Sampler`."""
        for whole in batches(requests, self._chunk_size, self._batch_size):
            batch = [request for request in whole if request.key not in done]
            if batch:
                outputs = self._generate_batch(batch)
                yield [
                    (request, self._answer(tokens, request.sampling))
                    for request, tokens in zip(batch, outputs, strict=True)
                ]

    def close(self) -> None:
        """Releases the model's memory."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _answer(self, tokens: list[int], sampling: Sampling) -> Answer:
        ended = tokens[-1] in self._stop
        text = self._text(tokens[:-1] if ended else tokens)
        before = before_stop(text, sampling.stop)
        if before is not None:
            return Answer(before, "stop", len(tokens))
        return Answer(text, "stop" if ended else "length", len(tokens))

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _is_stopped(self, tokens: list[int], stop: tuple[str, ...]) -> bool:
        """Whether the answer so far holds a stop text, which its last token completes."""
        if not stop:
            return False
        # Most tokens are at least a byte of text. Whether the tail's first ones are the same text without those before
        # them, only the whole answer tells.
        tail = tokens[-(max(len(text.encode()) for text in stop) + SLACK) :]
        return before_stop(self._text(tail), stop) is not None and before_stop(self._text(tokens), stop) is not None

    @torch.inference_mode()
    def _generate_batch(self, requests: list[Request]) -> list[list[int]]:
        """New tokens per request, ending with the stop token where there is one; all are sampled alike."""
        sampling = requests[0].sampling
        device = self._model.device
        prompts, limits = [request.prompt for request in requests], [request.max_tokens for request in requests]
        longest = max(map(len, prompts))
        numbers = np.stack(
            [np.random.default_rng(request.seed).random(max(limits), dtype=np.float32) for request in requests]
        )
        uniform = torch.from_numpy(numbers).to(device)
        pad = next(iter(self._stop))  # Masked out, so any valid id does.
        inputs = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        seen = None if sampling.repetition_penalty == 1 else self._count_tokens(inputs, mask) > 0
        penalised = sampling.presence_penalty or sampling.frequency_penalty
        said = self._count_tokens(inputs, torch.zeros_like(mask)) if penalised else None
        cache = transformers.DynamicCache(config=self._model.config)
        outputs: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # Request of each row still in the batch.
        alive = set(rows)
        for step in range(max(limits)):
            logits = self._model(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_argument: cache},
            ).logits[:, -1]
            tokens = choose(logits, uniform[:, step], seen, said, sampling)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if row in alive:
                    outputs[row].append(token)
                    ended = token in self._stop or len(outputs[row]) == limits[row]
                    if ended or self._is_stopped(outputs[row], sampling.stop):
                        alive.remove(row)
            if not alive:
                break
            inputs, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            if seen is not None:
                seen.scatter_(1, inputs, True)
            if said is not None:
                said.scatter_add_(1, inputs, torch.ones_like(inputs))
            if len(alive) < COMPACT_BELOW * len(rows):
                keep = torch.tensor([i for i, row in enumerate(rows) if row in alive], device=device)
                cache.batch_select_indices(keep)
                inputs, positions, mask, uniform = inputs[keep], positions[keep], mask[keep], uniform[keep]
                seen = None if seen is None else seen[keep]
                said = None if said is None else said[keep]
                rows = [row for row in rows if row in alive]
        return outputs

    def _count_tokens(self, inputs: Int[Tensor, "B L"], mask: Int[Tensor, "B L"]) -> Int[Tensor, "B V"]:
        """How often each prompt holds every token, where the mask is 1."""
        vocabulary = self._model.config.get_text_config().vocab_size
        counts = torch.zeros(inputs.shape[0], vocabulary, dtype=torch.long, device=inputs.device)
        return counts.scatter_add_(1, inputs, mask)


def choose(
    logits: Float[Tensor, "B V"],
    uniform: Float[Tensor, "B"],
    seen: Bool[Tensor, "B V"] | None,
    said: Int[Tensor, "B V"] | None,
    sampling: Sampling,
) -> Int[Tensor, "B"]:
    """The next token of each row: penalties, temperature, top-k, nucleus, min-p, in the order of transformers and vLLM,
    then the inverse of the cumulative sum.

    Args:
      logits: of the next token, any float type.
      uniform: one number in [0, 1) per row.
      seen: tokens of prompt and answer so far, which the repetition penalty makes less likely (Keskar et al. 2019,
        section 4.1).
      said: how often the answer holds each token so far, for the presence and frequency penalties.
      sampling: the parameters.
    """
    logits = logits.float()
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if said is not None:
        logits = logits - sampling.frequency_penalty * said - sampling.presence_penalty * (said > 0)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities, tokens = torch.sort(
        (logits / sampling.temperature).softmax(-1), dim=-1, descending=True, stable=True
    )
    if sampling.top_k is not None:
        likeliest = probabilities[:, : sampling.top_k]
        probabilities = likeliest / likeliest.sum(-1, keepdim=True)
    cumulative = probabilities.cumsum(-1)
    # The nucleus is the smallest set of likeliest tokens whose sum reaches top_p.
    last = ((cumulative - probabilities) < sampling.top_p).sum(-1, keepdim=True) - 1
    if sampling.min_p is not None:
        # Nguyen et al. 2024, section 3: as a share of the likeliest token's probability.
        last = last.clamp(max=(probabilities >= sampling.min_p * probabilities[:, :1]).sum(-1, keepdim=True) - 1)
    target = uniform[:, None] * cumulative.gather(-1, last)
    chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=last)
    return tokens.gather(-1, chosen)[:, 0]


def _load(directory: Path, source: SourceConfig, dtype: str) -> tuple[Any, Any]:
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype if dtype == "auto" else getattr(torch, dtype), trust_remote_code=False
        )
    except Exception as error:  # Whatever a broken checkpoint makes transformers or safetensors raise.
        raise UserError(f"sources: {source.name}: {directory} cannot be loaded: {one_line(error)}") from error
    torch.set_num_threads(1 if model.num_parameters() < SMALL_MODEL else _THREADS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return tokenizer, model.to(device).eval()


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    ids: set[int] = set()
    for value in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return ids
