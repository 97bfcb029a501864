"""Thoughts before answers: cut off wherever answers come from, kept apart, counted, and never sampled again for it."""

import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from etils import epath

from data_pipeline.__main__ import STAGES, main
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts import stage as prompts
from data_pipeline.sampling import answer_store
from data_pipeline.sampling import stage as sample
from data_pipeline.sampling.chat import ChatTokenizer
from data_pipeline.sampling.reasoning import TAGS, cut, opened, split
from data_pipeline.sampling.sampler import Answer, Answered, Request
from data_pipeline.scoring import stage as score
from fusejax.common.cli import UserError
from tests.data_pipeline.helpers import CHAT_TEMPLATE, make_checkpoint, write_config, write_jsonl

THINKING_TEMPLATE = CHAT_TEMPLATE.replace(
    "<|assistant|>",
    "<|assistant|><think>\n{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}",
)
"""As of DeepSeek-R1 and Qwen3: the generation prompt opens the thought, and closes it where none is wanted."""


@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("<think>a\n</think>\n\nb", "b", "a"),
        ("\n<think>a</think>b", "b", "a"),
        ("a</think>\nb", "b", "a"),
        ("<think>\n\n</think>\n\nb", "b", ""),
        ("<think>a</think> so <think>c</think> b", "b", "a</think> so <think>c"),
        ("Well. <think>a</think>b", "b", "Well. <think>a"),
        ("<think>a </think> is a tag</think>b", "b", "a </think> is a tag"),
        ("<think>a", "", "a"),
        ("<think>a</think>b<think>c", "", "a</think>b<think>c"),
        ("<think>a</think>", "", "a"),
        ("Write `</think>`, or '</think>'.", "Write `</think>`, or '</think>'.", None),
        ("Use <think> for that.", "Use <think> for that.", None),
        ('"yes"</think>b', "b", '"yes"'),
        ("[THINK]a[/THINK]b", "b", "a"),
        ("<seed:think>a</seed:think>b", "b", "a"),
        ("analysisLet me see.assistantfinalb", "b", "Let me see."),
        ("analysis of b", "analysis of b", None),
        ("  b  ", "  b  ", None),
        ("", "", None),
    ],
)
def test_split(text: str, answer: str, thought: str | None):
    assert split(text) == (answer, thought)


@pytest.mark.parametrize("tags", TAGS)
def test_every_kind_of_tag(tags: tuple[str, str]):
    opening, closing = tags
    assert split(f"{opening}a{closing}b") == split(f"a{closing}b") == split(f"a{closing}b", opening) == ("b", "a")
    assert split(f"{opening}a") == split("a", opening) == ("", "a")
    assert opened(f"say{opening}\n") == opening and opened(f"say{opening}\n\n{closing}\n\n") == ""


def test_only_answers_that_were_made_are_cut_and_only_once():
    rows = [
        ("<think>a</think>b", "stop", None, "b", "a"),
        ("b </think> c", "stop", "a", "b </think> c", "a"),
        ("", "error", None, "", None),
        ("b", "length", None, "", "b"),
    ]
    table = pl.DataFrame(rows, schema=["text", "finish_reason", "reasoning", "answer", "thought"], orient="row")
    table = table.with_columns(pl.col("reasoning").cast(pl.String))
    found = cut(table, opened="<think>")
    assert found["text"].to_list() == table["answer"].to_list()
    assert found["reasoning"].to_list() == table["thought"].to_list()
    assert cut(found, opened="<think>").equals(found)


class Fixed:
    """A source that always writes the same texts, in turn."""

    engine = "fake 1"

    def __init__(self, *texts: str):
        self.asked: list[Request] = []
        self._texts = texts

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Iterator[Answered]:
        for number, request in enumerate(requests):
            if request.key not in done:
                self.asked.append(request)
                yield [(request, Answer(self._texts[number % len(self._texts)], "stop", 1))]

    def close(self) -> None:
        pass


Run = Callable[..., pl.DataFrame]


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs the stages with a fake source, and gives the table of samples."""
    file = write_jsonl(tmp_path / "p.jsonl", [{"id": f"p{n}", "prompt": f"q{n}"} for n in range(6)])

    def run(fake: Fixed, stages: Sequence[str] = ("prompts", "sample"), **source: Any) -> pl.DataFrame:
        monkeypatch.setattr(sample, "open_sampler", lambda *_: fake)
        values = {
            "output_dir": str(tmp_path / "out"),
            "prompts": [{"path": str(file), "dataset": "d", "domain": "instruction"}],
            "sources": [{"name": "s", "model": str(checkpoint), **source}],
            "domains": {"instruction": {"samples": 1, "rule": "one_source"}},
            "max_new_tokens": 20,
            "write": {"num_shards": 1, "eval_fraction": 0},
        }
        for stage in stages:
            main([stage, "--config", str(write_config(tmp_path / "data.yaml", values))])
        return pl.read_parquet(tmp_path / "out/samples/s.parquet")

    return run


TEXTS = ("<think>a</think>b", "c", "<think>never ends")


def test_thoughts_are_cut_off_before_scoring_and_counted(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture):
    table = run(Fixed(*TEXTS), stages=list(STAGES))
    assert sorted(table.select("text", "reasoning", "truncated", "empty").rows(), key=str) == [
        ("", "never ends", True, True), ("", "never ends", True, True),
        ("b", "a", False, False), ("b", "a", False, False),
        ("c", None, False, False), ("c", None, False, False),
    ]  # fmt: skip
    assert "; thoughts cut off from 4, 2 of them with no answer after it" in capsys.readouterr().out
    scored = pl.read_parquet(tmp_path / "out/scores/s.parquet")
    assert scored.select("text", "reasoning").equals(table.select("text", "reasoning"))
    chosen = pl.read_parquet(tmp_path / "out/selection/sft.parquet")
    assert sorted(chosen["text"]) == ["b", "b", "c", "c"]
    assert set(pl.read_parquet(tmp_path / "out/selection/unused.parquet")["reason"]) == {"empty"}
    card = (tmp_path / "out/data_card.md").read_text()
    assert "| source | answers | with a thought | without an answer after it |" in card and "| s | 6 | 4 | 2 |" in card
    assert "with a thought" in (tmp_path / "out/report.html").read_text()


def test_the_store_keeps_what_came_and_nothing_is_sampled_again(run: Run, tmp_path: Path):
    whole = run(Fixed(*TEXTS))
    known = answer_store.read(epath.Path(tmp_path / "out/samples/.answers/s"), sample.STORED)
    assert sorted(set(known["text"])) == sorted(TEXTS)
    # As if an earlier version had made the table, which left the texts as they were.
    (tmp_path / "out/.state/sample s.json").unlink()
    assert run(again := Fixed("other")).equals(whole) and again.asked == []
    # The table alone is enough.
    shutil.rmtree(tmp_path / "out/samples/.answers")
    (tmp_path / "out/.state/sample s.json").unlink()
    assert run(again := Fixed("other")).equals(whole) and again.asked == []


def test_other_tables_are_as_before(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture):
    table = run(Fixed("b", "c"), stages=list(STAGES))
    assert table.schema == sample.SCHEMA
    assert "thoughts cut" not in capsys.readouterr().out
    assert "thought" not in (tmp_path / "out/data_card.md").read_text()


def test_a_generation_prompt_that_opens_the_thought(run: Run, tmp_path: Path):
    model = make_checkpoint(tmp_path / "thinker", chat_template=THINKING_TEMPLATE)
    table = run(Fixed("a\n</think>\n\nb", "never ends"), model=str(model))
    assert set(table.select("text", "reasoning", "truncated").rows()) == {
        ("b", "a", False),
        ("", "never ends", True),
    }
    plain = run(fake := Fixed("b"), model=str(model), chat_template_kwargs={"enable_thinking": False})
    assert len(fake.asked) == 6  # Another prompt, so another answer.
    assert set(plain["text"]) == {"b"} and "reasoning" not in plain.columns


def test_arguments_of_the_chat_template(tmp_path: Path, checkpoint: Path):
    thinker = make_checkpoint(tmp_path / "thinker", chat_template=THINKING_TEMPLATE)
    turns = [{"role": "user", "content": "hi"}]
    asked = [
        ChatTokenizer("s", thinker, None, arguments).encode(turns)
        for arguments in (None, {}, {"enable_thinking": True}, {"enable_thinking": False})
    ]
    assert asked[0] == asked[1] == asked[2] == asked[3][: len(asked[0])] and len(asked[3]) > len(asked[0])
    with pytest.raises(
        UserError, match=r"^sources: s: chat_template_kwargs: the chat template of .* not use enable_th"
    ):
        ChatTokenizer("s", checkpoint, None, {"enable_thinking": False})


def test_given_answers_are_cut_too(tmp_path: Path):
    asked = write_jsonl(tmp_path / "p.jsonl", [{"id": f"p{n}", "prompt": f"q{n}"} for n in range(3)])
    rows = [{"q": f"q{n}", "a": text} for n, text in enumerate(TEXTS)]
    answered = write_jsonl(tmp_path / "a.jsonl", rows)
    config = PipelineConfig.model_validate(
        {
            "output_dir": str(tmp_path / "out"),
            "prompts": [{"path": str(asked), "dataset": "d", "domain": "instruction"}],
            "given": [{"name": "t", "model": "lab/t", "path": str(answered), "prompt": "q", "answer": "a"}],
        }
    )
    prompts.run(config)
    sample.run(config)
    table = pl.read_parquet(tmp_path / "out/samples/t.parquet").sort("prompt_id")
    assert table["text"].to_list() == ["b", "c", ""] and table["reasoning"].to_list() == ["a", None, "never ends"]
    assert table["truncated"].to_list() == [False, False, True]


def test_tables_of_other_programs_are_cut_when_they_are_scored(tmp_path: Path):
    file = write_jsonl(tmp_path / "p.jsonl", [{"id": f"p{n}", "prompt": f"q{n}"} for n in range(3)])
    config = PipelineConfig.model_validate(
        {
            "output_dir": str(tmp_path / "out"),
            "prompts": [{"path": str(file), "dataset": "d", "domain": "instruction"}],
            "sources": [{"name": "s", "model": "none/needed"}],
            "domains": {"instruction": {"reward": "tests.data_pipeline.helpers:reward", "rule": "one_source"}},
        }
    )
    prompts.run(config)
    frame = {"prompt_id": ["p0", "p1", "p2"], "source": "s", "sample_index": 0, "text": TEXTS, "finish_reason": "stop"}
    (tmp_path / "out/samples").mkdir()
    pl.DataFrame(frame).write_parquet(tmp_path / "out/samples/s.parquet")
    score.run(config)
    found = pl.read_parquet(tmp_path / "out/scores/s.parquet")
    assert found["text"].to_list() == ["b", "c", ""] and found["reasoning"].to_list() == ["a", None, "never ends"]
