"""Reading prompts: kinds of files, columns, and every way in which a record is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipeline.config import PipelineConfig, PromptsConfig
from data_pipeline.prompts import stage as prompts
from fusejax.common.cli import UserError
from tests.data_pipeline.helpers import write_jsonl


def read(tmp_path: Path, *entries: dict[str, Any], **config: Any) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """The table and the rejected lines."""
    values = {
        "output_dir": str(tmp_path / "out"),
        "prompts": [{"dataset": "d", "domain": "instruction", **entry} for entry in entries],
        "sources": [{"name": "s", "model": "m"}],
    }
    prompts.run(PipelineConfig.model_validate(values | config))
    lines = (tmp_path / "out/rejected/prompts.jsonl").read_text().splitlines()
    return pl.read_parquet(tmp_path / "out/prompts.parquet"), [json.loads(line) for line in lines]


def test_files_and_columns(tmp_path: Path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好"}]
    jsonl = write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "messages": turns}, {"id": 7, "prompt": "hi"}])
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"question": "1+1?", "gold": 2}\n\n{"question": "2+2?", "gold": "4"}\n'))
    parquet = tmp_path / "c.parquet"
    pl.DataFrame({"prompt": ["write f"], "test": ["assert f()"]}).write_parquet(parquet)
    table, rejected = read(
        tmp_path,
        {"path": str(jsonl)},
        {"path": str(packed), "dataset": "m", "domain": "math", "columns": {"prompt": "question", "answer": "gold"}},
        {"path": str(parquet), "dataset": "c", "domain": "code", "columns": {"tests": "test"}},
    )
    assert table.schema == prompts.SCHEMA and not rejected
    rows = {row["id"]: row for row in table.to_dicts()}
    assert sorted(rows) == ["7", "a", "c-0", "m-0", "m-1"]
    assert rows["a"]["messages"] == turns
    assert rows["7"]["messages"] == [{"role": "user", "content": "hi"}]
    assert [rows[name]["answer"] for name in ("a", "7", "m-0", "m-1", "c-0")] == [None, None, "2", "4", None]
    assert rows["c-0"]["tests"] == ["assert f()"]


def test_bad_records_are_counted_with_their_reason(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    records: list[Any] = [
        {"id": "fine", "prompt": "x", "answer": "1"},
        [1],
        {"id": "blank", "prompt": " "},
        {"id": "turns", "messages": [{"role": "user"}], "answer": "1"},
        {"id": "role", "messages": [{"role": "tool", "content": "x"}]},
        {"id": "last", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"id": "fine", "prompt": "another", "answer": "1"},
        {"id": "again", "prompt": "x", "answer": "1"},
        {"id": "gold", "prompt": "y"},
        {"id": "list", "prompt": "z", "answer": [1]},
        {"id": "lone", "prompt": "\ud800", "answer": "1"},
    ]
    write_text = "\n".join(json.dumps(record) for record in records) + '\n{"id": broken\n'
    path.write_text(write_text)
    table, rejected = read(tmp_path, {"path": str(path), "domain": "math"})
    assert table["id"].to_list() == ["fine"]
    assert [line["reason"] for line in rejected] == [
        "not_an_object", "no_prompt", "bad_messages", "bad_messages", "no_user_turn", "duplicate_id",
        "duplicate_prompt", "no_answer", "bad_answer", "bad_unicode", "bad_json",
    ]  # fmt: skip
    assert rejected[2]["where"] == f"{path}:4" and rejected[2]["detail"] == "0.content: Field required"
    tests = write_jsonl(
        tmp_path / "c.jsonl", [{"prompt": "a", "tests": ["t"]}, {"prompt": "b"}, {"prompt": "c", "tests": [1]}]
    )
    _, rejected = read(tmp_path, {"path": str(tests), "domain": "code"})
    assert [line["reason"] for line in rejected] == ["no_tests", "bad_tests"]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.json.gz", "p.csv", "p.csv.gz"])
def test_single_files_of_every_kind(tmp_path: Path, name: str):
    """A CSV file holds lists as JSON, and numbers as they were written."""
    rows = [{"prompt": f"prompt {n}", "answer": f"0{n}", "tests": [f"assert f() == {n}", "[f()]"]} for n in range(3)]
    kind = name.removesuffix(".gz")
    if kind == "p.csv":
        flat = [{**row, "tests": json.dumps(row["tests"])} for row in rows]
        content = pl.DataFrame(flat).write_csv().encode()
    else:
        lines = json.dumps(rows) if kind == "p.json" else "\n".join(map(json.dumps, rows))
        content = lines.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    table, rejected = read(tmp_path, {"path": str(path), "domain": "code"})
    assert not rejected
    assert table.sort("answer").select("answer", "tests").to_dicts() == [
        {"answer": row["answer"], "tests": row["tests"]} for row in rows
    ]


def test_two_files_of_one_data_set_have_ids_of_their_own(tmp_path: Path):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{n}"} for n in range(2)]) for name in "ab"]
    table, rejected = read(tmp_path, *({"path": str(path)} for path in paths))
    assert sorted(table["id"]) == ["d-0", "d-1", "d.2-0", "d.2-1"] and not rejected


def test_input_follows_the_instruction_where_it_is_named(tmp_path: Path):
    records = [{"instruction": "Translate.", "input": "你好"}, {"instruction": "Sing.", "input": ""}]
    path = str(write_jsonl(tmp_path / "p.jsonl", records))
    for columns, texts in (
        ({"prompt": "instruction", "input": "input"}, ["Translate.\n\n你好", "Sing."]),
        ({"prompt": "instruction"}, ["Translate.", "Sing."]),
    ):
        table, _ = read(tmp_path, {"path": path, "columns": columns})
        assert sorted(turns[0]["content"] for turns in table["messages"]) == sorted(texts)


def test_limit_is_a_seeded_choice(tmp_path: Path):
    path = str(write_jsonl(tmp_path / "p.jsonl", [{"id": f"{n:03d}", "prompt": f"p{n}"} for n in range(100)]))
    chosen = [read(tmp_path, {"path": path, "limit": 10}, seed=seed)[0]["id"].to_list() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 10
    assert [line["reason"] for line in read(tmp_path, {"path": path, "limit": 10})[1]] == ["over_limit"] * 90


def test_the_order_is_seeded_and_mixes_data_sets_and_added_prompts_leave_it(tmp_path: Path):
    records = [{"id": f"{n:03d}", "prompt": f"p{n}"} for n in range(100)]
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", part) for name, part in (("a", records[:50]), ("b", records[50:]))]
    ids = read(tmp_path, *({"path": str(path)} for path in paths))[0]["id"].to_list()
    assert ids == read(tmp_path, *({"path": str(path)} for path in reversed(paths)))[0]["id"].to_list()
    assert 5 < sum(name < "050" for name in ids[:25]) < 20
    write_jsonl(paths[1], [{"id": f"new{n}", "prompt": f"new{n}"} for n in range(20)] + records[50:])
    more = read(tmp_path, *({"path": str(path)} for path in paths))[0]["id"].to_list()
    assert [name for name in more if not name.startswith("new")] == ids
    limited = [{"path": str(path), "limit": 20} for path in paths]
    assert set(read(tmp_path, *limited)[0]["id"]) <= set(more[:60])


def test_adapters_read_files_of_their_data_set(tmp_path: Path):
    rows = [
        {"question": "1+1?", "answer": "#### 2"},
        {"question": "1+2?", "answer": "3"},
        {"question": "1+1?", "answer": "so #### 2"},
    ]
    path = write_jsonl(tmp_path / "gsm.jsonl", rows)
    entry = {"path": str(path), "dataset": "gsm8k", "domain": "math", "adapter": "openai/gsm8k"}
    table, rejected = read(tmp_path, entry)
    assert table["answer"].to_list() == ["2"]
    assert [line["reason"] for line in rejected] == ["no_answer", "duplicate_prompt"]
    # The id goes by the text: another order of the rows gives the same.
    write_jsonl(path, rows[::-1])
    assert read(tmp_path, entry)[0]["id"].to_list() == table["id"].to_list()


def test_a_folder_is_read_as_the_hub_data_set_of_which_it_is_a_copy(tmp_path: Path):
    folder = tmp_path / "copy"
    (folder / "data").mkdir(parents=True)
    rows = {"uuid": ["u1", "u2"], "instruction": ["Hello?", "Add."], "task_category": ["Others", "Math"]}
    pl.DataFrame(rows).write_parquet(folder / "data/train-00000-of-00001.parquet")
    pl.DataFrame({**rows, "uuid": ["v1", "v2"]}).write_parquet(folder / "data/test-00000-of-00001.parquet")
    entry = {"path": str(folder), "adapter": "Magpie-Align/Magpie-Pro-DPO-100K-v0.1"}
    table, rejected = read(tmp_path, entry)
    assert table["id"].to_list() == ["u1"]
    assert [(line["where"], line["reason"]) for line in rejected] == [(f"{folder}:train:1", "topic_math")]
    assert read(tmp_path, {**entry, "split": "test"})[0]["id"].to_list() == ["v1"]
    with pytest.raises(UserError, match=r"prompts: .*copy: no data set that can be read: .*validation"):
        read(tmp_path, {**entry, "split": "validation"})


def test_a_data_set_that_the_hub_does_not_give_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match="prompts: nobody/nothing: no data set that can be read") as error:
        read(tmp_path, {"path": "nobody/nothing"})
    assert "\n" not in str(error.value)


def test_overlap_is_left_out_and_counted(tmp_path: Path):
    river = "the river flows past the old mill and under the stone bridge to the wide grey sea beyond the hills"
    texts = {
        "near": f"Describe it: {river}.",
        "also": f"Describe it: {river}!",
        "held": "Say: " + "one two three four five six seven eight nine ten eleven twelve thirteen",
        "asks": "What is 7 + 5?",
        "other": "What is 7 - 5?",
        "fine": "one two three four five six seven eight nine ten eleven twelve",
    }
    path = write_jsonl(tmp_path / "p.jsonl", [{"id": name, "prompt": text} for name, text in texts.items()])
    evaluation = [
        {"turns": ["Zero one two, THREE four five six seven eight nine ten; eleven twelve thirteen fourteen", "Next."]},
        {"turns": ["What is 7 + 5?"]},
    ]
    held = write_jsonl(tmp_path / "eval.jsonl", evaluation)
    overlap = {
        "near_duplicates": 0.7,
        "evaluation_sets": [{"name": "MT", "path": str(held), "columns": ["turns"]}],
    }
    table, rejected = read(tmp_path, {"path": str(path)}, overlap=overlap)
    ids = set(table["id"])
    assert ids - {"near", "also"} == {"other", "fine"} and len(ids & {"near", "also"}) == 1
    reasons = {line["reason"]: line["detail"] for line in rejected}
    assert sorted(line["reason"] for line in rejected) == ["contaminated: MT", "contaminated: MT", "near_duplicate"]
    assert reasons["near_duplicate"].endswith((": of near", ": of also"))
    assert json.loads((tmp_path / "out" / prompts.FUNNEL).read_text()) == [
        {
            "path": str(path),
            "dataset": "d",
            "domain": "instruction",
            "read": 6,
            "dropped": {"contaminated: MT": 2, "near_duplicate": 1},
            "kept": 3,
        }
    ]
    with pytest.raises(UserError, match=r"overlap.evaluation_sets.0: .*eval.jsonl: no text in the columns question"):
        read(
            tmp_path,
            {"path": str(path)},
            overlap={"evaluation_sets": [{"name": "MT", "path": str(held), "columns": ["question"]}]},
        )


def test_what_overlap_leaves_out_makes_room_under_the_limit(tmp_path: Path):
    records = [
        {"id": f"{n:02d}", "prompt": f"number {n % 10} is {'very ' * 20}nice{'!' * (n // 10)}"} for n in range(30)
    ]
    path = write_jsonl(tmp_path / "p.jsonl", records)
    table, rejected = read(tmp_path, {"path": str(path), "limit": 8}, overlap={"near_duplicates": 0.6})
    assert len({int(name) % 10 for name in table["id"]}) == len(table) == 8
    assert len(rejected) == 22 and {line["reason"] for line in rejected} == {"near_duplicate", "over_limit"}


def test_a_changed_file_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    read(tmp_path, {"path": str(path)})
    read(tmp_path, {"path": str(path)})
    assert "up to date" in capsys.readouterr().out
    write_jsonl(path, [{"prompt": "a"}, {"prompt": "b"}])
    assert len(read(tmp_path, {"path": str(path)})[0]) == 2


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("missing.jsonl", None, {}, "no such file"),
        ("deep/down/there", None, {}, "no such file"),
        ("empty.jsonl", b"", {}, "empty data set"),
        ("p.txt", b"x", {}, "unknown kind of file"),
        ("p.parquet", b"no parquet", {}, "cannot be read as Parquet"),
        ("p.jsonl.gz", b"no gzip", {}, "cannot be read"),
        ("p.jsonl.gz", gzip.compress(b"x" * 99)[:10] + b"\xff" * 20, {}, "cannot be read"),
        ("p.jsonl", b'{"prompt": "x"}', {"answer": "gold"}, "no record has the column 'gold'"),
        ("p.jsonl", b'{"text": "x"}', {}, "all 1 records are rejected, mostly for no_prompt"),
    ],
)
def test_users_mistakes(tmp_path: Path, name: str, content: bytes | None, columns: dict[str, str], message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, {"path": str(tmp_path / name), "columns": columns})
    assert "\n" not in str(error.value) and name.split("/")[0] in str(error.value)
    assert not (tmp_path / "out/prompts.parquet").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adapter": "openai/gsm9k"}, "adapter 'openai/gsm9k' is none of openbmb/UltraFeedback"),
        ({"adapter": "openai/gsm8k", "columns": {"prompt": "question"}}, "an adapter knows the columns"),
    ],
)
def test_impossible_configs(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        PromptsConfig.model_validate({"path": "x.jsonl", "dataset": "d", "domain": "math", **values})
