"""What a device program gets: every token where it belongs, on any number of hosts, from any step."""

import operator
import types

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fusejax.common.cli import UserError
from fusejax.data import loader, packing
from fusejax.data.batch import max_examples_per_row
from fusejax.data.examples import Tokenized
from fusejax.data.loader import eval_batches, train_batches
from fusejax.data.packing import num_steps, plan_eval
from fusejax.data.records import ANSWERS


def tokenized(lengths: list[int], kind: str = "sft") -> Tokenized:
    """Sequences of the given lengths; tokens count on over all, so that each is known by its value."""
    each = len(ANSWERS[kind]) or 1
    total = sum(lengths)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    mask = np.arange(total) % 3 != 0
    mask[offsets[:-1]] = False
    ids = [f"id{i}" for i in range(len(lengths) // each)]
    return Tokenized(kind, np.arange(1, total + 1, dtype=np.int32), mask, offsets, ids, [], {})


@st.composite
def problems(draw):
    kind = draw(st.sampled_from(["sft", "dpo", "wrpo"]))
    each = len(ANSWERS[kind]) or 1
    count = draw(st.integers(1, 30))
    data = tokenized(draw(st.lists(st.integers(1, 20), min_size=count * each, max_size=count * each)), kind)
    row_length = draw(st.integers(int(data.lengths.max()), 80))
    num_hosts = draw(st.integers(1, 3))
    options = {"row_length": row_length, "rows_per_microbatch": num_hosts * draw(st.integers(1, 3))}
    return data, options, draw(st.integers(1, count)), num_hosts


def sequences(data: Tokenized, microbatches):
    """Takes microbatches apart: yields (example, which of its sequences) after checking every array."""
    each = data.sequences_per_example
    starts = {int(data.tokens[start]): i for i, start in enumerate(data.offsets[:-1])}
    for microbatch in microbatches:
        assert {name: array.dtype for name, array in microbatch.items()} == {
            "tokens": np.int32,
            "positions": np.int32,
            "segment_ids": np.int32,
            "loss_mask": bool,
        } | ({"pair_ids": np.int32} if each > 1 else {})
        for row in range(len(microbatch["tokens"])):
            tokens, positions, segments, mask = (
                microbatch[name][row] for name in ("tokens", "positions", "segment_ids", "loss_mask")
            )
            used = int((segments > 0).sum())
            assert not tokens[used:].any() and not positions[used:].any() and not mask[used:].any()
            for segment in range(1, segments.max() + 1):
                (where,) = np.nonzero(segments == segment)
                sequence = starts[int(tokens[where[0]])]
                ids, expected = data.sequence(sequence)
                assert np.array_equal(tokens[where], ids) and np.array_equal(mask[where], expected)
                assert np.array_equal(positions[where], np.arange(len(ids)))
                assert np.array_equal(where, np.arange(where[0], where[0] + len(ids)))
                assert not mask[where[0]]
                if each > 1:
                    assert sequence % each == (segment - 1) % each
                    assert microbatch["pair_ids"][row, (segment - 1) // each] == sequence // each
                yield sequence // each
            if each > 1:
                pairs = microbatch["pair_ids"][row]
                assert (pairs >= 0).sum() * each == segments.max()
                assert pairs.shape == (max_examples_per_row(len(tokens)),)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_train_batches(problem):
    data, options, batch_size, num_hosts = problem
    steps = num_steps(len(data), batch_size, 2)
    options |= {"batch_size": batch_size, "seed": 0, "num_steps": steps}
    batches = list(train_batches(data, **options))
    assert [batch.step for batch in batches] == list(range(steps))
    seen = []
    for batch in batches:
        examples = list(sequences(data, batch.microbatches))[:: data.sequences_per_example]
        assert len(examples) == batch.examples == batch_size
        assert (
            batch.tokens
            == sum((m["segment_ids"] > 0).sum() for m in batch.microbatches)
            == data.lengths[examples].sum()
        )
        assert batch.target_tokens == sum(m["loss_mask"].sum() for m in batch.microbatches)
        filled = sum(m["segment_ids"].any(1).sum() for m in batch.microbatches)
        assert len(batch.microbatches) == -(-filled // options["rows_per_microbatch"])
        assert all(
            m["tokens"].shape == (options["rows_per_microbatch"], options["row_length"]) for m in batch.microbatches
        )
        assert batch.epoch == (batch.step + 1) * batch_size / len(data)
        seen += examples
    assert set(np.bincount(seen, minlength=len(data))) <= {2, 3}

    # The hosts' shares put together are the whole, and all hosts tell the same counts.
    hosts = [
        list(train_batches(data, **options, local_rows=rows))
        for rows in shares_of(options["rows_per_microbatch"], num_hosts)
    ]
    for batch, *shares in zip(batches, *hosts, strict=True):
        assert {(s.step, s.examples, s.tokens, s.target_tokens) for s in shares} == {
            (batch.step, batch.examples, batch.tokens, batch.target_tokens)
        }
        assert_equal(batch.microbatches, [join(parts) for parts in zip(*(s.microbatches for s in shares), strict=True)])

    # Begun in the middle, a run goes on as if it had never stopped.
    start = steps // 2
    resumed = list(train_batches(data, **options, start_step=start))
    for batch, again in zip(batches[start:], resumed, strict=True):
        assert batch.step == again.step
        assert_equal(batch.microbatches, again.microbatches)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_eval_batches(problem):
    data, options, _, num_hosts = problem
    batches = list(eval_batches(data, **options))
    examples = list(sequences(data, batches))
    assert sorted(examples) == sorted(list(range(len(data))) * data.sequences_per_example)
    assert all(batch["tokens"].shape == (options["rows_per_microbatch"], options["row_length"]) for batch in batches)
    hosts = [
        list(eval_batches(data, **options, local_rows=rows))
        for rows in shares_of(options["rows_per_microbatch"], num_hosts)
    ]
    assert_equal(batches, [join(parts) for parts in zip(*hosts, strict=True)])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["dpo", "wrpo"]),
    st.lists(st.tuples(*[st.integers(0, 9)] * 4), min_size=1, max_size=20),
    st.integers(0, 40),
    st.integers(1, 3),
)
def test_what_answers_share_is_computed_once(kind, examples, more, rows):
    """Examples of (tokens in common, tokens of each sequence's own)."""
    each = len(ANSWERS[kind])
    examples = [(shared, [length + (shared == 0) for length in own[:each]]) for shared, *own in examples]
    data = tokenized([shared + length for shared, own in examples for length in own], kind)
    for example, (shared, _) in enumerate(examples):
        first, *others = (data.tokens[start:][:shared] for start in data.offsets[each * example :][:each])
        for other in others:
            other[:] = first
    assert data.shared_lengths.tolist() == [shared for shared, _ in examples]
    assert data.computed_lengths.tolist() == [shared + sum(own) for shared, own in examples]

    attention_length = int(data.lengths.max()) + more
    row_length = max(int(data.computed_lengths.max()), attention_length - 10)
    options = {"row_length": row_length, "rows_per_microbatch": rows}
    assume(attention_length > row_length)
    found = 0
    for microbatch in eval_batches(data, **options, attention_length=attention_length):
        assert microbatch["tokens"].shape == microbatch["source"].shape == (rows, attention_length)
        again = [name for name in ("second", "third") if name in microbatch]
        assert len(again) == each - 1
        assert all(microbatch[name].shape == (rows, row_length) for name in ("first", *again))
        for row in range(rows):
            segments, tokens, first, source, ids = (
                microbatch[name][row] for name in ("segment_ids", "tokens", "first", "source", "pair_ids")
            )
            others = [microbatch[name][row] for name in again]
            slots, computed = np.count_nonzero(segments), np.count_nonzero(first < attention_length)
            assert computed == data.computed_lengths[ids[ids >= 0]].sum()
            # What is computed comes first, and each slot has one that is in its own example and has its past.
            assert all((slots_of[computed:] == attention_length).all() for slots_of in (first, *others))
            assert (source[slots:] == row_length).all() and (source[:slots] < computed).all()
            assert (first[source[:slots]] <= np.arange(slots)).all()
            for slot in range(slots):
                origin = first[source[slot]]
                assert (segments[origin] - 1) // each == (segments[slot] - 1) // each
                past, pasts = (np.flatnonzero(segments[: at + 1] == segments[at]) for at in (slot, origin))
                assert np.array_equal(tokens[past], tokens[pasts])
                assert slot in (origin, *(slots_of[source[slot]] for slots_of in others))
            for slots_of in others:
                used = slots_of < attention_length
                assert (source[slots_of[used]] == np.flatnonzero(used)).all()
            assert sum(np.count_nonzero(slots_of < attention_length) for slots_of in others) == slots - computed
            found += slots
    assert found == data.lengths.sum()


def shares_of(rows: int, num_hosts: int) -> list[range]:
    return [range(i * rows // num_hosts, (i + 1) * rows // num_hosts) for i in range(num_hosts)]


def join(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_worked_example():
    data = tokenized([3, 2, 2, 2], "dpo")
    (batch,) = train_batches(data, batch_size=2, row_length=32, seed=0, rows_per_microbatch=2, num_steps=1)
    (microbatch,) = batch.microbatches
    order = microbatch["pair_ids"][0].tolist()
    assert sorted(order) == [0, 1]
    assert microbatch["pair_ids"][1].tolist() == [-1, -1]
    first = {0: [1] * 3 + [2] * 2 + [3] * 2 + [4] * 2, 1: [1] * 2 + [2] * 2 + [3] * 3 + [4] * 2}[order[0]]
    assert microbatch["segment_ids"].tolist() == [first + [0] * 23, [0] * 32]
    assert (batch.examples, batch.tokens, batch.epoch) == (2, 9, 1.0)


@pytest.mark.parametrize("error", [OSError, StopIteration, IndexError])
def test_a_failure_is_no_end(monkeypatch, error):
    """An error while a batch is made must reach the training loop, not end the data as if the run were done."""
    data = tokenized([4] * 12)
    assemble = loader.assemble
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise error("disk on fire")
        return assemble(*arguments)

    monkeypatch.setattr(loader, "assemble", fail)
    batches = train_batches(data, batch_size=2, row_length=64, seed=0, rows_per_microbatch=1, num_steps=6)
    with pytest.raises((error, RuntimeError)) as caught:
        list(batches)
    assert "disk on fire" in f"{caught.value} {caught.value.__cause__}"


def test_an_example_that_fits_no_row_is_found_before_the_work():
    data = tokenized([20, 20, 4, 4], "dpo")
    with pytest.raises(UserError, match="row_length 39 is less than what 1 of 2 examples compute, 40 tokens"):
        loader.check_fits(data, 39, 60)
    alike = tokenized([20, 20, 4, 4], "dpo")
    alike.tokens[20:22] = alike.tokens[:2]
    loader.check_fits(alike, 38, 60)
    with pytest.raises(UserError, match="39 is less than what 1 of 2 examples compute, 40 tokens"):
        loader.check_fits(alike, 39, 39)


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.1, 0.1), (0.45, 0.45), (0.0, 0.45)])
def test_plans_are_quick_whichever_limit_fills_rows_first(monkeypatch, shares):
    """Rows that one of the limits has filled are not looked at again for every example."""
    generator = np.random.default_rng(0)
    data = tokenized(np.repeat(generator.integers(300, 1500, size=3000), 2).tolist(), "dpo")
    data.__dict__["shared_lengths"] = (generator.uniform(*shares, size=3000) * data.lengths / 2).astype(np.int64)
    looks = []
    counting = types.SimpleNamespace(gt=lambda a, b: looks.append(1) or a > b, sub=operator.sub)
    monkeypatch.setattr(packing, "operator", counting)
    rows = plan_eval(**loader._sizes(data, 4096, 4608))
    least = max((data.lengths - data.shared_lengths).sum() / 4096, data.lengths.sum() / 4608)
    assert len(rows) < 1.1 * least
    assert len(looks) < 20 * len(data)
