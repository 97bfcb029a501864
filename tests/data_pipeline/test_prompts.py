"""Reading prompts: kinds of files, columns, and every way in which a record is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipeline import prompts
from data_pipeline.config import PipelineConfig
from fusejax.cli import UserError
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
    assert table["id"].to_list() == ["a", "7", "m-0", "m-1", "c-0"]
    assert table["messages"][0].to_list() == turns
    assert table["messages"][1].to_list() == [{"role": "user", "content": "hi"}]
    assert table["answer"].to_list() == [None, None, "2", "4", None]
    assert table["tests"].to_list()[-1] == ["assert f()"]


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


def test_two_files_of_one_data_set_have_ids_of_their_own(tmp_path: Path):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{n}"} for n in range(2)]) for name in "ab"]
    table, rejected = read(tmp_path, *({"path": str(path)} for path in paths))
    assert table["id"].to_list() == ["d-0", "d-1", "d.2-0", "d.2-1"] and not rejected


def test_input_follows_the_instruction_where_it_is_named(tmp_path: Path):
    records = [{"instruction": "Translate.", "input": "你好"}, {"instruction": "Sing.", "input": ""}]
    path = str(write_jsonl(tmp_path / "p.jsonl", records))
    for columns, texts in (
        ({"prompt": "instruction", "input": "input"}, ["Translate.\n\n你好", "Sing."]),
        ({"prompt": "instruction"}, ["Translate.", "Sing."]),
    ):
        table, _ = read(tmp_path, {"path": path, "columns": columns})
        assert [turns[0]["content"] for turns in table["messages"]] == texts


def test_limit_is_a_seeded_choice_that_keeps_the_order(tmp_path: Path):
    path = str(write_jsonl(tmp_path / "p.jsonl", [{"id": f"{n:03d}", "prompt": f"p{n}"} for n in range(100)]))
    chosen = [read(tmp_path, {"path": path, "limit": 10}, seed=seed)[0]["id"].to_list() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] == sorted(chosen[0]) != chosen[2]
    assert len(chosen[0]) == 10
    assert [line["reason"] for line in read(tmp_path, {"path": path, "limit": 10})[1]] == ["over_limit"] * 90


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
