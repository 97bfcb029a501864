"""Bytes of tokens: of any text, those of its tokens together are the text's."""

import functools
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusejax.common.cli import UserError
from fusejax.data.token_bytes import locate, token_bytes
from quickstart.models import SOURCES, train_tokenizer
from tests.data.families import FAMILIES, TEXTS, make_tokenizer

# Whatever Unicode has, but for what SentencePiece cannot tell from a space and from a byte.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"))
LIKELY = st.sampled_from(
    [*TEXTS, " a  b", "naïve é 😀", "\n\n\t ", "👩‍👩‍👧‍👦", "<think>\nso\n</think>", "e\u0301", "ﬁ", "\0\x7f"]
)
QUICKSTART = {name: train_tokenizer(family, TEXTS) for name, family in SOURCES.items()}


@functools.cache
def table_of(tokenizer) -> list[bytes | None]:
    return token_bytes(tokenizer)


def spelled(tokenizer, text: str) -> bytes:
    table = table_of(tokenizer)
    pieces = [table[token] for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert None not in pieces
    return b"".join(pieces)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None)
@given(text=ANY_TEXT | LIKELY | st.lists(LIKELY | ANY_TEXT).map("".join))
def test_a_texts_tokens_spell_it(family: str, text: str):
    tokenizer = make_tokenizer(family)
    for name in tokenizer.all_special_tokens:
        text = text.replace(name, "")
    expected = unicodedata.normalize("NFC", text) if family in ("chatml", "qwen3") else text
    # Mistral's puts a space in front of the first word.
    dummy = b" " if family == "mistral" and text and not text.startswith(" ") else b""
    assert spelled(tokenizer, text) == dummy + expected.encode()


@pytest.mark.parametrize("name", SOURCES)
@settings(deadline=None)
@given(text=ANY_TEXT | LIKELY)
def test_the_quickstarts_tokenizers(name: str, text: str):
    """Gemma's and Mistral's have their bytes as added tokens."""
    kind = SOURCES[name].kind
    expected = unicodedata.normalize("NFC", text) if kind == "byte" else text
    assert spelled(QUICKSTART[name], text) == expected.encode()


def test_half_a_character_is_a_token_of_one_byte():
    tokenizer = make_tokenizer("llama3")
    table = token_bytes(tokenizer)
    tokens = tokenizer("né", add_special_tokens=False)["input_ids"]
    assert [table[token] for token in tokens] == [b"n", b"\xc3", b"\xa9"]


def test_tokens_that_stand_for_no_text():
    tokenizer = make_tokenizer("qwen3")
    table = token_bytes(tokenizer)
    assert len(table) == len(tokenizer)
    assert [table[tokenizer.convert_tokens_to_ids(name)] for name in ("<|im_start|>", "<|im_end|>")] == [None, None]
    # An added token that is not special is text.
    assert table[tokenizer.convert_tokens_to_ids("<think>")] == b"<think>"
    gemma = make_tokenizer("gemma")
    assert token_bytes(gemma)[gemma.unk_token_id or gemma.convert_tokens_to_ids("<unk>")] is None


def test_llama_2s_space_before_everything():
    """Its normaliser writes a space before each text, where Mistral's pre-tokeniser does."""
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "<0x0A>": 4}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert token_bytes(tokenizer) == [None, b" ", b"a", b" a", b"\n"]
    assert spelled(tokenizer, "a a\n") == b" a a\n"


def test_bytes_only_where_the_model_falls_back_to_them():
    backend = Tokenizer(models.BPE({"<0x0A>": 0, "▁": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend)) == [b"<0x0A>", b" "]


def test_other_tokenizers_are_refused():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="neither byte-level nor SentencePiece's"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


TABLE = [None, b"a", b" a", b"b", b" ", b"\xc3", b"\xa9", b"ab"]


@pytest.mark.parametrize(
    ("tokens", "text", "first", "ends"),
    [
        ([1, 3], b"ab", 0, [0, 1, 2]),
        ([0, 1, 3], b"ab", 1, [0, 1, 2]),  # after a special token
        ([3, 1, 3], b"ab", 1, [0, 1, 2]),  # after other text
        ([2, 3], b"ab", 0, [0, 1, 2]),  # its first token has a space before it
        ([2, 3], b" ab", 0, [0, 2, 3]),
        ([4, 1], b"a", 1, [0, 1]),
        ([1, 5, 6], "aé".encode(), 0, [0, 1, 2, 3]),
        ([1, 3], b"", 2, [0]),
    ],
)
def test_locate(tokens: list[int], text: bytes, first: int, ends: list[int]):
    found = locate(TABLE, tokens, text)
    assert found is not None and (found.first, found.ends.tolist()) == (first, ends)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([7], b"b"),  # a token with text from before
        ([7, 3], b"bb"),
        ([1, 0, 3], b"ab"),  # a special token inside
        ([1, 99], b"a"),  # no token of the table
        ([1], b"ab"),
        ([2, 3], b"b "),
    ],
)
def test_no_tokens_spell_just_that(tokens: list[int], text: bytes):
    assert locate(TABLE, tokens, text) is None


@given(st.lists(st.integers(0, 7)), st.integers(0, 30))
def test_located_tokens_spell_the_text(tokens: list[int], count: int):
    pieces = [TABLE[token] or b"" for token in tokens]
    whole = b"".join(pieces)
    text = whole[max(0, len(whole) - count) :]
    found = locate(TABLE, tokens, text)
    if found is None:
        return
    spelled = b"".join(pieces[found.first :])
    assert spelled in (text, b" " + text)
    for place, end in enumerate(found.ends.tolist()):
        assert b"".join(pieces[found.first + place :]) == (text[end:] if place else spelled)
    assert (np.diff(found.ends) > 0).all()
