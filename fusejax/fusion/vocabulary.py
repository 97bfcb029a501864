"""Every token of a source as one token of the target: a table, made once for two tokenizers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from fusejax.data.token_bytes import Tokenizer, token_bytes

DROPPED = -1


@dataclasses.dataclass(frozen=True)
class VocabularyMap:
    """What each token of the source is in the target; how many tokens came about in which way."""

    table: Int32[np.ndarray, "V_s"]
    """Source id -> target id, or -1: the probability of that token is dropped."""
    same: int
    """Tokens with a token of the same bytes in the target."""
    first: int
    """Tokens that became the first token of what the target makes of their bytes."""
    special: int
    """Tokens given by hand: the ends of turns."""
    dropped: int
    """Other special tokens, ids that no token has, and tokens whose bytes the target cannot begin."""

    @classmethod
    def between(cls, source: Tokenizer, target: Tokenizer, special: Mapping[int, int]) -> "VocabularyMap":
        """The map of two fast tokenizers, in seconds.

        Args:
          special: source id -> target id of special tokens that mean the same: what ends a turn.
        """

        def tokenize(texts: list[str]) -> list[list[int]]:
            return target(texts, add_special_tokens=False, verbose=False)["input_ids"]

        return vocabulary_map(token_bytes(source), token_bytes(target), tokenize, special)


def vocabulary_map(
    source: Sequence[bytes | None],
    target: Sequence[bytes | None],
    tokenize: Callable[[list[str]], list[list[int]]],
    special: Mapping[int, int],
) -> VocabularyMap:
    """The map, from the bytes of each token; None where an id is of no text (special tokens, holes, padding).

    In this order: a token given in `special`; the token of the same bytes; the first token of the target's
    tokenisation of the bytes. Where the target has several tokens of the same bytes ("\\n" beside a byte token of that
    byte), the one that its tokenizer writes, or else the last: byte tokens come first.

    Some tokenizers put a space before a text that stands alone; there the bytes are tokenised behind a line break.
    Bytes that are no text (a part of a character), or that the tokenizer changes, become the longest of the target's
    tokens that they begin with.

    Args:
      tokenize: token ids of texts under the target's tokenizer, without special tokens.

    Example:
      >>> vocabulary_map([b"a", b"ab", b"b", None], [b"b", b"a"], lambda texts: [[1, 0]] * len(texts), {3: 9}).table
      array([1, 1, 0, 9], dtype=int32)
    """
    ids: dict[bytes, list[int]] = {}
    for number, piece in enumerate(target):
        if piece:
            ids.setdefault(piece, []).append(number)
    longest = max(map(len, ids), default=0)

    written = _first_tokens({piece for piece in source if piece and len(ids.get(piece, ())) != 1}, target, tokenize)

    def find(piece: bytes) -> int:
        same = ids.get(piece, [])
        if len(same) == 1 or (same and written.get(piece) not in same):
            return same[-1]
        if piece in written:
            return written[piece]
        starts = (piece[:length] for length in range(min(len(piece), longest), 0, -1))
        return next((ids[start][-1] for start in starts if start in ids), DROPPED)

    table = np.full(max([len(source), *(number + 1 for number in special)]), DROPPED, np.int32)
    same = 0
    for number, piece in enumerate(source):
        if piece and number not in special:
            table[number] = find(piece)
            same += piece in ids
    for number, other in special.items():
        table[number] = other
    dropped = int((table == DROPPED).sum())
    return VocabularyMap(table, same, len(table) - same - len(special) - dropped, len(special), dropped)


def _first_tokens(
    pieces: set[bytes], target: Sequence[bytes | None], tokenize: Callable[[list[str]], list[list[int]]]
) -> dict[bytes, int]:
    """The first token of the pieces that are text and whose tokens spell them."""
    texts = {piece: text for piece in sorted(pieces) if (text := _text(piece)) is not None}
    found: dict[bytes, int] = {}
    for before in ("", "\n"):
        asked = [piece for piece in texts if piece not in found]
        if not asked:
            break
        start, *rest = tokenize([before, *(before + texts[piece] for piece in asked)])
        for piece, tokens in zip(asked, rest, strict=True):
            if tokens[: len(start)] == start and len(tokens) > len(start):
                first = tokens[len(start)]
                begins = target[first] if first < len(target) else None
                if begins and piece.startswith(begins):
                    found[piece] = first
    return found


def _text(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None
