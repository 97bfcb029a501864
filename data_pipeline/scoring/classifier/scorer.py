"""The scorer: answers become conversations for a backend; those that cannot be judged get a reason instead."""

import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open

from data_pipeline.domains import RewardModelConfig
from data_pipeline.sampling import checkpoint
from data_pipeline.scoring.classifier import HEAD
from data_pipeline.scoring.scorer import Item, Score
from data_pipeline.stage_files import fingerprint
from fusejax.common import chat_template, plain_text
from fusejax.common.cli import UserError, one_line

_SUFFIX = "ForSequenceClassification"


@runtime_checkable
class Backend(Protocol):
    """The program that runs the model."""

    def rewards(self, conversations: Sequence[list[int]]) -> list[float]:
        """One reward per conversation, which is given in token ids; in order, whatever batches they were in."""
        ...


class ClassifierScorer:
    """The reward is the logit of the model's only label. The model is loaded when the first answer comes.

    Args:
      config: the section of the domain.
      key: what the section is called there, for errors.
      directory: the checkpoint.
      values: its `config.json`.

    Raises:
      UserError: the checkpoint is no decoder with one label and a chat template, or is not whole; or vLLM is wanted and
        not installed.
    """

    def __init__(self, config: RewardModelConfig, key: str, directory: Path, values: dict[str, Any]):
        _require_decoder(values, f"{key}: {config.model}")
        _require_weights(directory, f"{key}: {config.model}")
        if config.backend == "vllm" and importlib.util.find_spec("vllm") is None:
            raise UserError(f"{key}.backend: vllm is not installed here; install it, or take backend: transformers")
        try:
            self._tokenizer = chat_template.load_tokenizer(directory)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        self._config, self._directory = config, directory
        # Of models that read images too, the part that reads text.
        text = values.get("text_config", values)
        self._longest: int = text["max_position_embeddings"]
        self._padding: int | None = text.get("pad_token_id")
        code = (__file__, f"{Path(__file__).parent}/{config.backend}_backend.py", plain_text.__file__)
        self.fingerprint = fingerprint(
            checkpoint.fingerprint(directory), config.backend, config.dtype, *map(Path, (*code, chat_template.__file__))
        )

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order; see `scorer.Scorer`."""
        read = [self._conversation(item) for item in items]
        valid = [found for found in read if not isinstance(found, str)]
        rewards = iter(self._backend.rewards(valid) if valid else [])
        return [Score(detail=found) if isinstance(found, str) else Score(next(rewards)) for found in read]

    def _conversation(self, item: Item) -> list[int] | str:
        """The conversation up to the token whose hidden state counts; or why it cannot be scored."""
        if not item.text.strip():
            return "empty_answer"
        turns = [*item.prompt["messages"], {"role": "assistant", "content": item.text}]
        try:
            tokens = chat_template.encode(self._tokenizer, turns).tokens
        except chat_template.TemplateError as error:
            return f"chat_template: {error}"
        if len(tokens) > self._longest:
            return f"too_long: {len(tokens)} of {self._longest} tokens"
        # Templates may end in the padding token. A decoder sees nothing that follows, so the rest can be left out.
        while tokens and tokens[-1] == self._padding:
            tokens.pop()
        return tokens

    @functools.cached_property
    def _backend(self) -> Backend:
        if self._config.backend == "vllm":
            from data_pipeline.scoring.classifier.vllm_backend import VllmBackend

            return VllmBackend(self._directory, self._config)
        from data_pipeline.scoring.classifier.transformers_backend import TransformersBackend

        return TransformersBackend(self._directory, self._config)


def _require_decoder(values: dict[str, Any], where: str) -> None:
    """Raises `UserError` unless `config.json` is of a decoder with one label and a bound on its positions."""
    import transformers
    from transformers.modeling_layers import GenericForSequenceClassification

    found = ", ".join(values.get("architectures") or []) or "of no architecture"
    if not found.endswith(_SUFFIX):
        raise UserError(
            f"{where} is {found}: a reward model is ArmoRM, or a decoder with one label (such as Llama{_SUFFIX})"
        )
    # The base class of all decoders whose score is a linear map of the last token; encoders have heads of their own.
    kind = getattr(transformers, found, None)
    if kind is None or not issubclass(kind, GenericForSequenceClassification):
        raise UserError(f"{where} is {found}: that is no decoder that transformers {transformers.__version__} knows")
    labels = len(values.get("id2label") or ()) or values.get("num_labels", 2)
    if labels != 1:
        raise UserError(f"{where} has {labels} labels; a reward model has one")
    if not isinstance(values.get("text_config", values).get("max_position_embeddings"), int):
        raise UserError(f"{where}: config.json has no max_position_embeddings")


def _require_weights(directory: Path, where: str) -> None:
    """Raises `UserError` unless all files of weights are there, and the head in them is a map without bias.

    Looked at here, since vLLM takes a linear layer without weights as it is, and transformers leaves a bias out.
    """
    index = directory / "model.safetensors.index.json"
    names: set[str] = set()
    try:
        parts = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        for part in sorted(parts):
            with safe_open(directory / part, framework="np") as file:
                names.update(file.keys())
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{where}: its weights cannot be read: {one_line(error)}") from None
    head = sorted(name for name in names if name.startswith("score."))
    if head != [HEAD]:
        raise UserError(f"{where}: its head is {', '.join(head) or 'missing'}, not {HEAD}")
