"""Records and shards: what is written is read, in the formats that others read, and damage is named."""

import dataclasses
import hashlib
import json
import math
import struct
import subprocess
import sys
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import tensorboardX
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from fusejax.common.cli import UserError
from fusejax.data import tf_example, tfrecord
from fusejax.data.records import (
    AnswerDistributions,
    PreferencePair,
    PreferenceTriple,
    RecordError,
    SFTExample,
    decode,
    encode,
    open_shards,
    write_shards,
)

FORMATS = ("arrayrecord", "tfrecord")


def sft(i: int = 0, **changes) -> SFTExample:
    messages = [{"role": "user", "content": f"你好 {i}"}, {"role": "assistant", "content": "😀\n" * i + "\x00"}]
    example = SFTExample(f"id-{i}", f"set{i % 2}", "math", "source/a", messages)
    for name, value in changes.items():
        object.__setattr__(example, name, value)  # of a wrong type, too, which a call would not take
    return example


def pair(i: int = 0, **changes) -> PreferencePair:
    turns = [
        [{"role": role, "content": text}] for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
    ]
    return dataclasses.replace(PreferencePair(f"id-{i}", "set", "code", "source/b", *turns, 0.25, -1.5), **changes)


def write(directory, examples, split="train", format="arrayrecord", num_shards=3, kind="sft", **manifest):
    return write_shards(directory, split, examples, kind=kind, format=format, num_shards=num_shards, manifest=manifest)


def test_imports_no_framework():
    code = "import sys, fusejax.data.records; print(*sys.modules)"
    modules = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "fusejax.data.records" in modules
    assert not modules & {"jax", "jaxlib", "flax", "grain", "torch", "tensorflow", "transformers"}


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT}), min_size=1
)
FLOATS = st.none() | st.floats(width=32, allow_nan=False)


@given(st.builds(SFTExample, id=TEXT, dataset=TEXT, domain=TEXT, source_model=TEXT, messages=MESSAGES, weight=FLOATS))
def test_sft_round_trip(example):
    assert decode(encode(example), "sft") == example


@given(
    st.builds(
        PreferencePair,
        *[TEXT] * 4,
        *[MESSAGES] * 3,
        chosen_score=FLOATS,
        rejected_score=FLOATS,
        weight=FLOATS,
    )
)
def test_pair_round_trip(example):
    assert decode(encode(example), "dpo") == example


@given(st.builds(PreferenceTriple, *[TEXT] * 4, *[MESSAGES] * 4, *[FLOATS] * 3))
def test_triple_round_trip(example):
    assert decode(encode(example), "wrpo") == example


def distributions(lengths: list[int], k: int = 3, seed: int = 0) -> AnswerDistributions:
    """Of an answer whose tokens have these lengths in bytes."""
    random, places = np.random.default_rng(seed), len(lengths) + 1
    return AnswerDistributions(
        id="a",
        dataset="set",
        domain="chat",
        source_model="source/a",
        tokens=random.integers(0, 2**31 - 1, places - 1, np.int32),
        logprobs=-random.random(places - 1).astype(np.float16),
        ends=np.cumsum([0, *lengths], dtype=np.int32),
        top_ids=random.integers(0, 2**32 - 1, (places, k), np.uint32),
        top_logprobs=-np.sort(random.random((places, k)).astype(np.float16), axis=1),
    )


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 20), st.integers(0, 99))
def test_distributions_round_trip(lengths, k, seed):
    """An empty answer has one row, about the end of the turn."""
    example = distributions(lengths, k, seed)
    again = decode(encode(example), "distributions")
    for name, value in vars(example).items():
        found = getattr(again, name)
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype and found.shape == value.shape
        np.testing.assert_array_equal(found, value)


def test_a_sequence_is_read_while_it_is_written(tmp_path):
    """Distributions are gigabytes."""
    made, most, asked = [], [], []

    class Lazy(Sequence):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            if index >= 50:
                raise IndexError(index)
            record = distributions([1] * (index + 1), seed=index)
            made.append(weakref.ref(record))
            most.append(sum(each() is not None for each in made))
            asked.append(index)
            return record

    write(tmp_path, Lazy(), kind="distributions", num_shards=4)
    # Each once; in tests, the types of arguments are checked by looking at one or two more.
    assert len(asked) < 55 and max(most) <= 2
    assert [len(record.tokens) for record in open_shards(tmp_path / "train")] == list(range(1, 51))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda e: {"logprobs": e.logprobs[:1]}, "different sizes"),
        (lambda e: {"ends": np.append(e.ends, np.int32(99))}, "different sizes"),
        (lambda e: {"top_ids": e.top_ids[:, :1]}, "different sizes"),
        (lambda e: {"top_ids": e.top_ids[:, :0], "top_logprobs": e.top_logprobs[:, :0]}, "different sizes"),
        (lambda e: {"ends": e.ends + np.int32(1)}, "ends do not rise"),
        (lambda e: {"ends": e.ends[::-1] * np.int32(-1)}, "ends do not rise"),
        (lambda e: {"logprobs": e.logprobs * np.float16(np.nan)}, "a log-probability is"),
        (lambda e: {"top_logprobs": -e.top_logprobs}, "a log-probability is"),
        (lambda e: {"top_logprobs": e.top_logprobs - np.float16(np.inf)}, "a log-probability is"),
        (lambda e: {"top_logprobs": e.top_logprobs[:, ::-1]}, "do not fall"),
    ],
)
def test_distributions_that_cannot_be(change, what):
    example = distributions([1, 2])
    broken = dataclasses.replace(example)
    for name, value in change(example).items():
        object.__setattr__(broken, name, value)
    with pytest.raises(RecordError, match=what):
        encode(broken)


def test_bytes_that_are_no_arrays():
    data = encode(distributions([1, 2]))
    features = tf_example.Example.FromString(data)
    for name, cut in (("logprobs", 1), ("top_ids", 4), ("ends", 4)):
        spoiled = tf_example.Example.FromString(data)
        spoiled.features.feature[name].bytes_list.value[0] = features.features.feature[name].bytes_list.value[0][:-cut]
        with pytest.raises(RecordError, match=r"logprobs has|is not one row|different sizes"):
            decode(spoiled.SerializeToString(), "distributions")


def test_nan_survives():
    """Whoever trains counts it; writing must neither fail nor hide it."""
    assert math.isnan(decode(encode(pair(chosen_score=math.nan)), "dpo").chosen_score)


def test_a_score_that_nobody_gave_is_not_written():
    some = encode(pair(chosen_score=None, rejected_score=0.5))
    assert b"chosen_score" not in some and b"rejected_score" in some
    assert decode(some, "dpo") == pair(chosen_score=None, rejected_score=0.5)


def test_bytes_are_tensorflows():
    """Against the protobuf wire format of tf.train.Example written out by hand."""

    def field(number: int, data: bytes) -> bytes:
        assert len(data) < 128
        return bytes([number << 3 | 2, len(data)]) + data

    def entry(key: str, feature: bytes) -> bytes:
        return field(1, field(1, key.encode()) + field(2, feature))

    example = pair(prompt=[{"role": "user", "content": "é"}])
    texts = {name: getattr(example, name) for name in ("id", "dataset", "domain", "source_model")}
    texts |= {name: json.dumps(getattr(example, name), ensure_ascii=False) for name in ("prompt", "chosen", "rejected")}
    features = {name: field(1, field(1, text.encode())) for name, text in texts.items()}
    for name in ("chosen_score", "rejected_score"):
        features[name] = field(2, field(1, struct.pack("<f", getattr(example, name))))  # packed floats
    entries = [entry(name, feature) for name, feature in features.items()]
    by_hand = b"".join(entries)
    by_hand = bytes([1 << 3 | 2, len(by_hand) & 127 | 128, len(by_hand) >> 7]) + by_hand
    assert decode(by_hand, "dpo") == example
    encoded = encode(example)  # the entries of a map come in any order
    assert len(encoded) == len(by_hand) and all(entry in encoded for entry in entries)


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": []},
        {"messages": "hello"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": "x", "name": "y"}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"id": 7},
        {"dataset": "\ud800"},
    ],
)
def test_malformed_records_are_not_written(changes, tmp_path):
    with pytest.raises(RecordError):
        encode(sft(**changes))
    with pytest.raises(RecordError):
        write(tmp_path, [sft(1), sft(**changes)], num_shards=2)
    assert not list(tmp_path.iterdir())


def test_malformed_bytes():
    with pytest.raises(RecordError, match=r"not a tf.train.Example"):
        decode(b"\xff\xff", "sft")
    with pytest.raises(RecordError, match="'id-0': no field 'prompt'"):
        decode(encode(sft()), "dpo")
    with pytest.raises(RecordError, match="no field"):
        decode(b"", "sft")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("count", "num_shards"), [(1, 1), (10, 3), (3, 5), (600, 2)])
def test_shards_round_trip(tmp_path, format, count, num_shards):
    examples = [sft(i) for i in range(count)]
    manifest = write(tmp_path / "new" / "sft", iter(examples), format=format, num_shards=num_shards)
    assert {path.name for path in manifest.parent.iterdir()} == {"manifest.json"} | {
        f"train-{i:05d}-of-{num_shards:05d}.{format}" for i in range(num_shards)
    }
    shards = open_shards(tmp_path / "new" / "sft" / "train")
    assert len(shards) == count and list(shards) == examples and shards.kind == "sft"
    assert shards[count - 1] == shards[-1] == examples[-1] and shards[:2] == examples[:2]
    with pytest.raises(IndexError):
        shards[count]


def test_manifest(tmp_path):
    path = write(tmp_path, [sft(i) for i in range(5)], num_shards=2, config={"seed": 1}, models=["a"])
    write(tmp_path, [pair(0)], split="eval", format="tfrecord", num_shards=1, kind="dpo", config={"seed": 2})
    manifest = json.loads(path.read_text())
    assert manifest["schema_version"] == 1 and manifest["config"] == {"seed": 2} and manifest["models"] == ["a"]
    train = manifest["splits"]["train"]
    assert train["by_dataset"] == {"set0": 3, "set1": 2}
    assert train["by_domain"] == {"math": 5} and train["by_source_model"] == {"source/a": 5}
    assert (train["examples"], train["kind"], train["format"]) == (5, "sft", "arrayrecord")
    for shard in train["shards"]:
        assert shard["sha256"] == hashlib.sha256((tmp_path / shard["file"]).read_bytes()).hexdigest()
    assert [shard["examples"] for shard in train["shards"]] == [2, 3]
    assert open_shards(tmp_path / "eval").kind == "dpo" and len(open_shards(tmp_path / "train")) == 5


def test_rewriting_replaces(tmp_path):
    write(tmp_path, [sft(i) for i in range(5)], num_shards=3)
    before = open_shards(tmp_path / "train").fingerprint
    write(tmp_path, [sft(i) for i in range(5)], num_shards=3)
    assert open_shards(tmp_path / "train").fingerprint == before  # nothing in the files depends on time
    write(tmp_path, [sft(9)], num_shards=1, format="tfrecord")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "train-00000-of-00001.tfrecord"]
    assert list(open_shards(tmp_path / "train")) == [sft(9)]
    assert open_shards(tmp_path / "train").fingerprint != before


def test_wrong_kind(tmp_path):
    with pytest.raises(TypeError, match="kind dpo"):
        write(tmp_path, [sft()], kind="dpo")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_shard(tmp_path, format, damage):
    write(tmp_path, [sft(i) for i in range(9)], format=format)
    shard = tmp_path / f"train-00001-of-00003.{format}"
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    else:
        data[len(data) // 2] ^= 1
        shard.write_bytes(data if damage == "altered" else data[:-1])
    with pytest.raises(UserError, match=f"{shard}.*{'missing' if damage == 'missing' else damage}"):
        open_shards(tmp_path / "train")


def test_mistaken_sources(tmp_path):
    with pytest.raises(UserError, match=r"no manifest.json"):
        open_shards(tmp_path / "nowhere" / "train")
    path = write(tmp_path, [sft()], num_shards=1)
    with pytest.raises(UserError, match=r"no manifest.json in .*; give .*/SPLIT"):
        open_shards(tmp_path)
    with pytest.raises(UserError, match=r"no split 'trian' in .*, which has train"):
        open_shards(tmp_path / "trian")
    write(tmp_path, [], split="none", num_shards=2)
    with pytest.raises(UserError, match="the data set is empty"):
        open_shards(tmp_path / "none")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        open_shards(tmp_path / "train")
    for text in ("[", "{}", "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match="not a data set's manifest"):
            open_shards(tmp_path / "train")


@pytest.mark.parametrize(
    "name", ["chats.jsonl", "chats.json", "chats.json.gz", "pairs.csv", "missing.parquet", "folder", "owner/set"]
)
def test_rows_are_no_shards(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for file in ("chats.jsonl", "chats.json", "chats.json.gz", "pairs.csv", "folder/a.jsonl"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(
        UserError, match=f"data {name}: .*`python -m data_pipeline import {name} --output DIR`.*DIR/wrpo/train"
    ) as error:
        open_shards(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"shards": [{"file": "x"}]}, "shards.0.sha256"),
        ({"shards": "many"}, "shards"),
        ({"format": "parquet"}, "format"),
        ({"examples": "nine"}, "examples"),
        ({"kind": None}, "kind"),
    ],
)
def test_malformed_manifest_entries(tmp_path, change, where):
    path = write(tmp_path, [sft()], num_shards=1)
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"] |= change
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"manifest\.json, split 'train': .*{where}") as error:
        open_shards(tmp_path / "train")
    assert "\n" not in str(error.value)
    path.write_text(json.dumps({**manifest, "splits": 7}))
    with pytest.raises(UserError, match="not a data set's manifest"):
        open_shards(tmp_path / "train")


def test_half_a_surrogate_pair_is_a_bad_record():
    """JSON can say it, text cannot hold it, and tokenizers fail at it."""
    text = encode(sft()).replace("你好 0".encode(), rb"\ud800  ")
    assert len(text) == len(encode(sft()))  # so that the lengths in the message still hold
    with pytest.raises(RecordError, match="messages is not valid Unicode"):
        decode(text, "sft")


def test_tfrecord_is_read_by_others(tmp_path):
    records = [b"", b"a", b"\x00" * 1000, encode(sft(3))]
    tfrecord.write(tmp_path / "x", records)
    reader = PyRecordReader_New(str(tmp_path / "x"))  # checks the checksums
    read = []
    for _ in records:
        reader.GetNext()
        read.append(reader.record())
    assert read == records


def test_tfrecord_of_others_is_read(tmp_path):
    with tensorboardX.SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalar("loss", np.float32(step), step)
    (path,) = tmp_path.iterdir()
    assert len(tfrecord.Reader(path)) >= 3


@pytest.mark.parametrize("cut", [1, 4, 5, 13, 15, 16, 27])
def test_tfrecord_cut_or_altered(tmp_path, cut):
    path = tmp_path / "x"
    tfrecord.write(path, [b"hello", b"hello, world"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with pytest.raises(tfrecord.CorruptError, match="record 1 at byte 21"):
        tfrecord.Reader(path)
    flipped = bytearray(whole)
    flipped[-cut] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(tfrecord.CorruptError, match="record 1 at byte 21"):
        tfrecord.Reader(path)
