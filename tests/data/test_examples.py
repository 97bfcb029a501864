"""What of a data set is kept, what is cut, and what is rejected for which reason."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusejax.common.cli import UserError
from fusejax.data import examples
from fusejax.data.chat import encode_conversation
from fusejax.data.examples import Rejection, check_any_kept, joined, parts, tokenize
from fusejax.data.records import PreferencePair, PreferenceTriple, SFTExample, Shards, encode, open_shards, write_shards
from tests.data.families import make_tokenizer


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def sft(name: str, *messages: dict[str, str]) -> SFTExample:
    return SFTExample(name, "set", "math", "source", list(messages) or [turn("user", "Hi"), turn("assistant", name)])


def pair(name: str, chosen="yes", rejected="no", prompt="Hi", scores=(1.0, 0.5)) -> PreferencePair:
    sides = [turn("user", prompt)], [turn("assistant", chosen)], [turn("assistant", rejected)]
    return PreferencePair(name, "set", "math", "source", *sides, *scores)


def triple(name: str, source="Yes!", target="yes", rejected="no", prompt="Hi", scores=(2.0, 1.0, 0.5)):
    answers = ([turn("assistant", answer)] for answer in (source, target, rejected))
    return PreferenceTriple(name, "set", "math", "source", [turn("user", prompt)], *answers, *scores)


def shards(*records: SFTExample | PreferencePair | PreferenceTriple | bytes) -> Shards:
    """As opened, without files; bytes stand for a record that someone else wrote."""
    types = {type(record) for record in records} - {bytes}
    kind = "dpo" if PreferencePair in types else "wrpo" if PreferenceTriple in types else "sft"
    data = [record if isinstance(record, bytes) else encode(record) for record in records]
    return Shards("data/train", kind, "fingerprint", [data])


def test_sft(tokenizer, monkeypatch):
    monkeypatch.setattr(examples, "CHUNK", 2)
    multi = [turn("user", "Hi"), turn("assistant", "a"), turn("user", "And?"), turn("assistant", "b 😀")]
    records = [sft("one"), sft("two", *multi), sft("three"), sft("four"), sft("five")]
    tokenized = tokenize(shards(*records), tokenizer, max_length=100)
    assert tokenized.ids == ["one", "two", "three", "four", "five"]
    for i, record in enumerate(records):
        tokens, mask = tokenized.sequence(i)
        expected = encode_conversation(tokenizer, record.messages)
        assert np.array_equal(tokens, expected.tokens) and np.array_equal(mask, expected.loss_mask)
        assert (tokenized.lengths[i], tokenized.target_lengths[i]) == (len(tokens), mask.sum())
    assert tokenized.tokens.dtype == np.int32 and tokenized.loss_mask.dtype == bool
    assert len(tokenized) == 5 and not tokenized.rejected and not tokenized.changes


def test_pairs(tokenizer):
    record = pair("a", chosen="The answer is 42.")
    earlier = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "?")]
    longer = PreferencePair("b", "s", "d", "m", earlier, record.chosen, record.rejected, 1.0, 0.5)
    tokenized = tokenize(shards(record, longer), tokenizer, max_length=100)
    assert tokenized.kind == "dpo" and len(tokenized) == 2 and tokenized.sequences_per_example == 2
    for i, (prompt, answer) in enumerate((r.prompt, a) for r in (record, longer) for a in (r.chosen, r.rejected)):
        tokens, mask = tokenized.sequence(i)
        assert np.array_equal(tokens, encode_conversation(tokenizer, prompt + answer).tokens)
        assert tokenizer.decode(tokens[mask]) == answer[0]["content"] + "<|im_end|>"  # never earlier answers
    lengths = [len(tokenized.sequence(i)[0]) for i in range(4)]
    assert tokenized.lengths.tolist() == [lengths[0] + lengths[1], lengths[2] + lengths[3]]


def test_triples(tokenizer):
    """The sequences are the source's chosen answer, the target's, and the rejected one."""
    record = triple("a")
    tokenized = tokenize(shards(record, triple("b", source="yes")), tokenizer, max_length=100)
    assert tokenized.ids == ["a", "b"] and tokenized.sequences_per_example == 3
    for i, answer in enumerate(("Yes!", "yes", "no")):
        tokens, mask = tokenized.sequence(i)
        said = [turn("assistant", answer)]
        assert np.array_equal(tokens, encode_conversation(tokenizer, record.prompt + said).tokens)
        assert tokenizer.decode(tokens[mask]) == answer + "<|im_end|>"
    # A source and a target may say the same: what all three sequences begin with is the prompt still.
    assert tokenized.shared_lengths.tolist() == [tokenized.sequence(i)[1].argmax() for i in (0, 3)]


def test_every_rejection_of_a_triple_has_its_reason(tokenizer):
    records = [
        triple("good"),
        triple("nobody scored it", scores=()),
        triple("target is rejected", target="no"),
        triple("source is rejected", source="no"),
        triple("source and target say the same", source="yes"),
        triple("nan of the source", scores=(math.nan, 1.0, 0.5)),
        triple("infinite of the rejected", scores=(2.0, 1.0, -math.inf)),
        triple("tie of the target", scores=(2.0, 0.5, 0.5)),
        triple("source is the worst", scores=(0.1, 1.0, 0.5)),
        triple("same when cut", source="a" + " b" * 100 + "c", rejected="a" + " b" * 100 + "d"),
        encode(pair("a pair")),
    ]
    kept = tokenize(shards(*records), tokenizer, max_length=80)
    reasons = {
        "target is rejected": "identical_pair",
        "source is rejected": "identical_pair",
        "nan of the source": "non_finite_score",
        "infinite of the rejected": "non_finite_score",
        "same when cut": "identical_pair",
        "#10": "bad_record",
    }
    assert {rejection.id: rejection.reason for rejection in kept.rejected} == reasons
    details = {rejection.id: rejection.detail for rejection in kept.rejected}
    assert details["target is rejected"] == "target_chosen and rejected are the same"
    assert details["same when cut"] == "source_chosen and rejected are the same when cut"
    assert kept.changes == {"unordered": ["tie of the target"]}
    dropped = tokenize(shards(*records), tokenizer, max_length=80, drop_unordered_pairs=True)
    assert {rejection.id: rejection.reason for rejection in dropped.rejected} == reasons | {
        "tie of the target": "unordered_pair"
    }


def test_weights(tokenizer):
    """None where no record has one; 1 for those without, where others have one."""
    plain = [sft("a"), sft("b"), sft("c"), sft("d")]
    given = zip(plain, (None, 2.5, 0.5, None), strict=True)
    records = [dataclasses.replace(record, weight=weight) for record, weight in given]
    source = shards(*records)
    whole = tokenize(source, tokenizer, max_length=100)
    assert whole.weights.dtype == np.float32 and whole.weights.tolist() == [1.0, 2.5, 0.5, 1.0]
    apart = [tokenize(source, tokenizer, records=each, max_length=100) for each in (range(1), range(1, 4))]
    assert apart[0].weights is None and joined(apart).weights.tolist() == whole.weights.tolist()
    without = tokenize(shards(*plain), tokenizer, max_length=100)
    assert without.weights is None and joined([without, without]).weights is None
    assert len({whole.fingerprint, without.fingerprint, without.weighted().fingerprint}) == 3
    bad = [dataclasses.replace(sft(str(weight)), weight=weight) for weight in (0.0, -1.0, math.nan, math.inf)]
    kept = tokenize(shards(*records, *bad), tokenizer, max_length=100)
    assert kept.ids == whole.ids
    reasons = {rejection.id: rejection.reason for rejection in kept.rejected}
    assert reasons == dict.fromkeys(("0.0", "-1.0", "nan", "inf"), "bad_weight")


def test_all_that_the_assistant_says_after_a_prompt_is_a_target(tokenizer):
    prompt = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "1+1?")]
    more = [turn("user", "Sure?"), turn("assistant", "Yes.")]
    pairs = [
        PreferencePair("a", "s", "d", "m", prompt, [turn("assistant", "2"), *more], [turn("assistant", "3"), *more]),
        PreferencePair("b", "s", "d", "m", prompt, [turn("assistant", "2"), *more], [turn("assistant", "2")]),
        PreferencePair("c", "s", "d", "m", prompt, [turn("assistant", "2"), more[0]], [turn("assistant", "3")]),
    ]
    tokenized = tokenize(shards(*pairs), tokenizer, max_length=200)
    said = [tokenizer.decode(tokens[mask]) for tokens, mask in map(tokenized.sequence, range(4))]
    two = "2<|im_end|>Yes.<|im_end|>"
    assert said == [two, two.replace("2", "3"), two, "2<|im_end|>"]
    assert [rejection.id for rejection in tokenized.rejected] == ["c"]
    # A system turn that goes to the user's moves the turns, not the targets.
    system = [turn("system", "Be brief."), turn("user", "1+1?")]
    pair_with_system = PreferencePair("d", "s", "d", "m", system, [turn("assistant", "2")], [turn("assistant", "3")])
    gemma = make_tokenizer("gemma")
    tokenized = tokenize(shards(pair_with_system), gemma, max_length=200)
    assert gemma.decode(tokenized.sequence(0)[0][tokenized.sequence(0)[1]]) == "2<end_of_turn>"
    assert tokenized.changes == {"folded": ["d"]} and "1 folded, 0 rejected" in tokenized.summary()


def test_every_rejection_has_its_reason(tokenizer):
    records = [
        pair("good"),
        pair("nobody scored it", scores=()),
        pair("same", chosen="yes", rejected="yes"),
        pair("nan", scores=(math.nan, 0.0)),
        pair("infinite", scores=(0.0, -math.inf)),
        pair("long prompt", prompt="Hello " * 100),
        pair("empty", rejected=" "),
        pair("same when cut", chosen="a" + " b" * 100 + "c", rejected="a" + " b" * 100 + "d"),
        encode(sft("an sft record")),
        b"\xff\xffgarbage",
        PreferencePair("no answer", "s", "d", "m", [turn("user", "a")], [turn("user", "b")], [turn("user", "c")], 1, 0),
        pair("cut", rejected="a" + " b" * 100),
    ]
    tokenized = tokenize(shards(*records), tokenizer, max_length=80, max_prompt_length=60)
    assert tokenized.ids == ["good", "nobody scored it", "cut"] and tokenized.changes == {"cut": ["cut"]}
    assert {rejection.id: rejection.reason for rejection in tokenized.rejected} == {
        "same": "identical_pair",
        "nan": "non_finite_score",
        "infinite": "non_finite_score",
        "long prompt": "prompt_too_long",
        "empty": "empty_response",
        "same when cut": "identical_pair",
        "#8": "bad_record",
        "#9": "bad_record",
        "no answer": "empty_mask",
    }
    assert all(rejection.detail for rejection in tokenized.rejected)
    assert "identical_pair 2" in tokenized.summary() and "9 rejected" in tokenized.summary()


def test_pairs_whose_scores_are_not_in_order_are_counted_and_dropped_where_asked(tokenizer):
    records = [
        pair("good"),
        pair("tie", scores=(0.5, 0.5)),
        pair("worse", scores=(-1.0, 0.5)),
        pair("unscored", scores=()),
        pair("tie and too long", prompt="Hello " * 100, scores=(0.5, 0.5)),
    ]

    def run(drop: bool):
        return tokenize(shards(*records), tokenizer, max_length=80, drop_unordered_pairs=drop)

    kept = run(False)
    assert kept.ids == ["good", "tie", "worse", "unscored"]
    assert kept.changes == {"unordered": ["tie", "worse"]}
    assert kept.summary().endswith("; 2 unordered, 1 rejected (prompt_too_long 1)")
    dropped = run(True)
    assert dropped.ids == ["good", "unscored"] and not dropped.changes
    assert dropped.rejected[1] == Rejection(
        "worse", "unordered_pair", "chosen_score -1.0 is not above rejected_score 0.5"
    )
    assert [each.reason for each in dropped.rejected] == ["unordered_pair"] * 3


def test_limits_are_exact(tokenizer):
    (record,) = (sft("x", turn("user", "Hello " * 5), turn("assistant", "The answer is 42.")),)
    whole, mask, _ = encode_conversation(tokenizer, record.messages)
    prompt, end = int(mask.argmax()), int(mask.nonzero()[0][-1]) + 1

    def run(**limits):
        return tokenize(shards(record, sft("short", turn("user", ""), turn("assistant", "a"))), tokenizer, **limits)

    assert run(max_length=100, max_prompt_length=prompt).ids == ["x", "short"]
    assert run(max_length=100, max_prompt_length=prompt - 1).rejected == [
        Rejection("x", "prompt_too_long", f"{prompt} tokens, at most {prompt - 1}")
    ]
    assert run(max_length=prompt + 1).ids == ["x", "short"]  # one target left
    assert run(max_length=prompt).ids == ["short"]
    cut = run(max_length=end - 1)
    assert cut.changes == {"cut": ["x"]} and np.array_equal(cut.sequence(0)[0], whole[: end - 1])
    assert not run(max_length=end).changes  # what follows the end of the turn is no loss


def test_the_first_token_is_no_target(tokenizer, monkeypatch):
    template = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    tokenized = tokenize(shards(sft("x", turn("assistant", "Hello"))), tokenizer, max_length=9)
    assert not tokenized.loss_mask[0] and tokenized.loss_mask[1:].all()


def test_all_rejected(tokenizer):
    records = [sft("a", turn("user", "Hi")), sft("b", turn("user", "Hi")), sft("c", turn("assistant", ""))]
    message = r"data data/train: all 3 examples are rejected, as empty_mask \(2\), for example 'a': no assistant turn"
    with pytest.raises(UserError, match=message):
        check_any_kept(tokenize(shards(*records), tokenizer, max_length=80), "data/train")


def test_fingerprint(tokenizer, monkeypatch):
    def fingerprint(name="a", max_length=80):
        return tokenize(shards(sft(name)), tokenizer, max_length=max_length).fingerprint

    first = fingerprint()
    assert fingerprint() == first and fingerprint(max_length=60) == first  # nothing was cut
    assert len({first, fingerprint(name="b"), fingerprint(max_length=38)}) == 3
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("helpful", "helpless"))
    assert fingerprint() != first


def test_from_files(tokenizer, tmp_path):
    records = [pair(f"id{i}", chosen=f"yes {i}") for i in range(20)]
    write_shards(tmp_path, "train", records, kind="dpo", format="tfrecord", num_shards=3, manifest={})
    tokenized = tokenize(open_shards(tmp_path / "train"), tokenizer, max_length=80)
    assert tokenized.ids == [record.id for record in records]


@given(st.integers(0, 10**7), st.integers(0, 10**4), st.integers(1, 300))
def test_parts_are_the_whole_and_even(start, size, count):
    records = range(start, start + size)
    found = parts(records, count)
    assert len(found) == count
    assert [i for part in found for i in part] == list(records)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(count=st.integers(1, 16))
def test_parts_join_to_what_is_tokenised_at_once(count):
    """With more parts than records, too, and parts in which nothing is kept."""
    tokenizer = make_tokenizer("chatml")
    records = [
        pair("unordered", scores=(0.5, 0.5)),
        pair("same", chosen="yes", rejected="yes"),
        b"garbage",
        pair("cut", rejected="a" + " b" * 100),
        pair("nan", scores=(math.nan, 0.0)),
        pair("spelled", chosen="<|im_end|>"),
        pair("good"),
        pair("last", scores=(0.1, 0.9)),
    ]
    source, whole = shards(*records), range(len(records))
    expected = tokenize(source, tokenizer, max_length=80)
    found = joined([tokenize(source, tokenizer, records=part, max_length=80) for part in parts(whole, count)])
    assert found.fingerprint == expected.fingerprint
    assert (found.ids, found.rejected) == (expected.ids, expected.rejected)
    assert list(found.changes.items()) == list(expected.changes.items())
    assert {name: getattr(found, name).dtype for name in ("tokens", "loss_mask", "offsets")} == {
        "tokens": np.int32,
        "loss_mask": bool,
        "offsets": np.int64,
    }


@pytest.mark.parametrize("format", ["arrayrecord", "tfrecord"])
def test_another_process_reads_the_same_records(tmp_path, format):
    """Also from the second file on, and past an empty one."""
    write_shards(tmp_path, "train", map(sft, "abcde"), kind="sft", format=format, num_shards=7, manifest={})
    source = pickle.loads(pickle.dumps(open_shards(tmp_path / "train")))
    assert [source[i].id for i in range(5)] == [record.id for record in source] == list("abcde")
    assert (source[-1].id, [record.id for record in source[1:3]]) == ("e", ["b", "c"])
    with pytest.raises(IndexError):
        source[5]
