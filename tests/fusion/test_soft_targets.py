"""From sidecars to soft targets, with tokenizers that cut an answer differently."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from fusejax.common.cli import UserError
from fusejax.data.examples import Tokenized, joined
from fusejax.data.records import SFTExample, open_shards, write_shards
from fusejax.data.token_bytes import token_bytes
from fusejax.fusion.answers import Answer, Source, describe
from fusejax.fusion.sidecars import open_sidecars
from fusejax.fusion.soft_targets import Rules, with_soft_targets
from tests.fusion.sidecar_files import END, byte_level, distributions, write

ANSWER = " get some utilization."
TARGET = byte_level(["Ġget", "Ġsome", "Ġutil", "ization", "Ġuse"])
SOURCE = byte_level(["Ġget", "Ġsome", "Ġut", "iliz", "ation", "Ġuse"])
OTHER = "<|start|>"
"""A special token: it is none of the target's."""
ROWS = (
    {"Ġget": 0.7, "Ġsome": 0.2, "Ġuse": 0.05},
    {"Ġsome": 0.6, "Ġuse": 0.3, OTHER: 0.05},
    {"Ġut": 0.8, OTHER: 0.1, "Ġuse": 0.06},
    {"iliz": 0.9},
    {"ation": 0.95},
    {".": 0.75, "!": 0.2, "Ġsome": 0.01},
    {END: 0.9, "!": 0.05},
)
EXPECTED = (
    {"Ġget": 0.736842, "Ġsome": 0.210526, "Ġuse": 0.052632},
    {"Ġsome": 0.666667, "Ġuse": 0.333333},
    {"Ġutil": 0.930233, "Ġuse": 0.069767},
    {},
    {".": 0.78125, "!": 0.208333, "Ġsome": 0.010417},
    {END: 0.947368, "!": 0.052632},
)
"""What the target learns at its places, " get| some| util|ization|." and the end of the turn."""
MASSES = (0.95, 0.9, 0.86, 0, 0.96, 0.95)
REALISED = (0.7, 0.6, 0.8, 0.9, 0.95, 0.75)
MINCE = Rules("mince", top_k=4, tail="renormalize", temperature=1.0)


def ids(tokenizer, row):
    return {tokenizer.convert_tokens_to_ids(name): value for name, value in row.items()}


def tokenized(*texts, cut=None, before=""):
    """Examples `0`, `1`, ...: a prompt, and the answer as the target has it; all tokens after `cut` are cut off."""
    sequences, masks = [], []
    for text in texts:
        prompt = TARGET("question", add_special_tokens=False)["input_ids"]
        answer = TARGET(before + text, add_special_tokens=False)["input_ids"] + [TARGET.eos_token_id]
        sequences.append((prompt + answer)[: None if cut is None else len(prompt) + cut])
        masks.append(np.arange(len(sequences[-1])) >= len(prompt))
    offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    names = [str(i) for i in range(len(texts))]
    return Tokenized("sft", np.concatenate(sequences).astype(np.int32), np.concatenate(masks), offsets, names, [], {})


def sidecar(folder, source="a", rows=ROWS, realised=REALISED, tokenizer=SOURCE, answers=(ANSWER,)):
    data = folder / "sft" / "train"
    if not data.parent.exists():
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER}]
        example = SFTExample(id="0", dataset="d", domain="chat", source_model="a", messages=turns)
        write_shards(data.parent, "train", [example], kind="sft", num_shards=1, manifest={})
    records = [
        distributions(str(i), source, tokenizer, answer, [ids(tokenizer, row) for row in rows], realised)
        for i, answer in enumerate(answers)
    ]
    path = write(folder / source, source, tokenizer, records, data)
    return open_sidecars([path], open_shards(data))[0]


def learnt(found, example=0):
    """Token -> probability at each target token of an example, without what has none."""
    return [
        {TARGET.convert_ids_to_tokens(int(token)): weight for token, weight in zip(*row, strict=True) if weight > 0}
        for row in zip(*found.soft_targets(example), strict=True)
    ]


def check(found, expected):
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=5e-4)  # log-probabilities are stored in 16 bits


def test_a_worked_example(tmp_path):
    """Where the source has no border, before "ization", there is nothing; its " ut" is the target's " util" there."""
    found = with_soft_targets(tokenized(ANSWER), [sidecar(tmp_path)], TARGET, TARGET.eos_token_id, MINCE)
    check(learnt(found), EXPECTED)
    assert found.fused == pytest.approx(
        {"targets": 6, "places": 5, "mass": sum(MASSES), "examples": 1, "without": 0, "other": 0, "from a": 1}, abs=2e-3
    )
    assert "83.3% of target tokens have a distribution, of mass 0.92" in describe(found.fused)
    kept = Rules("a", 4, "keep", 1.0)
    found = with_soft_targets(tokenized(ANSWER), [sidecar(tmp_path)], TARGET, TARGET.eos_token_id, kept)
    assert found.soft_weights.sum(axis=1) == pytest.approx(np.array(MASSES), abs=5e-4)


@pytest.mark.parametrize("cut", [1, 3, 4, 5])
def test_an_answer_that_is_cut_has_what_the_whole_one_has(tmp_path, cut):
    found = with_soft_targets(tokenized(ANSWER, cut=cut), [sidecar(tmp_path)], TARGET, TARGET.eos_token_id, MINCE)
    check(learnt(found), EXPECTED[:cut])


def test_what_a_template_writes_before_an_answer_has_nothing(tmp_path):
    found = with_soft_targets(tokenized(ANSWER, before="!!"), [sidecar(tmp_path)], TARGET, TARGET.eos_token_id, MINCE)
    # White space at the border of the answer is no part of what is compared, so " get" is still "get".
    check(learnt(found), ({}, {}, *EXPECTED))


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("42 \n", "42 \n", "a.b.c"),
        ("42", "42 \n", "a...b"),
        ("42 \n", "42", "a.c"),
        ("\n 42", "\n 42", "ab..c"),
        ("42", "\n 42", "..a.b"),
        ("\n 42", "42", "b.c"),
        ("\n 42 \n", "\n 42 \n", "ab..c.d"),
        ("42", "\n 42 \n", "..a...b"),
        ("\n 42 \n", "42", "b.d"),
        ("42", "42\u3000", "a....b"),  # white space of three bytes, which a template cuts off as well
        ("42\u3000", "42", "a.e"),
    ],
)
def test_white_space_that_one_template_cuts_off(tmp_path, theirs, ours, expected):
    """Each row of the source says its own letter. Its tokens are "42", " 42", " \\n", ...; the target's, characters."""
    tokenizer = byte_level(["Ġ42", "42", "ĠĊ"])
    length = len(tokenizer(theirs, add_special_tokens=False)["input_ids"])
    rows = [{letter: 1.0} for letter in "abcdefg"[: length + 1]]
    found = with_soft_targets(
        tokenized(ours),
        [sidecar(tmp_path, rows=rows, realised=[0.5] * length, tokenizer=tokenizer, answers=(theirs,))],
        TARGET,
        TARGET.eos_token_id,
        MINCE,
    )
    assert "".join("".join(row) or "." for row in learnt(found)) == expected


def test_the_space_of_sentencepiece_is_none_of_the_answers(tmp_path):
    """Where the source's template cuts the answer's own space off, and its tokenizer writes one before a text."""
    tokenizer = byte_level(["Ġ42", "42"])
    source = sidecar(tmp_path, rows=[{"a": 1.0}, {"b": 1.0}], realised=[0.5], tokenizer=tokenizer, answers=(" 42",))
    records = [dataclasses.replace(record, ends=np.array([0, 2], np.int32)) for record in source.shards]
    path = write(tmp_path / "spaced", "spaced", tokenizer, records, tmp_path / "sft" / "train")
    opened = open_sidecars([path], open_shards(tmp_path / "sft" / "train"))
    found = with_soft_targets(tokenized(" 42"), opened, TARGET, TARGET.eos_token_id, MINCE)
    assert "".join("".join(row) or "." for row in learnt(found)) == ".a.b"


def test_answers_of_other_texts_and_without_records(tmp_path):
    texts = (" get some", ANSWER, ANSWER)
    source = sidecar(tmp_path, answers=(ANSWER, ANSWER))
    found = with_soft_targets(tokenized(*texts), [source], TARGET, TARGET.eos_token_id, MINCE)
    check(learnt(found, 0), [{}] * 3)
    check(learnt(found, 1), EXPECTED)
    check(learnt(found, 2), [{}] * 6)
    assert (found.fused["other"], found.fused["without"], found.fused["from a"]) == (1, 2, 1)
    assert "1 records are of another text" in describe(found.fused)


def test_the_source_that_finds_an_answer_likelier(tmp_path):
    """By byte: the other cuts the answer as the target does, into fewer tokens, of which each is less likely."""
    same = [{name: 0.5} for name in ("Ġget", "Ġsome", "Ġutil", "ization", ".", END)]
    likely, unlikely = (
        sidecar(tmp_path, name, same, [value] * 5, TARGET) for name, value in (("likely", 0.81), ("unlikely", 0.77))
    )
    a = sidecar(tmp_path)
    # The product of a's is 0.2155; 0.81^5 is 0.349, and 0.77^5 is 0.271, which are both above; 0.73^5 is below.
    rare = sidecar(tmp_path, "rare", same, [0.73] * 5, TARGET)
    end = TARGET.eos_token_id
    for sources, chosen in (([a, unlikely, likely], "likely"), ([rare, a], "a"), ([a, rare], "a")):
        found = with_soft_targets(tokenized(ANSWER), sources, TARGET, end, MINCE)
        assert found.fused[f"from {chosen}"] == 1
        assert sum(found.fused.get(f"from {source.source}", 0) for source in sources) == 1
        check(learnt(found), EXPECTED if chosen == "a" else [{name: 1.0} for row in same for name in row])
    named = Rules("rare", 4, "renormalize", 1.0)
    assert with_soft_targets(tokenized(ANSWER), [a, rare], TARGET, end, named).fused["from rare"] == 1


def test_the_mean_of_sources(tmp_path):
    """Weights in proportion to 1 / perplexity, by the target's tokens; where one has no border, the other counts."""
    same = [{name: 0.5} for name in ("Ġget", "Ġsome", "Ġutil", "ization", ".", END)]
    sources = [sidecar(tmp_path), sidecar(tmp_path, "b", same, [0.5] * 5, TARGET)]
    rules = Rules("avgce", 4, "renormalize", 1.0)
    found = learnt(with_soft_targets(tokenized(ANSWER), sources, TARGET, TARGET.eos_token_id, rules))
    perplexities = np.array([np.prod(REALISED), 0.5**5]) ** (-1 / 6)
    a, b = (1 / perplexities) / (1 / perplexities).sum()
    assert found[0]["Ġget"] == pytest.approx(a * 0.736842 + b, abs=5e-4)
    assert found[0]["Ġsome"] == pytest.approx(a * 0.210526, abs=5e-4)
    assert found[3] == pytest.approx({"ization": 1.0})


def test_a_temperature_flattens(tmp_path):
    rules = Rules("a", 4, "renormalize", 2.0)
    found = learnt(with_soft_targets(tokenized(ANSWER), [sidecar(tmp_path)], TARGET, TARGET.eos_token_id, rules))
    roots = np.sqrt([0.75, 0.2, 0.01])
    assert [*found[4].values()] == pytest.approx(roots / roots.sum(), abs=5e-4)


def test_sidecars_that_cannot_be_used(tmp_path):
    sidecar(tmp_path)
    data, path = open_shards(tmp_path / "sft" / "train"), str(tmp_path / "a" / "train")
    with pytest.raises(UserError, match="there is another one of the source a"):
        open_sidecars([path, path], data)
    with pytest.raises(UserError, match="holds records of the kind sft, not distributions"):
        open_sidecars([str(tmp_path / "sft" / "train")], data)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "other"}]
    example = SFTExample(id="0", dataset="d", domain="chat", source_model="a", messages=turns)
    write_shards(tmp_path / "more", "train", [example], kind="sft", num_shards=1, manifest={})
    with pytest.raises(UserError, match="is about the answers of other data"):
        open_sidecars([path], open_shards(tmp_path / "more" / "train"))
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not the one that it was made with"):
        open_sidecars([path], data)


def test_an_earlier_turn_is_never_taken_for_the_last(tmp_path):
    """A dialogue that was cut behind an earlier answer, which says the same as the last one."""
    sequence = [*TARGET("question", add_special_tokens=False)["input_ids"]]
    answer = [*TARGET(ANSWER, add_special_tokens=False)["input_ids"], TARGET.eos_token_id]
    mask = [0] * len(sequence) + [1] * len(answer) + [0] * len(sequence)
    tokens, offsets = np.array(sequence + answer + sequence, np.int32), np.array([0, len(mask)], np.int64)
    data = Tokenized("sft", tokens, np.array(mask, bool), offsets, ["0"], [], {"cut": ["0"]})
    found = with_soft_targets(data, [sidecar(tmp_path)], TARGET, TARGET.eos_token_id, MINCE)
    check(learnt(found), [{}] * len(answer))
    assert found.fused["without"] == 1


def test_the_cross_entropy_of_a_cut_answer_is_that_of_all_tokens_that_are_left(tmp_path):
    """In bytes, 0.1007 bits each: the tokens " get| some" are 9 of the answer's 22."""
    source = Source(sidecar(tmp_path), {"0"}, Counter())
    for cut, places, size in ((None, 6, 22), (2, 2, 9)):
        data = tokenized(ANSWER, cut=cut)
        table, end = token_bytes(TARGET), TARGET.eos_token_id
        (aligned,) = source.aligned(["0"], [Answer.last(data, 0, table, end, cut=cut is not None)], Counter())
        assert aligned.nats == pytest.approx(0.100659 * np.log(2) * size / places, rel=1e-3)


def test_two_records_of_an_example_are_one_line(tmp_path):
    answers = (ANSWER, ANSWER)
    twice = sidecar(tmp_path, answers=answers)
    records = [dataclasses.replace(record, id="0") for record in twice.shards]
    path = write(tmp_path / "twice", "b", SOURCE, records, tmp_path / "sft" / "train")
    opened = open_sidecars([path], open_shards(tmp_path / "sft" / "train"))
    with pytest.raises(UserError, match="two records have the id '0'"):
        with_soft_targets(tokenized(ANSWER), opened, TARGET, TARGET.eos_token_id, MINCE)


def test_a_host_without_examples(tmp_path):
    """Joined with the others' part, it changes nothing."""
    nothing = Tokenized("sft", np.empty(0, np.int32), np.empty(0, bool), np.zeros(1, np.int64), [], [], {})
    source = [sidecar(tmp_path)]
    empty, whole = (
        with_soft_targets(part, source, TARGET, TARGET.eos_token_id, MINCE) for part in (nothing, tokenized(ANSWER))
    )
    assert empty.soft_ids.shape == (0, 4)
    both = joined([empty, whole])
    assert both.fused == whole.fused
    np.testing.assert_array_equal(both.soft_weights, whole.soft_weights)
