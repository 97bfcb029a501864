"""The map of two vocabularies: by hand, and between real tokenizers trained here."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusejax.data.token_bytes import token_bytes
from fusejax.fusion.vocabulary import VocabularyMap, vocabulary_map
from tests.fusion.example import SOURCE, TARGET, S, T, tokenize

TEXTS = ["get some utilization of the café, naïve or not.\n\tNew lines, 你好世界, and more words"] * 3
END = "<|end|>"


def byte_level(vocabulary: int, texts: list[str] = TEXTS) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def sentencepiece(prefix: bool) -> PreTrainedTokenizerFast:
    """With byte tokens, and maybe a space before every text, as Gemma and Llama 2 have it."""
    pieces = [END, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n"]
    words = ["▁", "▁get", "▁some", "▁ut", "get", "some", "ut", "il", "iz", "ation", "é"]
    letters = sorted(set("".join(TEXTS).replace(" ", "▁")) - {"\n", "\t", "你", "好"} - set(words))
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *words, *letters])}
    merges = []
    for word in words:
        whole = ""
        for letter in word:
            if whole and whole + letter not in vocabulary:
                vocabulary[whole + letter] = len(vocabulary)
            if whole and (whole, letter) not in merges:
                merges.append((whole, letter))
            whole += letter
    model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, unk_token="<unk>")


def test_the_worked_example():
    found = vocabulary_map(SOURCE, TARGET, tokenize, {S[None]: T[None]})
    expected = {piece: piece for piece in SOURCE} | {b" using": b" use"}
    del expected[b" using"]
    assert {piece: TARGET[found.table[S[piece]]] for piece in expected} == expected
    assert found.table[S[b" using"]] == -1, "no token of the target begins it"
    assert (found.same, found.first, found.special, found.dropped) == (10, 0, 1, 1)


def test_the_first_token_of_the_targets_tokenisation():
    found = vocabulary_map([b" utilization", b" someone"], TARGET, tokenize, {})
    assert [TARGET[i] for i in found.table] == [b" util", b" some"] and found.first == 2


def test_bytes_that_are_no_text():
    """é in two tokens, and tokens with a part of a character: the longest token that they begin with."""
    source = [b"\xc3", b"\xa9", b"\xc3\xa9", b" use\xc3", b"\xe4\xbd"]
    found = vocabulary_map(source, TARGET, tokenize, {})
    assert found.table.tolist() == [T[b"\xc3"], T[b"\xa9"], T[b"\xc3"], T[b" use"], -1]


def test_of_equal_tokens_the_one_that_is_written():
    target = [b"\n", b"a", b"\n", b"b"]
    for written in (0, 2):
        found = vocabulary_map([b"\n"], target, lambda texts, written=written: [[written] * len(t) for t in texts], {})
        assert found.table.tolist() == [written]
    assert vocabulary_map([b"\n"], target, lambda texts: [[3]] * len(texts), {}).table.tolist() == [2]


def test_special_tokens_are_as_given_or_dropped():
    found = vocabulary_map([b"a", None, None, None], [b"a", None], lambda texts: [[]] * len(texts), {2: 1, 5: 1})
    assert found.table.tolist() == [0, -1, 1, -1, -1, 1] and found.table.dtype == np.int32
    assert (found.same, found.first, found.special, found.dropped) == (1, 0, 2, 3)


@given(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=20, unique=True))
def test_the_same_vocabulary_is_the_identity(pieces):
    found = vocabulary_map(pieces, pieces, lambda texts: pytest.fail("nothing to ask"), {})
    assert found.table.tolist() == list(range(len(pieces))) and found.same == len(pieces)


@pytest.mark.parametrize("tokenizer", [byte_level(300), sentencepiece(prefix=True), sentencepiece(prefix=False)])
def test_one_tokenizer_with_itself(tokenizer: PreTrainedTokenizerFast):
    """Every token is itself, but for byte tokens beside a letter's own token: they are never written."""
    end = tokenizer.eos_token_id
    table = VocabularyMap.between(tokenizer, tokenizer, {end: end}).table
    pieces = token_bytes(tokenizer)
    last = {piece: number for number, piece in enumerate(pieces)}
    expected = [end if n == end else -1 if piece is None else last[piece] for n, piece in enumerate(pieces)]
    assert table.tolist() == expected
    for text in TEXTS:
        tokens = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
        np.testing.assert_array_equal(table[tokens], tokens)


@pytest.mark.parametrize("prefix", [False, True])
def test_between_two_kinds_of_tokenizers(prefix: bool):
    bytes_source, target = byte_level(400), sentencepiece(prefix)
    end = {bytes_source.eos_token_id: target.eos_token_id}
    found = VocabularyMap.between(bytes_source, target, end)
    ours, theirs = token_bytes(bytes_source), token_bytes(target)
    assert found.table[bytes_source.eos_token_id] == target.eos_token_id
    for number, piece in enumerate(ours):
        if piece is None:
            continue
        begins = theirs[found.table[number]]
        assert piece.startswith(begins), "with byte tokens, nothing need be dropped"
        if piece in theirs:
            assert begins == piece
        elif not prefix:
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                continue
            assert found.table[number] == target(text, add_special_tokens=False)["input_ids"][0]
    assert found.dropped == 0 and found.same + found.first + found.special == len(bytes_source)
    newline = bytes_source.convert_tokens_to_ids("Ċ")
    assert found.table[newline] == target.convert_tokens_to_ids("\n")
    back = VocabularyMap.between(target, bytes_source, {b: a for a, b in end.items()})
    assert all(piece is None or (piece.startswith(ours[back.table[number]])) for number, piece in enumerate(theirs))
