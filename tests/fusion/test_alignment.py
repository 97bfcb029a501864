"""Alignment by bytes: the worked example, its properties for any two ways to cut, tokens without bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusejax.fusion.alignment import align
from tests.fusion.example import SOURCE_ENDS, TARGET_ENDS


@st.composite
def answers(draw):
    """Ends of one answer under two tokenizers; offsets that come more than once are tokens without bytes."""
    size = draw(st.integers(0, 30))

    def cut():
        return np.array([0, *sorted(draw(st.lists(st.integers(0, size), max_size=20))), size])

    return cut(), cut()


def test_the_worked_example():
    assert align(SOURCE_ENDS, TARGET_ENDS).tolist() == [0, 1, 2, -1, 5, 6]
    assert align(TARGET_ENDS, SOURCE_ENDS).tolist() == [0, 1, 2, -1, -1, 4, 5]


@given(answers())
def test_equal_bytes_before_and_each_row_once(ends):
    source, target = ends
    rows = align(source, target)
    paired = rows >= 0
    assert rows.shape == target.shape and (source[rows[paired]] == target[paired]).all()
    assert (np.diff(rows[paired]) > 0).all()
    assert rows[-1] == len(source) - 1, "the ends of the turn belong together"
    # As many at each offset as both sides have.
    for offset in set(source.tolist()) | set(target.tolist()):
        places = [int((each == offset).sum()) for each in (source, target)]
        assert (target[paired] == offset).sum() == min(places)


@given(answers())
def test_symmetric(ends):
    source, target = ends
    there, back = align(source, target), align(target, source)
    pairs = {(row, place) for place, row in enumerate(there.tolist()) if row >= 0}
    assert pairs == {(row, place) for row, place in enumerate(back.tolist()) if place >= 0}


@given(answers())
def test_identical_tokenizers_align_everywhere(ends):
    assert align(ends[0], ends[0].copy()).tolist() == list(range(len(ends[0])))


def test_no_inner_border_in_common():
    assert align(np.array([0, 3, 6, 10]), np.array([0, 2, 5, 8, 10])).tolist() == [0, -1, -1, -1, 3]


def test_a_byte_level_source():
    """A token a byte: every place of the target has a row; the other way few have."""
    rows = align(np.arange(23), TARGET_ENDS)
    assert rows.tolist() == TARGET_ENDS.tolist()
    assert (align(TARGET_ENDS, np.arange(23)) >= 0).sum() == len(TARGET_ENDS)


def test_a_character_of_two_tokens():
    """ "né": the source cuts é in two; the target's place before é has the row before both."""
    assert align(np.array([0, 1, 2, 3]), np.array([0, 1, 3])).tolist() == [0, 1, 3]


def test_tokens_without_bytes_are_paired_from_the_last_one_back():
    # A mark before the text: the source's second row is the one about the text's first token.
    assert align(np.array([0, 0, 4, 9]), np.array([0, 4, 9])).tolist() == [1, 2, 3]
    assert align(np.array([0, 4, 9]), np.array([0, 0, 4, 9])).tolist() == [-1, 0, 1, 2]
    # Before the end of the turn.
    assert align(np.array([0, 4, 4]), np.array([0, 4])).tolist() == [0, 2]
    assert align(np.array([0, 0]), np.array([0, 0, 0, 0])).tolist() == [-1, -1, 0, 1]
    # An empty answer has the end of its turn alone.
    assert align(np.array([0]), np.array([0])).tolist() == [0]


def test_two_texts_are_no_answer():
    with pytest.raises(ValueError, match="an answer of 22 bytes cannot be aligned with one of 21"):
        align(SOURCE_ENDS, TARGET_ENDS[:-1])
