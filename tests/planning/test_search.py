"""Finding the largest microbatch with few compilations."""

import dataclasses
import types

from hypothesis import given
from hypothesis import strategies as st

from fusejax.planning.plan import HBM, Planner
from fusejax.planning.search import largest_fitting, search
from fusejax.planning.topology import parse_topology
from fusejax.planning.workload import Workload
from tests.tiny_runs import run_config


@given(st.integers(0, 120), st.integers(1, 30), st.integers(1, 64), st.integers(0, 3))
def test_the_largest_that_fits_is_found(base, slope, most, bend):
    measured = []

    def total(rows):
        return base + slope * rows + bend * (rows % 3)

    def measure(rows):
        measured.append(rows)
        return total(rows), total(rows) <= 100

    found = largest_fitting(measure, 100, most)
    fitting = [rows for rows in range(1, most + 1) if total(rows) <= 100]
    assert found in (0, *fitting)
    if not bend:
        assert found == max(fitting, default=0)
        assert len(measured) <= 5
    assert len(measured) == len(set(measured))
    assert found == most or found + 1 in measured  # one more was tried, and did not fit


def test_search_takes_the_fastest_that_fits(tmp_path):
    row = {"full": 1e9, "dots": 3e9, "none": 9e9}
    speed = {"full": 4.0, "dots": 3.0, "none": 2.0}
    compiled = []

    class Counted(Planner):
        topology = parse_topology("v5e-16")  # 16.9 GB
        work = Workload(
            examples=1000, tokens_per_example=512, steps=10, batch_size=128, tokens_per_row=4096, assumed=()
        )  # 16.06 rows a step

        def __init__(self):
            pass

        def rows_per_microbatch(self, config):
            return 2 * config.packing.rows_per_device

        def hbm(self, config, task):
            compiled.append((config.remat, config.packing.rows_per_device))
            total = int(9e9 + config.packing.rows_per_device * row[config.remat])
            limit = self.topology.chip.hbm
            parts = {"parameters": total, "moments": 0, "accumulator": 0, "temporary": 0, "code": 0, "activations": 0}
            return HBM(**parts, limit=limit), total <= limit

        def speed(self, config, task):
            return types.SimpleNamespace(step_seconds=speed[config.remat])

    planner = Counted()
    result = search(planner, run_config(tmp_path, tmp_path / "out"))
    # `none` does not fit at all. Of `dots`, 2 rows fit; of `full` 7, but 17 rows need three microbatches of 3.
    assert dataclasses.asdict(result.best) == {
        "remat": "dots",
        "rows_per_device": 2,
        "largest_rows_per_device": 2,
        "step_seconds": 3.0,
    }
    full = [trial for trial in result.trials if trial.remat == "full" and trial.step_seconds]
    assert [trial.rows_per_device for trial in full] == [5]
    assert len(compiled) == len(set(compiled)) == len(result.trials)
    row["dots"] = row["full"] = 9e9
    assert search(planner, run_config(tmp_path, tmp_path / "out")).best is None
