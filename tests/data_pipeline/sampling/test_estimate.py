"""`sample --dry-run`: what is left to ask, for how many tokens and GPU-hours, before, amid and after sampling."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import transformers

from data_pipeline.__main__ import main
from data_pipeline.config import PipelineConfig, SourceConfig
from data_pipeline.sampling import estimate
from data_pipeline.sampling import stage as sample
from data_pipeline.sampling.answer_store import AnswerStore
from fusejax.common.cli import UserError
from tests.data_pipeline.helpers import write_config


@pytest.fixture
def run(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture):
    """A function that plans and gives what it printed."""
    config = write_config(tmp_path / "config.yaml", values)
    main(["prompts", "--config", str(config)])

    def dry_run(*overrides: str) -> str:
        capsys.readouterr()
        main(["sample", "--config", str(config), "--dry-run", *overrides])
        return capsys.readouterr().out

    return dry_run


def rows(printed: str, source: str) -> dict[str, list[int]]:
    """Domain -> prompts, refused, stored, to make, prompt tokens, answer tokens."""
    part = printed.split(f"{source}: ")[1].split("\n\n")[0]
    found = re.findall(r"^ *([a-z]+) +([\d, ]+?) *$", part, re.MULTILINE)
    return {domain: [int(number.replace(",", "")) for number in numbers.split()] for domain, numbers in found}


def test_before_there_is_an_answer(run: Any, checkpoint: Path, tmp_path: Path):
    printed = run()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    turns = [[{"role": "user", "content": f"say hello {n}"}] for n in range(10)]
    length = sum(
        len(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)) for turn in turns
    )
    assert rows(printed, "hot")["instruction"] == [10, 0, 0, 30, 3 * length, 30 * 32]
    assert {domain: row[3] for domain, row in rows(printed, "hot").items()} == {
        "instruction": 30, "math": 12, "code": 8, "chinese": 4,
    }  # fmt: skip
    assert set(rows(printed, "cool")) == {"instruction", "math"}
    assert f"hot: {checkpoint} at " in printed and "by transformers, temperature 1.0, top_p 0.95" in printed
    assert f"to come at most {54 * 32:,} tokens: no rate is known: set cost.tokens_per_second" in printed
    assert f"all: 96 answers, {96 * 32:,} tokens, 0.0 GPU-hours, besides those of hot, cool" in printed
    assert not (tmp_path / "out/samples").exists()  # It only looks.


def test_with_a_given_rate(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture):
    values["sources"][0]["cost"] = {"tokens_per_second": 0.5, "gpus": 8, "answer_tokens": 10}
    values["sources"][1]["cost"] = {"tokens_per_second": 1, "answer_tokens": 1000}
    config = write_config(tmp_path / "config.yaml", values)
    main(["prompts", "--config", str(config)])
    capsys.readouterr()
    main(["sample", "--dry-run", "--config", str(config), "max_new_tokens=30"])
    printed = capsys.readouterr().out
    assert "to come about 540 tokens: 0:18:00 at 0 tokens/s (given) on 8 GPUs, 2.4 GPU-hours" in printed
    assert "to come about 1,260 tokens: 0:21:00 at 1 tokens/s (given) on 1 GPU, 0.3 GPU-hours" in printed
    assert "all: 96 answers, 1,800 tokens, 2.8 GPU-hours\n" in printed  # 2.4 + 0.35


def keep(config: PipelineConfig, table: pl.DataFrame, seconds: float) -> None:
    """Puts answers into the store as if they had taken so long together."""
    source = config.sources[0]
    rows = table.select(name for name in sample.STORED if name != "seconds").with_columns(seconds=seconds / len(table))
    with AnswerStore(sample.store_folder(config, source), sample.STORED) as answers:
        answers.append(rows.to_dicts())
        # Amid a run: what is in the journal counts, and the lock of the run is no hindrance.
        main(["sample", "--config", str(Path(config.output_dir).parent / "config.yaml"), "--dry-run"])


def test_amid_sampling(run: Any, values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture):
    config = PipelineConfig.model_validate(values)
    elsewhere = config.model_copy(update={"output_dir": str(tmp_path / "elsewhere")})
    (tmp_path / "elsewhere").mkdir()
    prompts = pl.read_parquet(tmp_path / "out/prompts.parquet")
    prompts.write_parquet(tmp_path / "elsewhere/prompts.parquet")
    sample.run(elsewhere)
    whole = pl.read_parquet(tmp_path / "elsewhere/samples/hot.parquet").join(
        prompts.select(prompt_id="id", domain="domain"), on="prompt_id", maintain_order="left"
    )
    first = whole.head(40)
    capsys.readouterr()
    keep(config, first, seconds=20.0)
    printed = capsys.readouterr().out
    rate = first["completion_tokens"].sum() / 20
    hot = rows(printed, "hot")
    expected = 0.0
    for domain, row in hot.items():
        stored = first.filter(domain=domain)
        left = whole.filter(domain=domain).height - len(stored)
        mean = (stored if len(stored) else first)["completion_tokens"].mean()
        assert row[2:4] == [len(stored), left]
        assert row[5] == pytest.approx(left * mean, abs=1)
        expected += row[5]
    assert f"so far 40 answers, {rate:,.0f} tokens/s on 1 GPU" in printed
    assert f"to come about {expected:,.0f} tokens" in printed and "tokens/s (measured) on 1 GPU" in printed


def test_after_sampling(run: Any, values: dict[str, Any]):
    config = PipelineConfig.model_validate(values)
    sample.run(config)
    printed = run()
    assert all(row[3:] == [0, 0, 0] for source in ("hot", "cool") for row in rows(printed, source).values())
    assert printed.endswith("all: 0 answers, 0 tokens, 0.0 GPU-hours\n")
    tokens = pl.read_parquet(Path(config.output_dir) / "samples/hot.parquet")["completion_tokens"].sum()
    (rate,) = re.findall(r"so far 54 answers, ([\d,]+) tokens/s", printed)
    # Other parameters: all is to be asked again, and what was measured still tells how long it takes.
    again = run("max_new_tokens=31")
    assert sum(row[3] for row in rows(again, "hot").values()) == 54
    assert f"at {rate} tokens/s (measured)" in again and tokens > 0


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({}, 1),
        ({"engine": {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "max_num_seqs": 64}}, 8),
        ({"engine": {"tensor_parallel_size": 4}, "cost": {"gpus": 16}}, 16),
    ],
)
def test_gpus(more: dict[str, Any], count: int):
    assert estimate.gpus(SourceConfig(name="s", model="org/m", **more)) == count


def test_prompts_come_first(values: dict[str, Any], tmp_path: Path):
    config = write_config(tmp_path / "config.yaml", values)
    with pytest.raises(UserError, match="run the stage 'prompts' first"):
        main(["sample", "--config", str(config), "--dry-run"])
