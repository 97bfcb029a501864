"""A worked example: " get some utilization." cut by two tokenizers, and what a source says at its places."""

import numpy as np

TEXT = b" get some utilization."
SOURCE = [b" get", b" some", b" ut", b"iliz", b"ation", b".", b" use", b"!", b" using", b"\xc3", b"\xa9", None]
"""The source's tokens by id; the last one ends a turn."""
TARGET = [
    b" get",
    b" some",
    b" util",
    b"ization",
    b".",
    b" use",
    b"!",
    b" ut",
    b"iliz",
    b"ation",
    b"\xc3",
    b"\xa9",
    None,
]
S = {piece: number for number, piece in enumerate(SOURCE)}
T = {piece: number for number, piece in enumerate(TARGET)}
SOURCE_TOKENS = [S[piece] for piece in (b" get", b" some", b" ut", b"iliz", b"ation", b".")]
TARGET_TOKENS = [T[piece] for piece in (b" get", b" some", b" util", b"ization", b".")]
SOURCE_ENDS = np.array([0, 4, 9, 12, 16, 21, 22])
TARGET_ENDS = np.array([0, 4, 9, 14, 21, 22])
ROWS = {
    0: {b" get": 0.7, b" some": 0.2, b" use": 0.05},
    1: {b" some": 0.6, b" use": 0.3, b" using": 0.05},
    2: {b" ut": 0.8, b" using": 0.1, b" use": 0.06},
    5: {b".": 0.75, b"!": 0.2, b" some": 0.01},
}
"""Row of the source -> its three likeliest tokens."""
REALISED = [0.7, 0.6, 0.8, 0.9, 0.95, 0.75]
"""The source's probability of each of its tokens."""


def tokenize(texts: list[str]) -> list[list[int]]:
    """As the target would: greedily, the longest token first; a byte that begins no token is left out."""
    found = []
    for text in texts:
        rest, tokens = text.encode(), []
        while rest:
            piece = next((rest[:n] for n in range(len(rest), 0, -1) if rest[:n] in T), None)
            tokens += [] if piece is None else [T[piece]]
            rest = rest[len(piece or rest[:1]) :]
        found.append(tokens)
    return found
