"""Chunks that two tokenizers have in common: of any two ways to cut a text, and of answers with sidecars."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from fusejax.data.examples import Tokenized, joined
from fusejax.data.loader import assemble
from fusejax.fusion.answers import describe
from fusejax.fusion.chunks import common_chunks, with_chunks
from fusejax.fusion.vocabulary import VocabularyMap
from fusejax.objectives.logprobs import Logprobs
from fusejax.objectives.microbatch_loss import make_loss
from tests.fusion.example import SOURCE_ENDS, TARGET_ENDS
from tests.fusion.sidecar_files import END, byte_level
from tests.fusion.test_alignment import answers
from tests.fusion.test_soft_targets import ANSWER, REALISED, ROWS, TARGET, sidecar, tokenized

IDS = [1, 2, 3, 3, 4, 5]
""" " get| some| util|ization|." and the end of the turn: " util|ization" is " ut|iliz|ation" in the source."""
LOGPROBS = np.log([0.7, 0.6, 1, 0.8 * 0.9 * 0.95, 0.75, 0.9])
"""Of the chunks, at their last tokens."""


def chunks(data, sidecars, choose="mince", tokenizer=TARGET):
    return with_chunks(data, sidecars, tokenizer, tokenizer.eos_token_id, choose)


def check(found, ids, logprobs, example=0):
    numbers, values = found.chunks(example)
    assert numbers.tolist() == ids
    np.testing.assert_allclose(values, logprobs, atol=1e-3)  # log-probabilities are stored in 16 bits


def test_the_worked_example():
    source, target = common_chunks(SOURCE_ENDS, TARGET_ENDS)
    assert source.tolist() == [1, 2, 3, 3, 3, 4]
    assert target.tolist() == [1, 2, 3, 3, 4]


@given(answers())
def test_chunks_have_the_same_bytes_on_both_sides_and_are_cut_wherever_both_are(ends):
    sides = list(zip(ends, common_chunks(*ends), strict=True))
    borders = sorted(set(ends[0].tolist()) & set(ends[1].tolist()))
    for cuts, numbers in sides:
        spans = [(cuts[:-1][numbers == n].min(), cuts[1:][numbers == n].max()) for n in range(1, len(borders))]
        assert spans == list(itertools.pairwise(borders))  # the whole text, without a gap
        assert numbers.max(initial=0) == len(borders) - 1
        inside = numbers[numbers > 0]
        assert (np.diff(inside) >= 0).all() and (cuts[:-1] == cuts[1:])[numbers == 0].all()
        # Tokens of one chunk come one after the other.
        assert all(np.ptp(np.flatnonzero(numbers == n)) == (numbers == n).sum() - 1 for n in set(inside.tolist()))


@given(answers())
def test_the_beginning_of_a_text_has_the_same_chunks_up_to_its_last_border(ends):
    source, target = ends
    whole, part = (common_chunks(source, each)[1] for each in (target, target[: len(target) // 2 + 1]))
    inside = part > 0
    np.testing.assert_array_equal(part[inside], whole[: len(part)][inside])
    assert not inside[int(inside.sum()) :].any() or (target[1:] == target[:-1]).any()


def test_tokens_without_bytes():
    """At a border they are in no chunk, within one they are a part of it."""
    source, target = common_chunks(np.array([0, 0, 4, 9, 9]), np.array([0, 4, 6, 6, 9]))
    assert source.tolist() == [0, 1, 2, 0]
    assert target.tolist() == [1, 2, 2, 2]


def test_an_answer(tmp_path):
    found = chunks(tokenized(ANSWER), [sidecar(tmp_path)])
    check(found, IDS, LOGPROBS)
    kept = sum(float(value) for value in found.chunk_logprobs)
    assert kept == pytest.approx(np.log(REALISED).sum() + np.log(0.9), abs=2e-3), "nothing of the source is lost"
    assert found.fused == {"targets": 6, "places": 6, "chunks": 5, "examples": 1, "without": 0, "other": 0, "from a": 1}
    assert describe(found.fused).startswith("100.0% of target tokens are in chunks, of 1.20 tokens each; chosen: a 1;")


def test_no_vocabulary_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(VocabularyMap, "between", None)
    check(chunks(tokenized(ANSWER), [sidecar(tmp_path)]), IDS, LOGPROBS)


@pytest.mark.parametrize(("cut", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 0]), (4, [1, 2, 3, 3]), (5, IDS[:5])])
def test_an_answer_that_is_cut(tmp_path, cut, expected):
    """What comes after the last common border is in no chunk, and no end of the turn is left to match."""
    found = chunks(tokenized(ANSWER, cut=cut), [sidecar(tmp_path)])
    check(found, expected, np.where(np.array(expected) > 0, LOGPROBS[:cut], 0))


def test_the_end_of_the_turn_where_the_source_does_not_hold_it_likely(tmp_path):
    """The record does not have its probability then."""
    found = chunks(tokenized(ANSWER), [sidecar(tmp_path, rows=(*ROWS[:-1], {"!": 0.9, ".": 0.05}))])
    check(found, [*IDS[:-1], 0], [*LOGPROBS[:-1], 0])


def test_no_inner_border_in_common(tmp_path):
    ours, theirs = byte_level(["ab", "cd"]), byte_level(["bc"])
    rows = [{"a": 0.5}, {"bc": 0.5}, {"d": 0.25}, {END: 0.5}]
    source = sidecar(tmp_path, rows=rows, realised=[0.5, 0.5, 0.25], tokenizer=theirs, answers=("abcd",))
    tokens = ours("abcd", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 2
    tokens = np.array([0, *tokens, ours.eos_token_id], np.int32)
    data = Tokenized("sft", tokens, np.array([0, 1, 1, 1], bool), np.array([0, 4]), ["0"], [], {})
    check(chunks(data, [source], tokenizer=ours), [1, 1, 2], np.log([1, 0.0625, 0.5]))


def test_a_character_of_two_tokens(tmp_path):
    """The source cuts "é" in two, the target does not: it is one chunk."""
    ours, theirs = byte_level(["né"[1:].encode().decode("latin1")]), byte_level([])
    tokens = ours("né", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 2 and len(theirs("né", add_special_tokens=False)["input_ids"]) == 3
    rows = [{"n": 0.5}, {"Ã": 0.5}, {"©": 0.25}, {END: 0.5}]
    source = sidecar(tmp_path, rows=rows, realised=[0.5, 0.5, 0.25], tokenizer=theirs, answers=("né",))
    tokens = np.array([0, *tokens, ours.eos_token_id], np.int32)
    data = Tokenized("sft", tokens, np.array([0, 1, 1, 1], bool), np.array([0, 4]), ["0"], [], {})
    check(chunks(data, [source], tokenizer=ours), [1, 2, 3], np.log([0.5, 0.125, 0.5]))


def test_what_is_around_an_answer_is_in_no_chunk(tmp_path):
    """A template's beginning, and white space that the source does not have."""
    check(chunks(tokenized(ANSWER, before="!!"), [sidecar(tmp_path)]), [0, 0, *IDS], [0, 0, *LOGPROBS])
    check(
        chunks(tokenized(ANSWER + "\n"), [sidecar(tmp_path, "b")]), [*IDS[:-1], 0, 5], [*LOGPROBS[:-1], 0, LOGPROBS[-1]]
    )


def test_several_answers_and_sources(tmp_path):
    """Each has the chunks of the source that finds it likelier; one is of another text, one has no record."""
    same = [{name: 0.5} for name in ("Ġget", "Ġsome", "Ġutil", "ization", ".", END)]
    likely = sidecar(tmp_path, "likely", same, [0.81] * 5, TARGET)
    a = sidecar(tmp_path, answers=(ANSWER, ANSWER))
    found = chunks(tokenized(ANSWER, ANSWER, " get some", ANSWER), [a, likely])
    check(found, [1, 2, 3, 4, 5, 6], np.log([0.81] * 5 + [0.5]))
    check(found, IDS, LOGPROBS, example=1)
    for example in (2, 3):
        assert not found.chunks(example)[0].any() and not found.chunks(example)[1].any()
    assert (found.fused["from likely"], found.fused["from a"], found.fused["without"]) == (1, 1, 2)
    check(chunks(tokenized(ANSWER), [a, likely], choose="a"), IDS, LOGPROBS)


def test_parts_are_joined_and_fingerprints_differ(tmp_path):
    """A host may have no example at all."""
    nothing = Tokenized("sft", np.empty(0, np.int32), np.empty(0, bool), np.zeros(1, np.int64), [], [], {})
    source = [sidecar(tmp_path)]
    whole = chunks(tokenized(ANSWER), source)
    both = joined([chunks(nothing, source), whole])
    assert both.fused == whole.fused and both.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(both.chunk_logprobs, whole.chunk_logprobs)
    moved = dataclasses.replace(whole, chunk_logprobs=whole.chunk_logprobs - 1)
    assert len({each.fingerprint for each in (tokenized(ANSWER), whole, moved)}) == 3


def test_from_sidecars_to_the_loss_of_packed_rows(tmp_path):
    """By strings and float64 alone, with weights; the answers of a row have chunks of their own."""
    texts = (ANSWER, " get some", ANSWER)
    source = sidecar(tmp_path, answers=(ANSWER, "others", ANSWER))
    data = dataclasses.replace(chunks(tokenized(*texts), [source]), weights=np.array([0.5, 2, 3], np.float32))
    batch = {name: jnp.asarray(array) for name, array in assemble(data, [[2, 1, 0], []], 64).items()}
    values = np.where(batch["loss_mask"], -np.random.default_rng(0).exponential(1, (2, 64)), 0).astype(np.float32)
    found = make_loss(None, 0.7, 100.0)(Logprobs(jnp.asarray(values)), batch)

    source_tokens = np.log([*REALISED, 0.9]).astype(np.float16).astype(np.float64)  # as they are stored
    theirs = {" get": [0], " some": [1], " utilization": [2, 3, 4], ".": [5], END: [6]}
    expected, weights = {"loss": 0.0, "clm": 0.0, "alm": 0.0, "teacher_entropy": 0.0}, {0: 0.5, 1: 2.0, 2: 3.0}
    for segment, example in enumerate([2, 1, 0], 1):
        at = np.flatnonzero(np.asarray((batch["segment_ids"][0] == segment) & batch["loss_mask"][0]))
        pieces = [TARGET.convert_ids_to_tokens(int(batch["tokens"][0, i])).replace("Ġ", " ") for i in at]
        weight, lps = weights[example], values[0, at].astype(np.float64)
        expected["clm"] -= weight * lps.sum()
        expected["loss"] -= weight * lps.sum() * (0.7 if example != 1 else 1.0)
        text, ours = "", []
        for piece, lp in zip(pieces, lps, strict=True):
            text, ours = text + piece, [*ours, lp]
            if text not in theirs or example == 1:
                continue
            p, q = (np.exp(sum(each) / 100 - 1e-6) for each in ([source_tokens[j] for j in theirs[text]], ours))
            alm, entropy = (-100 * (p * np.log(x) + (1 - p) * np.log(1 - x)) for x in (q, p))
            expected["alm"] += weight * alm
            expected["teacher_entropy"] += weight * entropy
            expected["loss"] += weight * 0.3 * alm
            text, ours = "", []
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name
    assert float(found["count"]) == 0.5 * 6 + 2 * 3 + 3 * 6
    assert (float(found["fused"]), float(found["chunks"])) == (3.5 * 6, 3.5 * 5)


def test_a_source_that_is_the_target(tmp_path):
    """Each token is a chunk; equally likely ones have no gradient, but for the tokens' own part."""
    realised = np.float16([0.7, 0.6, 0.8, 0.9, 0.75])
    rows = [{name: 0.5} for name in ("Ġget", "Ġsome", "Ġutil", "ization", ".", END)]
    data = chunks(tokenized(ANSWER), [sidecar(tmp_path, "same", rows, realised, TARGET)])
    assert data.chunk_ids.tolist() == [1, 2, 3, 4, 5, 6]
    batch = {name: jnp.asarray(array) for name, array in assemble(data, [[0]], 32).items()}

    def loss(target, clm_weight):
        found = make_loss(None, clm_weight, 100.0)(Logprobs(target), batch)
        return found["loss"], found

    gradient, found = jax.grad(loss, has_aux=True)(batch["chunk_logprobs"], 0.0)
    assert float(found["loss"]) == float(found["alm"]) == float(found["teacher_entropy"]) > 0
    assert np.abs(gradient).max() < 1e-6
    gradient, _ = jax.grad(loss, has_aux=True)(batch["chunk_logprobs"], 0.25)
    np.testing.assert_allclose(gradient, -0.25 * np.asarray(batch["loss_mask"]), atol=1e-6)


def test_an_evaluation_is_plain_sft(tmp_path):
    """Without chunks; and with them where the tokens have all the weight: bit for bit, gradients too."""
    data = chunks(tokenized(ANSWER, ANSWER), [sidecar(tmp_path)])
    batch = {name: jnp.asarray(array) for name, array in assemble(data, [[0, 1]], 32).items()}
    plain = {name: array for name, array in batch.items() if not name.startswith("chunk")}
    values = jnp.where(batch["loss_mask"], -np.random.default_rng(0).exponential(1, (1, 32)).astype(np.float32), 0)
    sft, alm, one = make_loss(None), make_loss(None, 0.5, 100.0), make_loss(None, 1.0, 100.0)
    expected = sft(Logprobs(values), plain)
    assert alm(Logprobs(values), plain) == expected
    assert {name: float(one(Logprobs(values), batch)[name]) for name in expected} == {
        name: float(value) for name, value in expected.items()
    }
    gradients = [
        jax.grad(lambda x, loss=loss, rows=rows: loss(Logprobs(x), rows)["loss"])(values)
        for loss, rows in ((sft, plain), (one, batch))
    ]
    np.testing.assert_array_equal(*gradients)
