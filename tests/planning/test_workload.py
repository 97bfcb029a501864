"""Steps, and microbatches of a step."""

import json

import numpy as np
import pytest

from fusejax.data.batch import max_examples_per_row
from fusejax.data.packing import PackingPlan
from fusejax.planning.workload import workload
from tests.tiny_runs import run_config


def test_the_recipes_counts_are_assumed_where_there_is_no_data(tmp_path):
    sft = workload(run_config(tmp_path, tmp_path / "out", batch_size=128, epochs=3))
    dpo = workload(run_config(tmp_path, tmp_path / "out", "dpo", batch_size=128, epochs=1))
    wrpo = workload(run_config(tmp_path, tmp_path / "out", "wrpo", batch_size=128, epochs=1))
    assert (sft.steps, dpo.steps, wrpo.steps) == (2_216, 501, 313)
    assert sft.assumed == dpo.assumed == wrpo.assumed == ("examples", "tokens_per_example")


def test_data_that_is_there_is_counted(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "manifest.json").write_text(json.dumps({"splits": {"train": {"examples": 800}}}))
    work = workload(run_config(tmp_path, tmp_path / "out"))
    assert (work.examples, work.steps, work.assumed) == (800, 200, ("tokens_per_example",))
    assert workload(run_config(tmp_path, tmp_path / "out", max_steps=7)).steps == 7
    assert workload(run_config(tmp_path, tmp_path / "out"), examples=80).steps == 20


def test_rows_hold_more_where_pairs_share_tokens(tmp_path):
    counts = {"examples": 80, "tokens_per_example": 90}
    apart = workload(run_config(tmp_path, tmp_path / "out", "dpo"), **counts)
    packing = {"row_length": 128, "attention_length": 160}
    shared = workload(run_config(tmp_path, tmp_path / "out", "dpo", packing=packing), **counts)
    assert shared.rows_per_step == pytest.approx(apart.rows_per_step * 128 / 160)


@pytest.mark.parametrize(("mean", "rows"), [(60, 8), (60, 16), (450, 16), (900, 8)])
def test_microbatches_are_those_of_the_packing_plan(tmp_path, mean, rows):
    lengths = np.random.default_rng(0).integers(mean // 2, mean * 3 // 2, size=12_800)
    config = run_config(tmp_path, tmp_path / "out", batch_size=128, packing={"row_length": 4096}, epochs=1)
    work = workload(config, examples=len(lengths), tokens_per_example=float(lengths.mean()))
    plan = PackingPlan(
        lengths, batch_size=128, row_length=4096, max_examples_per_row=max_examples_per_row(4096), seed=0
    )
    planned = [-(-len(plan.rows(step)) // rows) for step in range(work.steps)]
    assert work.microbatches(rows) == round(float(np.mean(planned)))
