"""The chosen answers in a source's own tokens.

The answer is the last turn of an SFT example. The prompt before it is what the source's chat template writes
(`template: own`), or the target's (`template: target`, as FuseLLM and FuseChat have it). Then the source's tokenizer
makes tokens of the target's markup, whatever it takes it for, but the turn ends with what ends a turn of the source.

An answer is taken where its tokens spell it byte for byte, with the white space around it or, where the template cuts
that off, without: not where the template rewrites it, where its tokenizer normalises it, or where a token belongs to
prompt and answer. A space that the first token begins with may
come before it (`fusejax.data.token_bytes.locate`).
"""

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from transformers import AutoConfig

from data_pipeline.config import SourceConfig
from data_pipeline.distributions.backend import Asked
from data_pipeline.sampling.chat import set_arguments
from fusejax.common.cli import UserError, one_line
from fusejax.data import chat
from fusejax.data.records import SFTExample
from fusejax.data.token_bytes import locate, token_bytes


class Refused(NamedTuple):
    """An answer that cannot be had in the source's tokens."""

    reason: str
    detail: str


class Answer(NamedTuple):
    """An answer in the source's tokens."""

    asked: Asked
    ends: Int32[np.ndarray, "n_plus_1"]
    """Bytes of the answer, as the tokens spell it, before each token, and all of them."""


class Reader:
    """A source's tokenizer with a chat template."""

    def __init__(self, source: SourceConfig, directory: Path, date: datetime.date, target: Path | None):
        """Loads the tokenizer.

        Args:
          source: the source's entry.
          directory: where its checkpoint is.
          date: today's, as far as the template is told.
          target: the directory of the target whose chat template is to be used instead of the source's.

        Raises:
          UserError: a tokenizer cannot be loaded, has no chat template, or its tokens' bytes are not known.
        """
        where = f"sources: {source.name}"
        self._date = date
        try:
            self._tokenizer = chat.load_tokenizer(directory)
            self._table = token_bytes(self._tokenizer)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        self.tokenizer_file = directory / "tokenizer.json"
        if not self.tokenizer_file.is_file():
            raise UserError(f"{where}: {directory} has no tokenizer.json")
        named = _named_ends(directory, self._tokenizer)
        turn_end = chat.turn_end(self._tokenizer, named)
        self.end_of_turn = sorted(named | ({turn_end} if turn_end is not None else set()))
        """Ids of the tokens that end a turn of the source."""
        if not self.end_of_turn:
            raise UserError(f"{where}: {directory} names no end-of-sequence token")
        if target is None:
            set_arguments(self._tokenizer, f"{where}: chat_template_kwargs", source.chat_template_kwargs)
        else:
            self._tokenizer.chat_template = self._template_of(target, turn_end or self.end_of_turn[0])
        try:
            # Not the file itself, which may leave out what is the architecture's default.
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config()
        except Exception as error:  # Whatever a broken configuration makes transformers raise.
            raise UserError(f"{where}: {directory}/config.json: {one_line(error)}") from None
        self.context: int = source.max_model_len or getattr(config, "max_position_embeddings", None) or 2**31
        """Tokens of the longest conversation."""
        self.vocabulary: int = config.vocab_size
        """Ids that the model knows; more than the tokenizer has, often."""

    @property
    def template(self) -> str:
        """The chat template that is used."""
        return str(self._tokenizer.chat_template)

    def tokenizer_sha256(self) -> str:
        """Of `tokenizer.json`."""
        return hashlib.sha256(self.tokenizer_file.read_bytes()).hexdigest()

    def read(self, examples: Sequence[SFTExample]) -> list[Answer | Refused]:
        """One for each example, in order."""
        encoded = chat.encode_conversations(
            self._tokenizer,
            [example.messages for example in examples],
            first=[len(example.messages) - 1 for example in examples],
            stop_ids=self.end_of_turn,
            date=self._date,
        )
        return [self._answer(*each) for each in zip(examples, encoded, strict=True)]

    def _answer(self, example: SFTExample, encoded: chat.Encoded | chat.ChatError) -> Answer | Refused:
        if isinstance(encoded, chat.ChatError):
            return Refused(encoded.reason, encoded.detail)
        for change in ("shortened", "straddled"):
            if change in encoded.changes:
                return Refused(change, chat.CHANGES[change])
        targets = np.flatnonzero(encoded.loss_mask)
        start, end = int(targets[0]), int(targets[-1])
        content = example.messages[-1]["content"]
        said, tokens = content.encode(), encoded.tokens[start:end].tolist()
        located = locate(self._table, tokens, said) or locate(self._table, tokens, content.strip().encode())
        if located is None:
            spelled = b"".join(self._table[token] or b"" for token in tokens)
            return Refused("rewritten", f"the tokens spell {_difference(spelled, said)}")
        if start + located.first == 0:
            return Refused("no_prompt", "nothing comes before the answer")
        if end + 1 >= self.context:
            return Refused("too_long", f"{end + 1} of {self.context} tokens")
        return Answer(Asked(encoded.tokens[: end + 1], start + located.first), located.ends)

    def _template_of(self, target: Path, turn_end: int) -> str:
        """The target's template, with what begins a text and ends a turn of this source in the place of its own."""
        theirs = chat.load_tokenizer(target)
        end = chat.turn_end(theirs, _named_ends(target, theirs))
        template = str(theirs.chat_template)
        if end is not None:
            template = template.replace(_name(theirs, end), _name(self._tokenizer, turn_end))
        if theirs.bos_token_id is not None:
            ours = self._tokenizer.bos_token_id
            template = template.replace(
                _name(theirs, theirs.bos_token_id), "" if ours is None else _name(self._tokenizer, ours)
            )
        return template


def _name(tokenizer: Any, token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))


def _named_ends(directory: Path, tokenizer: Any) -> set[int]:
    """The tokens that end an answer by the checkpoint's files, and the tokenizer's EOS."""
    found: set[Any] = {tokenizer.eos_token_id}
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        values = json.loads(path.read_text()) if path.is_file() else {}
        for section in (values, values.get("text_config", {})):
            named = section.get("eos_token_id")
            found |= set(named if isinstance(named, list) else [named])
    return found - {None}


def _difference(spelled: bytes, said: bytes) -> str:
    """Where the two part, seen from the end, which is where they should agree."""
    same = next((i for i, (a, b) in enumerate(zip(reversed(spelled), reversed(said), strict=False)) if a != b), None)
    if same is None:
        same = min(len(spelled), len(said))
    shown = [
        text[max(0, len(text) - same - 20) : len(text) - same + 10].decode(errors="replace") for text in (spelled, said)
    ]
    return f"{shown[0]!r}, the answer {shown[1]!r}"
