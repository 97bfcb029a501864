"""Alignment and vocabulary maps between SmolLM2 (byte-level) and Gemma 3 (SentencePiece)."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from examples.pretrained import MODELS, pretrained
from fusejax.data.token_bytes import locate, token_bytes
from fusejax.fusion.alignment import align
from fusejax.fusion.vocabulary import VocabularyMap
from tests.real.texts import sources

NAMES = sorted(MODELS)


@pytest.fixture(scope="module")
def tokenizers():
    return {name: AutoTokenizer.from_pretrained(pretrained(name)) for name in NAMES}


@pytest.mark.parametrize(("source", "target"), [NAMES, NAMES[::-1], NAMES[:1] * 2])
def test_vocabularies(tokenizers, source, target):
    ours, theirs = tokenizers[source], tokenizers[target]
    found = VocabularyMap.between(ours, theirs, {ours.eos_token_id: theirs.eos_token_id})
    pieces, others = token_bytes(ours), token_bytes(theirs)
    assert found.table[ours.eos_token_id] == theirs.eos_token_id
    missing = []
    for number, piece in enumerate(pieces):
        if piece is None or number == ours.eos_token_id:
            continue
        if found.table[number] < 0:
            missing.append(piece)
        else:
            assert piece.startswith(others[found.table[number]])
    # SmolLM2's vocabulary lacks some bytes.
    assert not {piece[:1] for piece in missing} & set(others) and len(missing) < 40
    if source == target:
        for text in sources().values():
            tokens = np.array(ours(text, add_special_tokens=False)["input_ids"])
            np.testing.assert_array_equal(found.table[tokens], tokens)


def test_places(tokenizers):
    tables = [token_bytes(tokenizers[name]) for name in NAMES]
    for kind, text in sources().items():
        ends = []
        for name, table in zip(NAMES, tables, strict=True):
            found = locate(table, tokenizers[name](text, add_special_tokens=False)["input_ids"], text.encode())
            assert found is not None
            ends.append(found.ends)
        rows = align(*ends)
        share = (rows >= 0).mean()
        assert share > {"english": 0.8, "code": 0.8, "chinese": 0.2}[kind], (kind, share)
        assert (rows >= 0).sum() == (align(*ends[::-1]) >= 0).sum()
