"""The quickstart's report, of a run's folder made by hand."""

import json
from pathlib import Path

import polars as pl
import pytest

from fusejax.evaluation.results import accuracies
from quickstart.report import STAGES, write_report
from tests.browser import Browser, check_layout
from tests.data_pipeline.report.test_report import check_page, made

QUESTION = "Which is <b>more</b>? " + "9" * 200


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    made(folder)
    answers = folder / "answers"
    (answers / "scores").mkdir(parents=True)
    turns = [{"role": "user", "content": QUESTION}]
    names = ["chinese", "code", "instruction", "math"]
    prompts = pl.DataFrame(
        [{"id": f"{name}{n}", "domain": name, "messages": turns} for name in names for n in range(3)]
    )
    prompts.write_parquet(answers / "prompts.parquet")
    scores = {}
    for better, stage in enumerate(STAGES):
        verdicts = ["correct" if n <= better else "wrong" for _ in names for n in range(3)]
        texts = [f"<i>{stage}</i> {'x' * 300}"] * len(prompts)
        frame = pl.DataFrame({"prompt_id": prompts["id"], "text": texts, "verdict": verdicts})
        frame.write_parquet(answers / "scores" / f"{stage}.parquet")
        scores[stage] = frame.with_columns(domain=prompts["domain"])
    (folder / "results.json").write_text(json.dumps(accuracies(scores)))
    metrics = ["loss", "eval_loss", "chosen_reward", "rejected_reward", "reward_accuracy", "eval_reward_accuracy"]
    for run in (folder / "sft", folder / "dpo", folder / "models" / "llama" / "run"):
        run.mkdir(parents=True)
        lines = [{"step": step, **dict.fromkeys(metrics, 1 / step)} for step in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return write_report(folder, folder / "data.yaml")


def test_story(page: Path):
    text = page.read_text()
    check_page(text)
    assert "from <b>33.3 %</b> to <b>66.7 %</b> to <b>100.0 %</b>" in text
    assert "margin_too_small <small>best and worst answer are too close in reward</small>" in text
    assert "Which is &lt;b&gt;more&lt;/b&gt;?" in text and "&lt;i&gt;sft&lt;/i&gt;" in text
    assert "FuseChat" not in text
    shown = text[text.index('id="answers-to-held-out-prompts"') :]
    assert shown.count("wrong</b>") == 4 and shown.count("right</b>") == 8


def test_nothing_is_wider_than_the_page(page: Path, browser: Browser):
    check_layout(browser, page)
