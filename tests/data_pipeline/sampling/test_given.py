"""Answers that come with a data set: matched by the prompt's text, all that is left out counted."""

import polars as pl
import pytest

from data_pipeline.config import PipelineConfig
from data_pipeline.prompts import stage as prompts
from data_pipeline.sampling import stage as sample
from fusejax.common.cli import UserError
from tests.data_pipeline.helpers import write_jsonl


@pytest.fixture
def config(tmp_path):
    def make(rows, **more):
        records = [{"id": f"p{i}", "prompt": f" What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
        records.append({"id": "long", "messages": [*turns, {"role": "user", "content": "2+2"}], "answer": "4"})
        made = PipelineConfig.model_validate(
            {
                "output_dir": str(tmp_path / "run"),
                "prompts": [
                    {"path": str(write_jsonl(tmp_path / "p.jsonl", records)), "dataset": "d", "domain": "math"}
                ],
                "given": [
                    {
                        "name": "teacher",
                        "model": "lab/teacher",
                        "path": str(write_jsonl(tmp_path / "given.jsonl", rows)),
                        "prompt": "problem",
                        "answer": "solution",
                        "domains": ["math"],
                        **more,
                    }
                ],
            }
        )
        prompts.run(made)
        return made

    return make


def table(config):
    return pl.read_parquet(f"{config.output_dir}/samples/teacher.parquet")


def test_rows_become_answers(config, capsys):
    rows = [
        {"problem": "What is 1 + 1?", "solution": "two"},
        {"problem": "What is 0 + 1?", "solution": "one"},
        {"problem": "What is 1 + 1?", "solution": "2"},
        {"problem": "What is 1 + 1?", "solution": "two"},
        {"problem": "What is 9 + 1?", "solution": "ten"},
        {"problem": "Hi", "solution": "of a conversation"},
        {"problem": "What is 2 + 1?", "solution": " "},
        {"problem": 7, "solution": "no text"},
        {"problem": "What is 2 + 1?", "solution": "7 " * 500},
    ]
    made = config(rows)
    sample.run(made)
    found = table(made)
    assert found.schema == sample.SCHEMA
    assert set(found.select("prompt_id", "sample_index", "text").rows()) == {
        ("p0", 0, "one"),
        ("p1", 0, "two"),
        ("p1", 1, "2"),
        ("p2", 0, "7 " * 500),
    }
    order = pl.read_parquet(f"{made.output_dir}/prompts.parquet")["id"].to_list()
    assert found["prompt_id"].unique(maintain_order=True).to_list() == [name for name in order if name != "long"]
    assert found.filter("degenerate")["prompt_id"].to_list() == ["p2"]
    assert set(found["model"]) == {"lab/teacher"} and set(found["engine"]) == {"given"}
    told = capsys.readouterr().out
    assert "4 given answers to 3 of 4 prompts" in told
    assert "{'no_such_prompt': 3, 'empty': 1, 'duplicate': 1}" in told
    sample.run(made)
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"problem": "What is 0 + 1?", "answer": "1"}], "no record has the column 'solution'"),
        ([{"problem": "Why?", "solution": "So."}], "none of 1 rows answers a prompt: {'no_such_prompt': 1}"),
    ],
)
def test_what_cannot_serve_is_named(config, rows, message):
    made = config(rows)
    with pytest.raises(UserError, match=message):
        sample.run(made)
    assert not (sample.epath.Path(made.output_dir) / "samples/teacher.parquet").exists()


def test_names_are_shared_with_the_sources():
    with pytest.raises(ValueError, match="a name occurs twice in teacher, teacher"):
        PipelineConfig.model_validate(
            {
                "output_dir": "o",
                "prompts": [{"path": "p.jsonl", "dataset": "d", "domain": "math"}],
                "sources": [{"name": "teacher", "model": "m"}],
                "given": [{"name": "teacher", "model": "m", "path": "g.jsonl", "prompt": "a", "answer": "b"}],
            }
        )
    with pytest.raises(ValueError, match="sources: there are none, and no given answers either"):
        PipelineConfig.model_validate(
            {"output_dir": "o", "prompts": [{"path": "p.jsonl", "dataset": "d", "domain": "math"}]}
        )
