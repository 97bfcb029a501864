"""The bytes that each token of a vocabulary stands for, and where the tokens of an answer end in it, in bytes.

Tokens of two tokenizers can be compared by these alone: what a vocabulary calls its tokens differs (`Ġthe`, `▁the`),
and a tokenizer's offsets count characters, of which a token may be a part, and leave out spaces. Two kinds of
tokenizers are known, which cover the models that chat:

- byte-level ones (GPT-2's alphabet: a printable character for each byte): Llama 3, Qwen, SmolLM2;
- those of SentencePiece, where `▁` is a space and `<0x0A>` a byte: Gemma, Mistral, Llama 2.

    table = token_bytes(tokenizer)
    b"".join(table[token] for token in tokenizer("naïve", add_special_tokens=False)["input_ids"])   # b"na\\xc3\\xafve"

The bytes are those of the text as the tokenizer normalises it, which for most texts and tokenizers is the text itself,
and without the bytes that a vocabulary lacks (SmolLM2's, some control characters).
Imports neither JAX nor torch.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from fusejax.common.cli import UserError

Tokenizer = Any
"""A fast `transformers.PreTrainedTokenizerBase`, which takes a second to import."""
SPACE = "▁"
"""SentencePiece's space."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Located(NamedTuple):
    """Where a text is at the end of a token sequence."""

    first: int
    """Index of its first token."""
    ends: Int32[np.ndarray, "n_plus_1"]
    """Bytes of the text before each of its tokens, and all of them: 0 first."""


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes of every token, by id.

    None for tokens that stand for no text: special ones, the unknown one, and ids without a token.

    SentencePiece's tokenizers can put a space in front of a text that has none; the first token then has it as well.
    They write `▁` itself as a space, too.

    Raises:
      UserError: the tokenizer is of another kind, or has no `tokenizer.json`.
    """
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: without tokenizer.json, its tokens' bytes are not known")
    backend = tokenizer.backend_tokenizer
    rules = json.loads(backend.to_str())
    kinds = {part["type"] for name in ("pre_tokenizer", "decoder") for part in _parts(rules[name])}
    fallback = bool(rules["model"].get("byte_fallback"))
    if "ByteLevel" in kinds:
        decode = _byte_level
    elif "Metaspace" in kinds or any(_writes_space(part) for part in _parts(rules["normalizer"])):
        decode = _sentencepiece_with_bytes if fallback else _sentencepiece
    else:
        kind = rules["model"]["type"]
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: is neither byte-level nor SentencePiece's ({kind}); "
            "its tokens' bytes are not known"
        )
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for name, token in vocabulary.items():
        table[token] = decode(name)
    special = set(tokenizer.all_special_tokens)
    for token, added in tokenizer.added_tokens_decoder.items():
        name = str(added)
        if decode is _byte_level:  # added tokens are not written in its alphabet
            table[token] = name.encode()
        # Training calls everything special that it is told to add, also line breaks and bytes.
        if (added.special or name in special) and name.strip() and not (fallback and _BYTE.fullmatch(name)):
            table[token] = None
    if tokenizer.unk_token_id is not None:
        table[tokenizer.unk_token_id] = None
    return table


def locate(table: Sequence[bytes | None], tokens: Sequence[int], text: bytes) -> Located | None:
    """The tokens that spell `text` at the end of `tokens`; None where no tokens spell just that.

    Whole tokens may come before it. So may a single space that the first token begins with: no byte of the text, but
    SentencePiece's beginning of it, or the space of a chat template. The token's bytes are then one more than its
    share of the text.

    >>> locate([b"<think>", b" a", b"b"], [0, 1, 2], b"ab")
    Located(first=1, ends=array([0, 1, 2], dtype=int32))

    Args:
      table: of `token_bytes`.
      tokens: ids.
      text: UTF-8.
    """
    pieces = [table[token] if token < len(table) else None for token in tokens]
    # What comes before may hold special tokens.
    first = next((i + 1 for i in range(len(pieces) - 1, -1, -1) if pieces[i] is None), 0)
    spelled = b"".join(piece for piece in pieces[first:] if piece is not None)
    if not spelled.endswith(text):
        return None
    starts = np.cumsum([0, *(len(piece or b"") for piece in pieces[first:])]) - (len(spelled) - len(text))
    begin = int(np.searchsorted(starts, 0))
    if starts[begin] != 0:
        begin -= 1
        if starts[begin] != -1 or spelled[-len(text) - 1 : -len(text)] != b" ":
            return None
    return Located(first + begin, np.maximum(starts[begin:], 0).astype(np.int32))


def _parts(rules: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normaliser, a pre-tokenizer or a decoder."""
    if rules is None:
        return []
    if rules["type"] != "Sequence":
        return [rules]
    (steps,) = (rules[name] for name in ("normalizers", "pretokenizers", "decoders") if name in rules)
    return [part for step in steps for part in _parts(step)]


def _writes_space(normalizer: dict[str, Any]) -> bool:
    return normalizer["type"] == "Replace" and normalizer["content"] == SPACE


def _alphabet() -> dict[str, int]:
    """GPT-2's character -> its byte (`bytes_to_unicode` of its encoder.py): printable bytes are themselves, the others
    come in order from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _alphabet()


def _byte_level(name: str) -> bytes | None:
    try:
        return bytes(map(_ALPHABET.__getitem__, name))
    except KeyError:  # such a token is never found
        return None


def _sentencepiece(name: str) -> bytes:
    return name.replace(SPACE, " ").encode()


def _sentencepiece_with_bytes(name: str) -> bytes:
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else _sentencepiece(name)
