"""Bytes of tokens with the vocabularies of SmolLM2 (byte-level) and Gemma 3 (SentencePiece)."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fusejax.data.token_bytes import token_bytes
from tests.real.conftest import Real
from tests.real.texts import sources

LIKELY = st.sampled_from(
    [" a  b", "naïve é 😀", "\n\n\t ", "👩‍👩‍👧‍👦", "e\u0301", "ﬁ", "\0\x7f", "<div>", "<0x0A>", "𝕏"]
)


def test_a_texts_tokens_spell_it(real: Real):
    table = token_bytes(real.tokenizer)
    # SmolLM2's vocabulary lacks some bytes, control characters mostly, and the tokenizer passes over them.
    absent = bytes({*range(256)} - {piece[0] for piece in table if piece and len(piece) == 1})
    assert len(absent) < 40 and all(byte < 32 or byte > 127 for byte in absent)

    @settings(deadline=None, max_examples=300)
    @given(st.lists(LIKELY | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"))).map("".join))
    def spells(text: str) -> None:
        pieces = [table[token] for token in real.tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert None not in pieces and b"".join(pieces) == text.encode().translate(None, absent)

    for text in sources().values():
        spells.hypothesis.inner_test(text)
    spells()
