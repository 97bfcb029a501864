"""Two rounds of one configuration: examples from the sources, then triples with the answers of what they trained."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipeline.__main__ import main
from data_pipeline.config import PipelineConfig
from data_pipeline.report import facts as report_facts
from fusejax.data.records import PreferenceTriple, open_shards
from tests.data_pipeline.helpers import make_checkpoint, write_config, write_jsonl


@pytest.fixture
def first(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Thirty prompts, two sources."""
    prompts = write_jsonl(tmp_path / "asked.jsonl", [{"id": f"p{n}", "prompt": f"say hello {n}"} for n in range(30)])
    rule = {"name": "wrpo", "sft_fraction": 0.3333}
    values = {key: values[key] for key in ("output_dir", "sources", "sampler", "write")}
    values["sources"] = [{**source, "domains": ["chat"]} for source in values["sources"]]
    values["prompts"] = [{"path": str(prompts), "dataset": "asked", "domain": "chat"}]
    values["domains"] = {"chat": {"samples": 3, "reward": "tests.data_pipeline.helpers:reward", "rule": rule}}
    return {**values, "max_new_tokens": 16}


def second(first: dict[str, Any], model: Path) -> dict[str, Any]:
    domain = first["domains"]["chat"]
    target = {"domains": {"chat": {**domain, "rule": {**domain["rule"], "target": "trained"}}}}
    return first | target | {"sources": [*first["sources"], {"name": "trained", "model": str(model)}]}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_two_rounds(first: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    main(["run", "--config", str(write_config(tmp_path / "first.yaml", first))])
    examples, samples = files(out / "sft"), files(out / "samples" / ".answers" / "hot")
    learned = {record.id for split in ("train", "eval") for record in open_shards(out / "sft" / split)}
    assert 4 <= len(learned) <= 16 and not (out / "wrpo").exists()
    assert "awaits_the_target" in (out / "report.html").read_text()
    assert "triples" not in (out / "data_card.md").read_text()

    config = second(first, make_checkpoint(tmp_path / "trained", seed=1))
    main(["run", "--config", str(write_config(tmp_path / "second.yaml", config))])
    # The first round's answers are not asked for again, and its examples are what the target was trained on.
    assert files(out / "samples" / ".answers" / "hot") == samples and files(out / "sft") == examples
    asked = set(pl.read_parquet(out / "samples" / "trained.parquet")["prompt_id"])
    assert asked == set(pl.read_parquet(out / "prompts.parquet")["id"]) - learned
    table = {row["prompt_id"]: row for row in pl.read_parquet(out / "selection/wrpo.parquet").iter_rows(named=True)}
    splits = {split: open_shards(out / "wrpo" / split) for split in ("train", "eval")}
    records = [record for shards in splits.values() for record in shards]
    assert len(splits["eval"]) >= 1 and len(records) == len(table) >= 10
    scores = pl.concat(pl.read_parquet(file) for file in sorted((out / "scores").glob("*.parquet"))).filter(
        pl.col("finish_reason") == "stop", pl.col("text").str.strip_chars() != "", ~pl.col("degenerate")
    )
    for record in records:
        assert isinstance(record, PreferenceTriple)
        row = table[record.id]
        assert record.source_model == row["source_chosen_source"] in ("hot", "cool")
        assert row["target_chosen_source"] == row["rejected_source"] == "trained"
        mine = scores.filter(prompt_id=record.id)
        rewards = {of: mine.filter(source=of)["reward"] for of in ("hot", "cool", "trained")}
        best = max(rewards["hot"].to_list() + rewards["cool"].to_list())
        found = (best, rewards["trained"].max(), rewards["trained"].min())
        assert (record.source_score, record.target_score, record.rejected_score) == pytest.approx(found)
        said = {turn["content"] for side in (record.source_chosen, record.target_chosen) for turn in side}
        assert said <= set(mine["text"]) and record.rejected[0]["content"] in set(mine["text"])
        assert record.prompt[-1]["content"].startswith("say hello")
    # Every prompt is somewhere once, and both reports say so.
    discarded = set(pl.read_parquet(out / "selection/discarded.parquet")["prompt_id"])
    assert len(learned) + len(table) + len(discarded) == 30
    facts = report_facts.read(PipelineConfig.model_validate(config))
    assert facts.funnel()["total"]["WRPO triples"] == facts.fates()["chat"]["WRPO"] == len(table)
    fates = facts.answer_fates()["chat"]
    assert (fates["chosen"], fates["rejected"], fates["SFT"]) == (2 * len(table), len(table), len(learned))
    assert sum(facts.wins("wrpo")["chat"].values()) == len(table) and facts.wins("wrpo")["chat"]["trained"] == 0
    margins = facts.margins("chat")
    assert sorted(margins["pairs"]) == sorted(row["margin"] for row in table.values())
    counts = scores.filter(source="trained").group_by("prompt_id").len()
    assert len(margins["before selection"]) == len(counts.filter(pl.col("len") > 1))
    page, card = (out / "report.html").read_text(), (out / "data_card.md").read_text()
    assert "of the target, chosen" in page and "Sources&#39; answers of WRPO triples" in page
    assert "`wrpo/`" in card and "| WRPO triples |" in card
    capsys.readouterr()
    main(["run", "--config", str(tmp_path / "second.yaml")])
    assert all("up to date" in line for line in capsys.readouterr().out.splitlines())


def test_weighted_examples_and_pairs(first: dict[str, Any], tmp_path: Path):
    """Several of a prompt, each with an id of its own and its weight."""
    first["domains"]["chat"]["rule"] = {"name": "fuserl", "top": 2, "sft_fraction": 0.5}
    main(["run", "--config", str(write_config(tmp_path / "data.yaml", first))])
    for kind in ("sft", "dpo"):
        records = [record for split in ("train", "eval") for record in open_shards(tmp_path / "out" / kind / split)]
        assert len({record.id for record in records}) == len(records)
        sums: dict[str, float] = {}
        for record in records:
            prompt, source, index = record.id.split("/")
            assert source == record.source_model and index in "012" and record.weight
            sums[prompt] = sums.get(prompt, 0) + record.weight
        assert max(record.id.count("/") for record in records) == 2 and len(records) > len(sums)
        assert list(sums.values()) == pytest.approx([1] * len(sums))
        # No prompt is in both splits.
        ids = [
            {record.id.split("/")[0] for record in open_shards(tmp_path / "out" / kind / s)} for s in ("train", "eval")
        ]
        assert not ids[0] & ids[1]
