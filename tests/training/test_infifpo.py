"""InfiFPO from the data pipeline's tables to gradients, against PyTorch in float64; and a source that is the start."""

import copy
import shutil

import jax
import numpy as np
import polars as pl
import pytest
import torch
from etils import epath
from transformers import AutoModelForCausalLM

from data_pipeline.likelihoods import stage
from fusejax.config import MeshConfig
from fusejax.data.chat import load_tokenizer
from fusejax.data.examples import tokenize
from fusejax.data.loader import assemble
from fusejax.data.records import open_shards
from fusejax.distributed.mesh import make_mesh
from fusejax.models.decoder.decoder import abstract_decoder, named_parameters
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.objectives.microbatch_loss import make_loss
from fusejax.training.likelihoods import open_likelihoods, with_likelihoods
from fusejax.training.loop import train
from fusejax.training.model_card import model_card
from fusejax.training.network import Accumulator, Network
from fusejax.training.origin import read_origin
from fusejax.training.programs import Programs
from fusejax.training.reference import Reference
from tests.data_pipeline.distributions.sources import config_of
from tests.tiny_runs import run_config
from tests.training.mesh_gradients import DTYPES
from tests.training.test_attempts import start_folder
from tests.training.test_programs import described
from tests.training.test_resume import final_arrays, logged


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """What the stage writes of two sources: the starting model, and another one."""
    folder = tmp_path_factory.mktemp("likelihoods")
    shutil.copytree(world / "dpo", folder / "dpo")
    stage.run(config_of(folder, same=world / "model", other=start_folder(world, folder / "model", seed=1)))
    return [str(folder / "likelihoods" / name) for name in ("same", "other")]


def config_with(world, output, folders, **changes):
    preference = {"loss": "infifpo", "sources": folders, **changes.pop("preference", {})}
    return run_config(world, output, "dpo", preference=preference, **changes)


def fused(world, config):
    """Pairs as tokens, a reference that is no model's, and what becomes of it with the sources'."""
    shards = open_shards(world / "dpo/train")
    data = tokenize(shards, load_tokenizer(world / "model"), max_length=64)
    rng = np.random.default_rng(0)
    sums = {side: -rng.exponential(60, len(data)).astype(np.float32) for side in ("chosen", "rejected")}
    tables = open_likelihoods(config, {"train": shards.fingerprint})["train"]
    return data, sums, with_likelihoods(Reference(sums), data, tables, config.preference.fusion)[0]


def test_loss_and_gradients_are_those_of_a_dense_computation_in_float64(world, folders, tmp_path):
    """Rows of several pairs through the network, against a sequence at a time and the formulas as they are printed."""
    config = config_with(world, tmp_path / "run", folders)
    data, sums, reference = fused(world, config)
    rows = [[0, 3], [5], [10]]
    batch = dict(assemble(data, rows, 128))
    batch |= reference.at(batch["pair_ids"])

    exact = copy.deepcopy(AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)).double()
    tables = [
        {row["id"]: row for row in pl.read_parquet(f"{folder}/train.parquet").iter_rows(named=True)}
        for folder in folders
    ]
    loss, picked = torch.zeros((), dtype=torch.float64), set()
    for pair in (i for row in rows for i in row):
        ratios = []
        for j, (side, clip) in enumerate((("chosen", max), ("rejected", min))):
            tokens, mask = data.sequence(2 * pair + j)
            ids, places = torch.tensor(tokens, dtype=torch.int64), np.flatnonzero(mask)
            logprobs = exact(ids[None]).logits[0].log_softmax(-1)
            policy = logprobs[places - 1, ids[places]].mean()
            start = float(sums[side][pair]) / len(places)
            clipped = [clip(table[data.ids[pair]][side], start) for table in tables]
            farthest = int(np.argmax([abs(value - policy.item()) for value in clipped]))
            picked.add(farthest)
            ratios.append(policy - clipped[farthest])
        loss = loss - torch.nn.functional.logsigmoid(2.5 * (ratios[0] - ratios[1]))
    assert picked == {0, 1}
    loss.backward()
    exact.load_state_dict({name: value.grad for name, value in exact.named_parameters()}, strict=False)
    exact.float().save_pretrained(tmp_path / "gradients")

    model, mesh = huggingface.read_config(world / "model"), make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(model, mesh, make_loss(config.preference), **DTYPES, remat="none")
    _, shapes = abstract_decoder(model, **DTYPES)

    def read(folder):
        named = {
            path: np.asarray(variable.get_value())
            for path, variable in named_parameters(huggingface.load(str(folder))).items()
        }
        return jax.tree_util.tree_map_with_path(lambda path, _: named[".".join(str(key.key) for key in path)], shapes)

    params, gradients = read(world / "model"), read(tmp_path / "gradients")
    names = jax.eval_shape(network.evaluate, params, batch)
    zeros = jax.tree.map(lambda x: np.zeros((1, *x.shape), np.float32), Accumulator(params, names))
    found = jax.jit(network.accumulate)(params, zeros, batch)
    assert float(found.sums["count"][0]) == 4
    assert float(found.sums["loss"][0]) == pytest.approx(loss.item(), rel=1e-5)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(found.gradients), jax.tree.leaves(gradients), strict=True
    ):
        assert np.abs(np.asarray(ours)[0] - theirs).max() < 1e-4 * np.abs(theirs).max(), jax.tree_util.keystr(path)


def test_microbatches_are_what_programs_are_compiled_for(world, folders, tmp_path):
    """And planned for."""
    config = config_with(world, tmp_path / "run", folders)
    data, _, reference = fused(world, config)
    made = Programs(config, huggingface.read_config(world / "model"), make_mesh(MeshConfig(), jax.devices()[:1]))
    fed = dict(assemble(data, [[0], [1]], 128))
    assert described(fed) == described(made.reference_microbatch)
    fed |= reference.at(fed["pair_ids"])
    assert described(fed) == described(made.microbatch) == described(made.eval_microbatch)


def test_a_source_that_is_the_starting_model(world, folders, tmp_path):
    """The stage counts and finds what the reference pass does, so the run is DPO's, length-normalised, with the same
    reference; and one that goes on after a kill ends bit-identical."""
    changes = {"max_steps": 2, "checkpoint": {"every_steps": 1, "keep": 9}}
    sidecar = tmp_path / "reference.npz"
    shared = {"reference": str(sidecar), "beta": 2.5}
    train(run_config(world, tmp_path / "dpo", "dpo", preference={**shared, "length_normalized": True}, **changes))
    before = sidecar.read_bytes()
    config = config_with(world, tmp_path / "run", folders[:1], preference=shared, **changes)
    train(config)
    assert sidecar.read_bytes() == before
    lines = logged(tmp_path / "run")
    for ours, theirs in zip(lines, logged(tmp_path / "dpo"), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)

    shards = open_shards(world / "dpo/train")
    data = tokenize(shards, load_tokenizer(world / "model"), max_length=64)
    table = pl.read_parquet(f"{folders[0]}/train.parquet")
    assert table["id"].to_list() == data.ids
    lengths = data.target_counts.reshape(-1, 2)
    with np.load(sidecar) as found:
        for place, side in enumerate(("chosen", "rejected")):
            np.testing.assert_array_equal(table[f"{side}_tokens"], lengths[:, place])
            np.testing.assert_allclose(table[side], found[f"train.{side}"] / lengths[:, place], rtol=1e-5)

    whole = final_arrays(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    train(config)
    assert logged(tmp_path / "run") == lines
    resumed = final_arrays(tmp_path / "run")
    assert resumed.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)
    origin = read_origin(epath.Path(tmp_path / "run"))
    card = model_card(origin, {}, name="m", run="run", step=2, dtype="float32", versions={})
    assert "Whose likelihoods of these answers were compared:" in card and "| same | model |" in card
