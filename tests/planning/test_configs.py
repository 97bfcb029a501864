"""Every published run says on which slice it fits."""

import re
from pathlib import Path

import pytest

from benchmarks.plan_configs import CONFIGS
from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.planning.architecture import find_architecture
from fusejax.planning.topology import parse_topology

# As `benchmarks/plan_configs.py` writes it.
COMMENT = re.compile(r"^# Fits (\S+): (\d+\.\d) of (\d+\.\d) GB a chip \(python -m fusejax\.plan\)\.$", re.MULTILINE)
RUNS = sorted(CONFIGS.glob("*-*.yaml"))


def test_there_are_two_runs_of_each_target():
    assert len(RUNS) == 10


@pytest.mark.parametrize("file", RUNS, ids=lambda file: Path(file).stem)
def test_a_run_names_a_slice_that_it_fits(file):
    [(name, total, limit)] = COMMENT.findall(file.read_text())
    topology = parse_topology(name)
    assert float(limit) == pytest.approx(topology.chip.hbm / 1e9, abs=0.05)
    # At least the state, of float32 parameters, gradients and two moments, spread over the chips.
    config = load_config(TrainConfig, file, [])
    model, _ = find_architecture(config.model, file)
    layer = model.hidden_size * (
        3 * model.intermediate_size + 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    )
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    state = 16 * (model.num_layers * layer + embeddings) / topology.chips / 1e9
    assert state < float(total) <= float(limit)
