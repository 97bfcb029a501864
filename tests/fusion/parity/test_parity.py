"""What the public code does, by numbers that it gave itself, and that ours does not: one test for each trap."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejax.fusion import choice as ours
from fusejax.fusion.alignment import align
from fusejax.fusion.parity import Vocabulary, choice
from fusejax.fusion.parity.dtw import TIES, dtw, token_costs, warp
from fusejax.fusion.parity.edit_distance import Words, edit_distances
from fusejax.fusion.parity.edit_map import min_edit_map
from fusejax.fusion.parity.positions import aligned_logits, softmax
from fusejax.fusion.parity.statistics import count_pairs, most_frequent_map, statistics_map
from fusejax.fusion.projection import project
from fusejax.fusion.vocabulary import vocabulary_map

SYSTEMS = ("fusellm", "fusechat1", "fusechat2")
SOURCE = Vocabulary(["Ġget", "Ġsome", "Ġut", "iliz", "ation", ".", "Ġuse"], "Ġ")
TARGET = Vocabulary(["▁get", "▁some", "▁util", "ization", ".", "▁use"], "▁")
S, T = [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]
"""" get some utilization." under both."""
TOP_IDS = np.array([[1, 6], [2, 6], [3, 0], [4, 0], [5, 2], [6, 0]])
"""After each token of the source."""
LOGITS = np.array([[2.0, 1.0], [2.0, 2.0], [3.0, 1.0], [4.0, 1.0], [5.0, 1.0], [0.0, 0.0]])


def after(system, source=SOURCE, target=TARGET, source_ids=S, target_ids=T, table=None, counts=None, **lists):
    table = min_edit_map(source, target) if table is None else table
    top_ids, logits = lists.get("top_ids", TOP_IDS), lists.get("logits", LOGITS)
    return aligned_logits(system, source, source_ids, target, target_ids, top_ids, logits, table, counts)


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@settings(max_examples=200, deadline=None)
@given(st.text("abc▁é", max_size=8), st.lists(st.text("abc▁é", max_size=8), max_size=6))
def test_edit_distances(word, words):
    assert edit_distances(word, Words(words)).tolist() == [levenshtein(word, other) for other in words]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab▁", min_size=1, max_size=6), min_size=1, max_size=8, unique=True), st.data())
def test_min_edit_map_against_all_pairs(names, data):
    others = data.draw(st.lists(st.text("ab▁", min_size=1, max_size=9), min_size=1, max_size=8, unique=True))
    expected = [min(range(len(others)), key=lambda i: (levenshtein(name, others[i]), i)) for name in names]
    assert min_edit_map(Vocabulary(names, "▁"), Vocabulary(others, "▁")) == expected


def test_the_table_of_warping():
    found = warp("fusellm", SOURCE, S, TARGET, T)
    assert token_costs("fusellm", SOURCE, S, TARGET, T)[2].tolist() == [2, 4, 2, 6, 2]
    assert found.table.tolist() == [
        [0, 4, 8, 14, 17],
        [4, 0, 4, 11, 15],
        [6, 4, 2, 8, 10],
        [10, 8, 5, 7, 11],
        [15, 13, 8, 7, 12],
        [18, 17, 12, 14, 7],
    ]
    assert found.total == 7
    for ties in ("source", "target"):
        assert dtw(token_costs("fusellm", SOURCE, S, TARGET, T), ties).members == [[0], [1], [2, 3], [4], [5]]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_warping_against_all_paths(n, m, seed):
    costs = np.random.default_rng(seed).integers(0, 4, (n, m)).astype(float)

    def paths(i, j):
        if (i, j) == (n - 1, m - 1):
            yield [(i, j)]
        for x, y in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
            if x < n and y < m:
                yield from ([(i, j), *rest] for rest in paths(x, y))

    totals = {tuple(path): sum(costs[pair] for pair in path) for path in paths(0, 0)}
    for ties in ("source", "target"):
        found = dtw(costs, ties)
        assert found.total == min(totals.values())
        path = tuple(sorted((i, j) for j, members in enumerate(found.members) for i in members))
        assert totals[path] == found.total


def test_ties():
    """Two detours of equal cost around the middle: back by a source token first, or by a target token."""
    assert (TIES["fusellm"], TIES["fusechat1"], TIES["fusechat2"]) == ("source", "source", "target")
    costs = np.array([[0.0, 0.0, 5.0], [0.0, 9.0, 0.0], [5.0, 0.0, 0.0]])
    assert dtw(costs, "source").members == [[0], [0], [1, 2]]
    assert dtw(costs, "target").members == [[0, 1], [2], [2]]


def test_a_tenth_where_one_contains_the_other():
    assert token_costs("fusechat1", SOURCE, [4], TARGET, [3]).tolist() == [[pytest.approx(0.2)]]
    assert token_costs("fusechat2", SOURCE, [4], TARGET, [3]).tolist() == [[2]]
    space, word = Vocabulary(["Ġ"], "Ġ"), Vocabulary(["▁ab"], "▁")
    assert token_costs("fusechat2", space, [0], word, [0]).tolist() == [[2]]
    assert token_costs("fusellm", space, [0], word, [0]).tolist() == [[2]]


def test_the_worked_example():
    """After "▁util" and after "ization", whose distribution does each system take?"""
    # The list after "ation": "." with 5, and "Ġut", for which the map has "▁get".
    listed = {4: 5.0, 0: 1.0}
    assert after("fusellm")[2:4] == [{2: 1.0}, listed], "the map has ization for ation"
    assert after("fusechat1")[2:4] == [{2: 1.0}, {3: 1.0}]
    assert after("fusechat2")[2:4] == [{3: 1.0}, listed], "the next token"


def test_trap_1_the_current_token_is_repeated():
    """FuseLLM and FuseChat-1.0 teach "▁util" after "▁util". Ours has no distribution there: no border at byte 14."""
    for system in ("fusellm", "fusechat1"):
        assert softmax(after(system)[2]) == {T[2]: 1.0}
    rows = align(np.array([0, 4, 9, 12, 16, 21, 22]), np.array([0, 4, 9, 14, 21, 22]))
    assert rows[T.index(2) + 1] == -1


def test_trap_2_strings_are_no_places():
    """In "abab" the token "b" is matched with "b", but after "ab" the source speaks of what follows "abab"."""
    source, target = Vocabulary(["ab", "a", "b"], "▁"), Vocabulary(["a", "b", "ab"], "▁")
    assert warp("fusellm", source, [0, 1, 2], target, [0, 1, 2]).members[1] == [2]
    lists = {"top_ids": np.array([[0], [1], [2]]), "logits": np.array([[1.0], [1.0], [9.0]])}
    found = after("fusellm", source, target, [0, 1, 2], [0, 1, 2], **lists)
    assert found[1] == {1: 9.0}, "the source's list after its last token, at a place in the middle"
    assert align(np.array([0, 2, 3, 4]), np.array([0, 1, 2, 4])).tolist() == [0, -1, 1, 3]


def test_trap_3_what_is_missing_becomes_noise():
    """The token "▁ut" is no more unlike "▁get" than "▁util"; half the mass after "▁some" goes to "▁get"."""
    table = min_edit_map(SOURCE, TARGET)
    assert TARGET.names[table[2]] == "▁get"
    assert softmax(after("fusellm")[1]) == {0: 0.5, 5: 0.5}
    # Ours, in the same place: the real next token is the target's, and elsewhere " ut" begins no token of the target.
    pieces = [[name.replace(v.marker, " ").encode() for name in v.names] for v in (SOURCE, TARGET)]
    found = vocabulary_map(*pieces, lambda texts: [[] for _ in texts], {})
    assert found.table[2] == -1
    ids, probs, _ = project(
        TOP_IDS[1:2], np.log([[0.5, 0.5]]), np.array([2]), np.array([2]), found.table, 2, "renormalize"
    )
    assert dict(zip(ids[0].tolist(), probs[0].tolist(), strict=True)) == {2: 0.5, 5: 0.5}


def test_trap_4_finer_tokens_win():
    """An answer of 20 bytes: the first source cuts it into 10 tokens, the second, which predicts it better, into 5."""
    nats = np.array([[6.0, 5.9]])
    assert choice.min_ce(nats / [10, 5]).tolist() == [0]
    per_byte = np.array([ours.bits_per_byte(-nats[0], np.array([20, 20]))])
    assert ours.min_ce(per_byte).tolist() == [1]


def test_close_candidates_are_equal_in_bfloat16():
    close = np.array([[1.0, 0.9999]])
    assert choice.min_ce(close).tolist() == [0] and ours.min_ce(close).tolist() == [1]
    assert choice.min_ce(np.array([[1.2, 0.9], [0.9, 1.2]])).tolist() == [1, 0]


def test_trap_6_weights_are_nearly_uniform():
    assert choice.avg_ce(np.array([[1.2, 0.9]])).tolist() == [pytest.approx([0.47368, 0.52632], abs=1e-5)]
    theirs, better = (f(np.array([[0.0, 50.0]]))[0] for f in (choice.avg_ce, ours.avg_ce))
    assert theirs[0] / theirs[1] == pytest.approx(math.e) and better[1] < 1e-21


def test_the_first_of_equal_ids_wins():
    """Two source tokens become "▁get": FuseLLM drops the second, ours adds."""
    source, target = Vocabulary(["Ġget", "Ġgat"], "Ġ"), Vocabulary(["▁get", "▁b"], "▁")
    lists = {"top_ids": np.array([[1, 0]]), "logits": np.array([[2.0, 1.0]])}
    assert after("fusellm", source, target, [0], [0], **lists) == [{0: 2.0}]


def test_a_missing_marker_at_the_start_is_added():
    source, target = Vocabulary(["get"], "Ġ"), Vocabulary(["▁get", "get"], "▁")
    lists = {"top_ids": np.array([[0]]), "logits": np.array([[3.0]])}
    assert after("fusellm", source, target, [0], [0], **lists) == [{1: 3.0}]


def test_fusechat1_weighs_several_tokens_by_their_counts():
    source, target = Vocabulary(["Ġut", "il", "x"], "Ġ"), Vocabulary(["▁util", "▁ut", "il"], "▁")
    lists = {"top_ids": np.array([[1, 0], [1, 2]]), "logits": np.array([[4.0, 1.0], [8.0, 2.0]])}
    counts = {(0, 0): 3, (0, 1): 2}
    (found,) = after("fusechat1", source, target, [0, 1], [0], counts=counts, table=[1, 2, 0], **lists)
    first = 1 / (1 + math.exp(-1))
    assert found == pytest.approx({2: max(4 * first, 8 * (1 - first)), 1: first, 0: 2 * (1 - first)})
    # 2.0 takes the first that ends as the target's does.
    assert after("fusechat2", source, target, [0, 1], [0], table=[1, 2, 0], **lists) == [{2: 8.0, 0: 2.0}]


def test_fusechat1_takes_the_token_that_contains_the_targets():
    source, target = Vocabulary(["Ġgo", "ing"], "Ġ"), Vocabulary(["▁go", "▁going", "o"], "▁")
    lists = {"top_ids": np.array([[1], [0]]), "logits": np.array([[4.0], [8.0]])}
    assert after("fusechat1", source, target, [0, 1], [0], table=[0, 2], **lists) == [{2: 4.0}]


def test_counts():
    texts = [(S, T, warp("fusechat2", SOURCE, S, TARGET, T).members)] * 2
    counts = count_pairs(texts)
    pairs = [(0, 0), (1, 1), (2, 2), (2, 3), (3, 4), (4, 5)]
    assert counts == dict.fromkeys(pairs, 2), "pairs that occur, not all of both vocabularies"
    assert count_pairs([([7, 7, 8], [1], [[0, 1, 2]])]) == {(1, 7): 1, (1, 8): 1}


def test_a1_the_rarest_wins():
    """Where "ation" was aligned 1000 times with "ization", once with "ations": published, once is enough."""
    source, target = Vocabulary(["ation", "new", "end"], "Ġ"), Vocabulary(["ization", "ations", "end", "unk"], "▁")
    counts = {(0, 0): 1000, (1, 0): 1}
    published = statistics_map("fusechat2", counts, source, target, {2: 2}, 3)
    assert [target.names[i] for i in published] == ["ations", "unk", "end"]
    better = most_frequent_map("fusechat2", counts, source, target, {2: 2}, 3)
    assert [target.names[i] for i in better] == ["ization", "unk", "end"]
    # Of equal distances, too.
    equal = Vocabulary(["xation", "ations"], "▁")
    for first, second in itertools.permutations((1000, 1)):
        counts = {(0, 0): first, (1, 0): second}
        rarest, most = int(second == 1), int(second == 1000)
        assert statistics_map("fusechat2", counts, source, equal, {}, 0)[0] == rarest
        assert most_frequent_map("fusechat2", counts, source, equal, {}, 0)[0] == most
    # Over counts of about 10 they change nothing.
    counts = {(0, 0): 50, (1, 0): 1000}
    assert statistics_map("fusechat2", counts, source, equal, {}, 0)[0] == 0
