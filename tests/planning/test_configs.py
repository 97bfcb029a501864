"""Every published run says on which slice it fits, and the guide's table on which others."""

import re
from pathlib import Path

import pytest

from benchmarks import plan_configs
from benchmarks.plan_configs import COMMENT, CONFIGS, GUIDE, ROW
from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.planning.architecture import find_architecture
from fusejax.planning.topology import CHIPS, parse_topology

RUNS = sorted(CONFIGS.glob("*-*.yaml"))
ROWS = list(ROW.finditer(GUIDE.read_text()))


def test_there_are_two_runs_of_each_target():
    assert len(RUNS) == 10


def test_no_row_of_the_guide_is_overlooked():
    assert len(ROWS) == len(re.findall(r"^\| `[\w.-]+\.yaml`", GUIDE.read_text(), re.MULTILINE))
    assert {row["config"] for row in ROWS} == {file.name for file in RUNS}


@pytest.mark.parametrize("file", RUNS, ids=lambda file: Path(file).stem)
def test_a_run_says_what_the_guide_says(file):
    [comment] = COMMENT.finditer(file.read_text())
    [row] = [
        row
        for row in ROWS
        if (row["config"], row["topology"], row["overrides"]) == (file.name, comment["topology"], "")
    ]
    figures = f"{row['topology']}: {row['total']} of {row['limit']} GB a chip"
    assert comment[0] == f"# Fits {figures} (python -m fusejax.plan)."


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{Path(row['config']).stem} {row['topology']}")
def test_a_run_fits_with_room_to_spare(row):
    topology = parse_topology(row["topology"])
    file = CONFIGS / row["config"]
    config = load_config(TrainConfig, file, row["overrides"].replace("`", "").split())
    assert (config.batch_size, config.max_length) == (128, 2048), "the recipe's"
    # At least the state, of parameters, gradients like them and two moments, spread over the devices.
    model, _ = find_architecture(config.model, file)
    layer = model.hidden_size * (
        3 * model.intermediate_size + 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    )
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    size = {"float32": 4, "bfloat16": 2}
    each = 4 + size[config.dtype.params] + 2 * size[config.optimizer.moments]
    state = each * (model.num_layers * layer + embeddings) / topology.num_devices / 1e9
    assert state < float(row["total"]) <= float(row["limit"]) - 0.7
    assert float(row["limit"]) == pytest.approx(topology.chip.hbm / 1e9, abs=0.05)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_the_guide_knows_every_chip(chip):
    """Its table has the smallest and the largest slice, and what each device may use."""
    names = (f"`{chip.name}-{min(chip.shapes)}` ... `{chip.name}-{max(chip.shapes)}`", f"{chip.hbm / 1e9:.1f} GB")
    [line] = [line for line in GUIDE.read_text().splitlines() if names[0] in line]
    assert f"| {chip.devices_per_chip}, {names[1]} |" in line


def test_figures_that_are_off_are_found_and_replaced(tmp_path, monkeypatch, capsys):
    guide, run = tmp_path / "tpu.md", tmp_path / "a-sft.yaml"
    guide.write_text(
        "| `a-sft.yaml` | v5e-8 | | 1.0 | 16.9 |\n| `a-sft.yaml` | v5e-4 | `remat=none` `x=1` | 1.0 | 16.9 |\n"
    )
    run.write_text("# Fits v5e-8: 1.0 of 16.9 GB a chip (python -m fusejax.plan).\ntask: sft\n")
    asked = []
    monkeypatch.setattr(plan_configs, "GUIDE", guide)
    monkeypatch.setattr(plan_configs, "CONFIGS", tmp_path)
    monkeypatch.setattr(plan_configs, "planned", lambda *asks: asked.append(asks) or ("2.5", "16.9"))
    before = guide.read_text(), run.read_text()

    def status(*arguments):
        monkeypatch.setattr("sys.argv", ["plan_configs.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            plan_configs.main()
        return ended.value.code

    assert status("--check") == 1
    assert asked == [(run, "v5e-8", []), (run, "v5e-4", ["remat=none", "x=1"])]
    assert (guide.read_text(), run.read_text()) == before
    assert status("b-sft.yaml") == 0  # none of its rows
    assert status(str(run)) == 0
    assert guide.read_text() == before[0].replace("1.0", "2.5")
    assert run.read_text() == before[1].replace("1.0", "2.5")
    assert status("--check") == 0
    assert capsys.readouterr().out.count("| 2.5 | 16.9 |") == 6
