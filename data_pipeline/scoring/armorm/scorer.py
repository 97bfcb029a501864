"""The scorer: answers become conversations for a backend; those that cannot be judged get a reason instead."""

import functools
import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.domains import RewardModelConfig
from data_pipeline.sampling import checkpoint
from data_pipeline.scoring.armorm import ARCHITECTURE, conversation
from data_pipeline.scoring.armorm.backend import Backend, Conversation
from data_pipeline.scoring.scorer import Item, Score
from data_pipeline.stage_files import fingerprint
from fusejax.common import chat_template, plain_text
from fusejax.common.cli import UserError, one_line

_CODE = ("conversation", "heads", "scorer")
_BACKEND_CODE = {"transformers": ("transformers_backend",), "vllm": ("vllm_backend", "vllm_model")}
"""The modules that decide what an answer's score is."""


class ArmoRMScorer:
    """The reward is ArmoRM's score. The model is loaded when the first answer comes.

    Args:
      config: the section of the scorers' config.
      key: what the section is called there, for errors.

    Raises:
      UserError: there is no such checkpoint, it is no ArmoRM, or vLLM is wanted and not usable.
    """

    def __init__(self, config: RewardModelConfig, key: str):
        try:
            self._directory = checkpoint.locate(config.model, config.revision)
            values = json.loads((self._directory / "config.json").read_text(encoding="utf-8"))
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{key}: {config.model}: config.json cannot be read: {one_line(error)}") from None
        found = values.get("architectures") or []
        if found != [ARCHITECTURE]:
            raise UserError(f"{key}: {config.model} is {', '.join(found) or 'of no architecture'}, not {ARCHITECTURE}")
        if not isinstance(values.get("max_position_embeddings"), int):
            raise UserError(f"{key}: {config.model}: config.json has no max_position_embeddings")
        if config.backend == "vllm":
            _require_vllm(key)
        self._config = config
        self._longest: int = values["max_position_embeddings"]
        code = [Path(__file__).with_name(f"{name}.py") for name in (*_CODE, *_BACKEND_CODE[config.backend])]
        code += [Path(chat_template.__file__), Path(plain_text.__file__)]
        self.fingerprint = fingerprint(checkpoint.fingerprint(self._directory), config.backend, config.dtype, *code)

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order; see `scorer.Scorer`."""
        read = [self._conversation(item) for item in items]
        valid = [found for found in read if isinstance(found, Conversation)]
        rewards = iter(self._backend.rewards(valid) if valid else [])
        scores = []
        for found in read:
            if isinstance(found, Conversation):
                reward = next(rewards)
                scores.append(Score(reward.score, objectives=reward.objectives))
            else:
                scores.append(Score(detail=found))
        return scores

    def _conversation(self, item: Item) -> Conversation | str:
        """The conversation without system turns, as ArmoRM was trained; or why it cannot be scored."""
        if not item.text.strip():
            return "empty_answer"
        pattern = self._pattern
        turns = [message for message in item.prompt["messages"] if message["role"] != "system"]
        try:
            tokens = chat_template.encode(self._tokenizer, [*turns, {"role": "assistant", "content": item.text}]).tokens
        except chat_template.TemplateError as error:
            return f"chat_template: {error}"
        if len(tokens) > self._longest:
            return f"too_long: {len(tokens)} of {self._longest} tokens"
        gate = conversation.last_occurrence(tokens, pattern)
        return "no_gating_pattern" if gate is None else Conversation(tokens, gate)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        import transformers

        try:
            return transformers.AutoTokenizer.from_pretrained(self._directory, trust_remote_code=False)
        except Exception as error:  # Whatever a broken tokenizer makes transformers raise.
            raise UserError(f"reward model {self._directory}: no tokenizer: {one_line(error)}") from error

    @functools.cached_property
    def _pattern(self) -> list[int]:
        return conversation.gating_pattern(self._tokenizer)

    @functools.cached_property
    def _backend(self) -> Backend:
        if self._config.backend == "vllm":
            from data_pipeline.scoring.armorm.vllm_backend import VllmBackend

            return VllmBackend(self._directory, self._config)
        from data_pipeline.scoring.armorm.transformers_backend import TransformersBackend

        return TransformersBackend(self._directory, self._config)


def _require_vllm(key: str) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"{key}.backend: vllm is not installed here; install it, or take backend: transformers")
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name="fusejax_armorm"):
        # Without dependencies: those for training ask for a newer transformers than vLLM takes.
        raise UserError(
            f"{key}.backend: vLLM finds ArmoRM through the installed package; run `pip install --no-deps .` here"
        )
