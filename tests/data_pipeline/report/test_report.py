"""The report counts every record, prompt and answer once, says what is not known, and is a page that stands alone."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipeline.__main__ import main
from data_pipeline.config import PipelineConfig, PromptsConfig
from data_pipeline.prompts.stage import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.report import card, sections
from data_pipeline.report import facts as report_facts
from data_pipeline.report.recipe import RECIPE, Counts, published
from data_pipeline.selection.rules import Bounds
from fusejax.common.cli import UserError
from tests.data_pipeline.helpers import write_config

REWARD = "tests.data_pipeline.helpers:reward"
HOSTILE = "</pre><script>alert(1)</script><img src=x>"
Answer = tuple[str, str, float | None, str | None]
"""prompt, source, reward, verdict."""
ANSWERS: list[Answer] = [
    # i0: both sources could give a pair; b's chosen answer is the better one.
    ("i0", "a", 0.10, None), ("i0", "a", 0.13, None), ("i0", "b", 0.11, None), ("i0", "b", 0.15, None),
    # i1: too narrow in both.
    ("i1", "a", 0.100, None), ("i1", "a", 0.105, None), ("i1", "b", 0.2, None),
    # m0: a pair of a; the margin of b's is negative.
    ("m0", "a", 0.15, "correct"), ("m0", "a", 0.10, "wrong"), ("m0", "b", 0.10, "correct"), ("m0", "b", 0.16, "wrong"),
    # m1: correct alone.
    ("m1", "a", 0.12, "correct"), ("m1", "b", None, "unknown"),
    # c0: an example and a pair in one.
    ("c0", "b", 0.2, "correct"), ("c0", "b", 0.1, "wrong"),
]  # fmt: skip


def made(tmp_path: Path, answers: list[Answer] = ANSWERS, domains: str = "imcz", **changes: Any) -> PipelineConfig:
    """A run's folder up to the selection; prompts are called by the first letter of their domain."""
    names = {"i": "instruction", "m": "math", "c": "code", "z": "chinese"}
    ids = sorted({answer[0] for answer in answers if answer[0] != "gone"} | {f"{letter}0" for letter in domains})
    out = tmp_path / "out"
    (out / "scores").mkdir(parents=True)
    turns = [{"role": "user", "content": f"{HOSTILE} 你好"}]
    prompts = [
        {"id": name, "dataset": f"{names[name[0]]}-set", "domain": names[name[0]], "messages": turns, "answer": "4"}
        for name in ids
    ]
    pl.DataFrame(prompts, schema=PROMPTS_SCHEMA).write_parquet(out / "prompts.parquet")
    more = {"completion_tokens": 10, "prompt_tokens": 5, "engine": "vllm 1", "truncated": False, "degenerate": False}
    more |= {"extracted": "4", "detail": "same_number: 4 and 4"}
    columns = more | changes.pop("columns", {})
    frame = pl.DataFrame(answers, schema=["prompt_id", "source", "reward", "verdict"], orient="row").with_columns(
        pl.col("reward").cast(pl.Float64),
        pl.col("verdict").cast(pl.String),
        sample_index=pl.int_range(pl.len()).over("prompt_id", "source"),
        text=pl.format("{} by {}, {}", pl.lit(HOSTILE), "source", pl.int_range(pl.len())),
        finish_reason=pl.lit("stop"),
        **{name: pl.lit(value) for name, value in columns.items() if value is not None},
    )
    sources = changes.pop("sources", ["a", "b"])
    for source in sources:
        frame.filter(source=source).write_parquet(out / "scores" / f"{source}.parquet")
    values = {
        "output_dir": str(out),
        "prompts": [{"path": f"/data/{d}.jsonl", "dataset": f"{d}-set", "domain": d} for d in names.values()],
        "sources": [{"name": source, "model": f"/models/{source}"} for source in sources],
        "scorers": {domain: {"reward": REWARD} for domain in names.values()},
        "selection": {"instruction": {"sft_fraction": 0}},
    }
    file = write_config(tmp_path / "data.yaml", values | changes)
    main(["select", "--config", str(file)])
    main(["report", "--config", str(file)])
    return PipelineConfig.model_validate(values | changes)


def test_every_prompt_and_answer_is_counted_once(tmp_path: Path):
    facts = report_facts.read(made(tmp_path))
    assert facts.funnel()["total"] == {
        "prompts": 6, "answers": 15, "usable answers": 14, "SFT examples": 2, "DPO pairs": 3, "prompts discarded": 2,
    }  # fmt: skip
    assert {name: sum(row.values()) for name, row in facts.fates().items()} == {
        "instruction": 2, "math": 2, "code": 1, "chinese": 1,
    }  # fmt: skip
    assert facts.fates()["instruction"]["discarded: margin_too_small"] == 1
    assert facts.fates()["code"]["SFT and DPO"] == 1
    assert facts.answer_fates() == {
        domain: dict(zip(("SFT", "SFT and chosen", "chosen", "rejected", "not selected", "unusable"), row, strict=True))
        for domain, row in {
            "instruction": (0, 0, 1, 1, 5, 0),
            "math": (1, 0, 1, 1, 2, 1),
            "code": (0, 1, 0, 1, 0, 0),
            "chinese": (0, 0, 0, 0, 0, 0),
        }.items()
    }
    assert facts.unusable("source") == {"a": {"usable": 7, "no_reward": 0}, "b": {"usable": 7, "no_reward": 1}}
    assert facts.wins("dpo")["instruction"] == {"a": 0, "b": 1}
    assert next(iter(facts.flow().items())) == (
        ("instruction-set", "instruction"),
        {"prompts": 2, "answers": 7, "usable answers": 7, "SFT examples": 0, "DPO pairs": 1, "prompts discarded": 1},
    )


def test_margins_before_are_those_that_the_rules_compare(tmp_path: Path):
    facts = report_facts.read(made(tmp_path))
    margins = {domain: facts.margins(domain) for domain in ("instruction", "math", "code")}
    assert sorted(margins["instruction"]["before selection"]) == [0.005, 0.03, 0.04]
    assert list(margins["instruction"]["pairs"]) == [0.04]
    assert sorted(margins["math"]["before selection"]) == [-0.06, 0.05]
    assert list(margins["math"]["pairs"]) == [0.05]
    parts = facts.parts("reward", "math")
    assert {name: sorted(values) for name, values in parts.items()} == {
        "all": [0.1, 0.1, 0.12, 0.15, 0.16], "SFT": [0.12], "chosen": [0.15], "rejected": [0.1],
    }  # fmt: skip


def test_what_a_quantile_came_to_is_shown(tmp_path: Path):
    rule = {"sft_fraction": 0, "min_margin": {"quantile": 0.5}, "max_margin": {"quantile": 1}}
    config = made(tmp_path, selection={"instruction": rule})
    page, told = (tmp_path / "out/report.html").read_text(), (tmp_path / "out/data_card.md").read_text()
    for name, share, value in (("min", 0.5, 0.03), ("max", 1.0, 0.04)):
        line = f"instruction: {name}_margin, the quantile {share} of 3 margins, is {value}."
        assert line in page and line in told
    assert "`margin` (min_margin quantile 0.5, max_margin quantile 1.0, " in told
    # The band of the chart: what is drawn depends on the bounds.
    assert report_facts.read(config).bounds["instruction"] == Bounds(0.03, 0.04, 3)
    (tmp_path / "out/selection/margins.json").unlink()
    with pytest.raises(UserError, match=r"margins\.json: no such file; run the stage 'select' first"):
        main(["report", "--config", str(tmp_path / "data.yaml")])


def test_code_margins_across_sources(tmp_path: Path):
    answers: list[Answer] = [("c0", "a", 0.2, "correct"), ("c0", "b", 0.1, "wrong")]
    same = report_facts.read(made(tmp_path / "same", answers))
    assert same.margins("code")["before selection"].size == 0
    across = report_facts.read(made(tmp_path / "across", answers, selection={"code": {"same_source": False}}))
    assert list(across.margins("code")["before selection"]) == [0.1]


def test_lengths_are_characters_where_tokens_are_not_known(tmp_path: Path):
    facts = report_facts.read(made(tmp_path / "tokens"))
    assert (facts.length_unit, set(facts.answers["length"])) == ("tokens", {10})
    facts = report_facts.read(made(tmp_path / "none", columns={"completion_tokens": None}))
    texts = pl.read_parquet(tmp_path / "none/out/scores/a.parquet")["text"]
    assert facts.length_unit == "characters"
    assert set(facts.answers.filter(source="a")["length"]) == set(texts.str.len_chars())


def test_cost(tmp_path: Path):
    config = made(tmp_path)
    unknown = report_facts.read(config).costs()
    assert (unknown["a"].answer_tokens, unknown["a"].prompt_tokens, unknown["a"].gpu_hours) == (70, 35, None)
    assert "GPU-hours: not known" in (tmp_path / "out/report.html").read_text()
    store = tmp_path / "out/samples/.answers/a"
    store.mkdir(parents=True)
    pl.DataFrame({"completion_tokens": [30, 40, 7], "seconds": [3600.0, 3600.0, None]}).write_parquet(
        store / "x.parquet"
    )
    facts = report_facts.read(config)
    measured = facts.costs()
    assert measured["a"].measured and measured["a"].gpu_hours == pytest.approx(2)
    assert measured["b"].gpu_hours is None
    page = sections.report(facts)
    assert "Sampling took 2.0 GPU-hours, besides those of b, which are not known." in page
    assert "| b | 8 | 40 | 80 | not known |" in card.card(facts)


def test_beside_the_recipe(tmp_path: Path):
    assert sum(counts.total for counts in RECIPE.values()) == 158_667
    assert sum(counts.sft for counts in RECIPE.values()) == 94_539
    entries = [
        PromptsConfig(path="openbmb/UltraFeedback", dataset="UltraFeedback", domain="instruction"),
        PromptsConfig(path="/copy", adapter="nvidia/HelpSteer2", dataset="Help", domain="instruction"),
        PromptsConfig(path="/data/own.jsonl", dataset="own", domain="math"),
    ]
    assert published(entries) == {"UltraFeedback": Counts(20_439, 30_659), "Help": Counts(3_774, 5_661)}
    theirs = [{"path": "/x", "adapter": "greengerong/leetcode", "dataset": "code-set", "domain": "code"}]
    facts = report_facts.read(made(tmp_path, prompts=theirs))
    assert facts.beside_recipe()["code-set"] == ("code", Counts(1, 1), Counts(1_877, 1_236))
    line = "| code-set | code | 2 | 3,113 | -3,111 | 1 | 1,877 | -1,876 | 1 | 1,236 | -1,235 |"
    assert line in card.card(facts)


class _Tags(HTMLParser):
    """Checks that elements close in order, and that tables lie in a box that scrolls."""

    VOID = frozenset({"meta", "path", "use", "rect", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.seen: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag == "table":
            assert self.open[-1] == ("div", "scroll")
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes).get("class")))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop()[0] == tag


def check_page(page: str) -> None:
    tags = _Tags(page)
    assert not tags.seen & {"script", "link", "img", "iframe"}
    assert not re.search(r'(src|href)="(?!#)', re.sub(r'xlink:href="#', 'xlink:href="#', page))


def test_the_page_stands_alone_and_shows_texts_as_they_are(tmp_path: Path):
    made(tmp_path)
    page = (tmp_path / "out/report.html").read_text()
    check_page(page)
    assert "&lt;/pre&gt;&lt;script&gt;" in page and "你好" in page
    samples = page[page.index('id="samples-to-read"') :]
    assert [samples.count(f"<h3>{name}</h3>") for name in ("instruction", "math", "code", "chinese")] == [1] * 4
    assert "Right answer: 4" in samples and "same_number: 4 and 4" in samples


ONE_SOURCE: list[Answer] = [("i0", "a", 0.1, None), ("i0", "a", 0.15, None)]
NO_REWARDS: list[Answer] = [("z0", "a", None, None), ("z1", "b", None, None)]


@pytest.mark.parametrize(
    ("answers", "domains", "changes", "says"),
    [
        pytest.param(ONE_SOURCE, "i", {"sources": ["a"]}, "No answer was judged.", id="one source"),
        pytest.param(NO_REWARDS, "z", {}, "There are no pairs.", id="no rewards"),
        pytest.param(NO_REWARDS, "z", {}, "No two answers could be compared.", id="no margins"),
        pytest.param(ANSWERS[7:9], "imcz", {}, "What became of the prompts", id="empty domains"),
        pytest.param([("i0", "a", 0.1, None)], "i", {}, "Nothing was selected.", id="nothing selected"),
        pytest.param([("i0", "a", float("nan"), None)], "i", {}, "non_finite_reward", id="no finite reward"),
        pytest.param(
            [*ONE_SOURCE, ("gone", "b", 0.1, None)], "i", {}, "to prompts that are not there: 1", id="strangers"
        ),
        pytest.param(
            ANSWERS,
            "i",
            {"columns": dict.fromkeys(("completion_tokens", "prompt_tokens", "engine", "truncated", "degenerate"))},
            "characters an answer",
            id="answers of another program",
        ),
    ],
)
def test_corner_cases(answers: list[Answer], domains: str, changes: dict[str, Any], says: str, tmp_path: Path):
    made(tmp_path, answers, domains, **changes)
    page = (tmp_path / "out/report.html").read_text()
    check_page(page)
    assert says in page


def test_many_reasons_are_fewer_than_the_colours():
    table = {"x": {"kept": 5, **{f"reason {n}": n for n in range(1, 13)}}, "y": {"kept": 1, "reason 1": 3}}
    few, colors = sections.few_reasons(table)
    assert {label: sum(row.values()) for label, row in few.items()} == {"x": 5 + 78, "y": 4}
    shown = list(few["x"])
    assert len(shown) == 9 and "other reasons" in shown and "reason 12" in shown
    assert len({colors[name] for name in shown}) == len(shown)
