"""The command `benchmark` on a tiny model: what it writes, that it asks nothing twice, and how mistakes end."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipeline.__main__ import main
from data_pipeline.benchmarks import asking, estimate, registry, stage
from data_pipeline.benchmarks.config import BenchmarkConfig
from fusejax.common.cli import UserError, load_config
from tests.data_pipeline.benchmarks.sums import Sums
from tests.data_pipeline.helpers import CHAT_TEMPLATE, make_checkpoint, write_config, write_jsonl

ROWS = [{"a": a, "b": b} for a in range(6) for b in (1, 2)]


@pytest.fixture(autouse=True)
def sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts `Sums` in place of GSM8K."""
    for module in (registry, stage):
        monkeypatch.setattr(module, "benchmark" if module is registry else "named", lambda name: Sums())


@pytest.fixture
def values(tmp_path: Path, checkpoint: Path) -> dict[str, Any]:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data/sums.jsonl", ROWS)
    model = {"model": str(checkpoint), "published": "Gemma-2-9B-It"}
    return {
        "output_dir": str(tmp_path / "out"),
        "models": {"mine": {**model, "against": "other"}, "other": {**model, "max_model_len": 64}},
        "benchmarks": ["gsm8k"],
        "data_dir": str(tmp_path / "data"),
        "bootstrap": 50,
        "sampler": {"batch_size": 8, "chunk_size": 16, "dtype": "float32"},
    }


def run(values: dict[str, Any], **changes: Any) -> None:
    stage.run(BenchmarkConfig.model_validate(values | changes))


def written(folder: Path) -> dict[str, str]:
    files = [
        *folder.glob("graded/*/*.parquet"),
        *(folder / name for name in ("results.json", "table.md", "report.html")),
    ]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_whole_run(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    run(values)
    rows = pl.read_parquet(tmp_path / "out/graded/mine/gsm8k.parquet")
    assert rows.select("id", "index").rows() == [
        (f"{a}+{b}", index) for a in range(6) for b in (1, 2) for index in (0, 1)
    ]
    assert set(rows["answers"].list.len()) == {2} and rows["tokens"].max() <= 12
    # Greedy answers are equal, sampled ones are not all.
    same = [
        len(set(map(tuple, group["answers"].to_list()))) == 1 for _, group in rows.group_by("id", maintain_order=True)
    ]
    assert all(same[:6]) and not all(same[6:])
    found = json.loads((tmp_path / "out/results.json").read_text())
    result = found["models"]["mine"]["gsm8k"]
    assert result["value"] == pytest.approx(100 * rows["score"].mean(), abs=1e-6) and result["low"] <= result["high"]
    assert (result["items"], result["answers"], result["published"]) == (12, 24, {"Gemma-2-9B-It": 88.5})
    assert found["against"]["mine"]["other"]["gsm8k"]["units"] == 12
    assert "| Sums |" in capsys.readouterr().out

    before = written(tmp_path / "out")
    monkeypatch.setattr(asking, "open_sampler", lambda *_: pytest.fail("it asks again"))
    run(values)
    assert written(tmp_path / "out") == before
    run(values, limit=3)  # of what is there
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["models"]["mine"]["gsm8k"]["items"] == 3


def test_the_second_turn_has_the_first_answer(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    asked = []
    real = asking.Asker._rendered
    monkeypatch.setattr(
        asking.Asker, "_rendered", lambda self, benchmark, prompt: asked.append(prompt) or real(self, benchmark, prompt)
    )
    run(values | {"models": {"mine": values["models"]["other"]}})
    second = [prompt for prompt in asked if len(prompt.messages) == 3]
    rows = pl.read_parquet(Path(values["output_dir"]) / "graded/mine/gsm8k.parquet")
    assert [prompt.messages[1]["content"] for prompt in second] == [f"It is{each[0]}" for each in rows["answers"]]


@pytest.mark.parametrize("answers", [1, 20, 30])
def test_a_killed_run_goes_on(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: int):
    """Killed in the first or the second turn."""
    run(values)
    expected = written(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "unbroken")
    real, left = asking.AnswerStore.append, [answers]

    def append(self: Any, rows: list[dict[str, Any]]) -> None:
        real(self, rows)
        left[0] -= len(rows)
        if left[0] <= 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(asking.AnswerStore, "append", append)
        run(values)
    assert not (tmp_path / "out/results.json").exists()
    run(values)
    assert written(tmp_path / "out") == expected


def test_prompts_that_do_not_fit_are_wrong_and_counted(values: dict[str, Any], tmp_path: Path):
    values["models"] = {"mine": {**values["models"]["other"], "max_model_len": 16}}
    run(values)
    result = json.loads((tmp_path / "out/results.json").read_text())["models"]["mine"]["gsm8k"]
    assert result["errors"] > 0 and result["answers"] == 24


def test_what_the_training_prompts_held(values: dict[str, Any], tmp_path: Path):
    from data_pipeline.prompts.stage import SCHEMA

    rows = [
        {name: [{"role": "user", "content": text}] if name == "messages" else "x" for name in SCHEMA}
        for text in ("0 + 1", "5 + 2 is?", "4 + 1")
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "prompts.parquet")
    run(values, training=[str(tmp_path / "prompts.parquet")])
    result = json.loads((tmp_path / "out/results.json").read_text())["models"]["mine"]["gsm8k"]
    kept = pl.read_parquet(tmp_path / "out/graded/mine/gsm8k.parquet").filter(~pl.col("id").is_in(["0+1", "4+1"]))
    assert result["held_by_training"] == 2
    assert result["without_held"] == pytest.approx(100 * kept["score"].mean(), abs=1e-6)


def test_the_dry_run(values: dict[str, Any], capsys: Any, monkeypatch: pytest.MonkeyPatch):
    config = BenchmarkConfig.model_validate(values)
    monkeypatch.setattr(asking, "open_sampler", lambda *_: pytest.fail("it loads a model"))
    estimate.run(config)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(line for line in lines if line[:1] == ["gsm8k"])[1:5] == ["48", "0", "0", "48"]


def test_the_dry_run_of_prompts_that_do_not_fit(values: dict[str, Any], capsys: Any):
    values["models"] = {"mine": {**values["models"]["other"], "max_model_len": 4}}
    estimate.run(BenchmarkConfig.model_validate(values))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(line for line in lines if line[:1] == ["gsm8k"])[1:5] == ["48", "24", "0", "0"]


def test_each_prompt_is_asked_whether_it_opens_a_thought(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of one whose end the benchmark has written, the answer is no thought; of another, it is one that never ends."""

    class Begun(Sums):
        def prompt(self, item: Any, family: Any, profile: Any, earlier: tuple[str, ...]) -> Any:
            prompt = super().prompt(item, family, profile, earlier)
            return dataclasses.replace(prompt, prefix="It is" if item.fields["b"] == 1 else "")

    monkeypatch.setattr(stage, "named", lambda name: Begun())
    model = make_checkpoint(tmp_path / "thinks", chat_template=f"{CHAT_TEMPLATE}<think>")
    run(values, models={"mine": {"model": str(model)}})
    rows = pl.read_parquet(tmp_path / "out/graded/mine/gsm8k.parquet")
    texts = {(id[-1], text) for id, answers in rows.select("id", "answers").rows() for text in answers}
    assert {text for b, text in texts if b == "2"} == {""}
    assert len({text for b, text in texts if b == "1"}) > 2


MISTAKES = {
    "a misspelt benchmark": (["benchmarks=[gsm9k]"], "'gsm9k' is none of"),
    "--only what is not chosen": (["--only", "math"], "--only: 'math' is none of gsm8k"),
    "an unknown published model": (["models.mine.published=GPT-5"], "published: 'GPT-5' is none of"),
    "a model against itself": (["models.mine.against=mine"], "against: 'mine' is none of other"),
    "no such model": (["models.mine.model=nowhere/at/all"], "model nowhere/at/all: no such directory"),
    "the profile of another family": (["profile=fusechat3"], "the profile fusechat3 cannot be had"),
    "no such data": (["data_dir=elsewhere"], "gsm8k: no elsewhere/sums.jsonl, and the Hub gives none"),
    "a server without its backend": (
        ["models.mine.server={url: 'http://localhost/v1'}"],
        "has a server, but the backend",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(
    values: dict[str, Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
):
    overrides, message = MISTAKES[name]
    if "family" in name:
        values["models"] = {"mine": {"model": str(checkpoint), "family": "other"}}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as error:
        main(["benchmark", "--config", str(write_config(tmp_path / "bench.yaml", values)), *overrides])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/results.json").exists()


def test_errors_name_the_model_as_the_configuration_does(values: dict[str, Any], tmp_path: Path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    values["models"] = {"mine": {"model": str(tmp_path / "broken")}}
    with pytest.raises(UserError, match=r"^models: mine: "):
        run(values)


def test_judged_benchmarks_want_a_judge(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    class Liked(Sums):
        def calls(self, answer): ...
        def again(self, call, replies): ...
        def judged(self, answer, replies): ...

    monkeypatch.setattr(stage, "named", lambda name: Liked())
    with pytest.raises(UserError, match=r"benchmarks: gsm8k: it needs a judge: set judge\.gsm8k or judge\.default"):
        run(values)
    chosen, left_out = stage.choose(BenchmarkConfig.model_validate(values | {"benchmarks": "all"}))
    assert not chosen and left_out[0] == "Sums: it needs a judge: set judge.alpacaeval2 or judge.default"
    assert left_out[-1].startswith("LiveBench: its graders")


def test_a_limit_draws_whole_units_in_order(values: dict[str, Any], tmp_path: Path):
    from data_pipeline.benchmarks import data

    class Twins(Sums):
        def items(self, rows):
            from dataclasses import replace

            return [replace(item, unit=str(item.fields["a"])) for item in super().items(rows)]

    config = BenchmarkConfig.model_validate(values | {"limit": 4})
    found = [item.id for item in data.items(config, Twins())]
    everything = [f"{a}+{b}" for a in range(6) for b in (1, 2)]
    assert len(found) == 4 and len({name[0] for name in found}) == 2 and found == [n for n in everything if n in found]
    more = [item.id for item in data.items(config.model_copy(update={"limit": 6}), Twins())]
    assert set(found) < set(more)  # so that a larger limit asks for the rest alone


def test_two_items_of_one_id_are_refused(values: dict[str, Any], tmp_path: Path):
    """The second would be asked the first one's prompt."""
    write_jsonl(tmp_path / "data/sums.jsonl", [*ROWS, ROWS[3]])
    with pytest.raises(UserError, match=r"gsm8k: its data hold 1\+2 more than once"):
        run(values)


def test_a_model_of_its_own_family(tmp_path: Path):
    assert asking._family(make_checkpoint(tmp_path / "gemma", family="gemma2", query_pre_attn_scalar=16)) == "gemma"
    assert asking._family(None) == "other"


@pytest.mark.parametrize("path", ["configs/fusechat3/benchmarks.yaml", "configs/benchmarks/laptop.yaml"])
def test_the_configurations_that_come_along(path: str):
    load_config(BenchmarkConfig, Path(__file__).parents[3] / path, [])
