"""Sources' likelihoods in a run with the loss `infifpo`: what comes to the loss, and what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from etils import epath

from fusejax.common.cli import UserError
from fusejax.data.examples import Tokenized
from fusejax.data.records import open_shards
from fusejax.training import loop, tokens
from fusejax.training.likelihoods import open_likelihoods, with_likelihoods
from fusejax.training.loop import train
from fusejax.training.reference import Reference
from tests.tiny_runs import run_config


def write(world: Path, folder: Path, source: str, change=lambda frame: frame, fingerprint=None) -> str:
    """A source's tables of the world's pairs."""
    facts = {}
    for split in ("train", "eval"):
        data = open_shards(world / "dpo" / split)
        rng = np.random.default_rng([len(source), len(data)])
        means = {side: -12 * rng.random(len(data)) for side in ("chosen", "rejected")}
        frame = pl.DataFrame({"id": [data[i].id for i in range(len(data))], **means})
        path = folder / source / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        change(frame.sample(fraction=1, shuffle=True, seed=0)).write_parquet(path)  # in another order
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        facts[split] = {"source": source, "data_fingerprint": fingerprint or data.fingerprint, "sha256": sha256}
    (folder / source / "manifest.json").write_text(json.dumps({"likelihoods": facts}))
    return str(folder / source)


def config(world, output, *sources, fusion="max_margin", **changes):
    preference = {"loss": "infifpo", "beta": 2.5, "sources": list(sources), "fusion": fusion}
    return run_config(world, output, "dpo", preference=preference, **changes)


def without_first_value(frame: pl.DataFrame) -> pl.DataFrame:
    first = pl.col("id") == frame["id"].min()
    return frame.with_columns(pl.when(~first).then(pl.col("chosen", "rejected")))


@pytest.mark.parametrize("fusion", ["max_margin", "mean", "confidence"])
def test_the_first_loss_is_that_of_the_tables(world, tmp_path, fusion, capsys):
    """The starting model and its own reference pass, batches, packing: all that a run has."""
    folders = [
        write(world, tmp_path, name, without_first_value if name == "aa" else lambda f: f) for name in ("a", "aa")
    ]
    run = config(world, tmp_path / "run", *folders, fusion=fusion, max_steps=1, batch_size=48)
    train(run)
    said = capsys.readouterr().err
    assert "train: aa has no value of 1 of 48 pairs" in said and "train: a has" not in said

    with np.load(tmp_path / "run/reference.npz") as file:
        sums = {name: file[f"train.{name}"].astype(np.float64) for name in ("chosen", "rejected")}
    made_from = yaml.safe_load((tmp_path / "run/run.yaml").read_text())["data"]
    of_tokens = {name: value for name, value in made_from.items() if "likelihoods" not in name}
    data = tokens.load(epath.Path(tmp_path / "run/tokens/train.npz"), of_tokens)
    lengths = data.target_counts.reshape(-1, 2)
    rewards = {}
    for place, side in enumerate(("chosen", "rejected")):
        own = sums[side] / lengths[:, place]
        columns = []
        for folder in folders:
            frame = pl.read_parquet(f"{folder}/train.parquet")
            table = dict(frame.select("id", side).iter_rows())
            columns.append([own[i] if table[name] is None else table[name] for i, name in enumerate(data.ids)])
        values = np.array(columns).T
        clipped = (np.maximum if side == "chosen" else np.minimum)(values, own[:, None])
        if fusion == "max_margin":
            fused = clipped[np.arange(len(own)), np.abs(clipped - own[:, None]).argmax(1)]
        else:
            weights = np.ones_like(values) if fusion == "mean" else -1 / values
            fused = (weights * clipped).sum(1) / weights.sum(1)
        rewards[side] = 2.5 * (own - fused)
    losses = np.log1p(np.exp(rewards["rejected"] - rewards["chosen"]))
    (line,) = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    np.testing.assert_allclose(line["loss"], losses.mean(), rtol=1e-5)
    for side, values in rewards.items():
        np.testing.assert_allclose(line[f"{side}_reward"], values.mean(), rtol=1e-4, atol=1e-5)
    assert "eval_loss" in line


def test_other_tables_are_another_run(world, tmp_path):
    folder = write(world, tmp_path, "a")
    train(config(world, tmp_path / "run", folder, max_steps=1))
    train(config(world, tmp_path / "run", write(world, tmp_path / "moved", "a"), max_steps=1))  # the same tables
    write(world, tmp_path, "a", lambda frame: frame.with_columns(pl.col("chosen") * 0.5))
    with pytest.raises(UserError, match="differs in the train likelihoods of a, the eval likelihoods of a"):
        train(config(world, tmp_path / "run", folder, max_steps=1))


def pairs(world, **changes) -> Tokenized:
    """As many target tokens as five in each answer of the world's pairs."""
    data = open_shards(world / "dpo/train")
    ids = [data[i].id for i in range(len(data))]
    sequences = 2 * len(ids)
    mask = np.tile([False, *[True] * 5], sequences)
    offsets = np.arange(0, len(mask) + 1, 6, dtype=np.int64)
    return Tokenized("dpo", np.zeros(len(mask), np.int32), mask, offsets, ids, [], changes.get("changes", {}))


def spoilt(world, tmp_path, change):
    folder = write(world, tmp_path, "a", change)
    run = config(world, tmp_path / "run", folder)
    return open_likelihoods(run, {"train": open_shards(world / "dpo/train").fingerprint})["train"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: f.with_columns(pl.lit(0.1).alias("chosen")), "above 0 or not finite"),
        (lambda f: f.with_columns(pl.lit(float("nan")).alias("rejected")), "above 0 or not finite"),
        (lambda f: pl.concat([f, f[:1]]), "two rows have the id"),
        (lambda f: f[2:], "2 of 48 pairs are not in it"),
        (lambda f: f.drop("chosen"), "not a table of the stage likelihoods"),
    ],
)
def test_tables_that_are_refused(world, tmp_path, change, problem):
    tables = spoilt(world, tmp_path, change)
    tokenized = pairs(world)
    ids = tokenized.ids
    reference = Reference({side: np.full(len(ids), -9.0, np.float32) for side in ("chosen", "rejected")})
    with pytest.raises(UserError, match=f"^preference.sources .*train.parquet: .*{problem}"):
        with_likelihoods(reference, tokenized, tables, "mean")


def test_of_an_answer_that_was_cut_a_source_says_nothing(world, tmp_path):
    """Its value is of the whole answer, and the policy's of what is left."""
    tables = spoilt(world, tmp_path, lambda frame: frame)
    data = pairs(world, changes={"cut": ["13"], "shortened": ["14"], "spelled": ["15"]})
    sums = {side: np.full(len(data), -30.0, np.float32) for side in ("chosen", "rejected")}
    found, unknown = with_likelihoods(Reference(sums), data, tables, "max_margin")
    assert unknown == {"a": 2}
    says = np.array(
        [
            np.any([found.values[f"{side}_{end}"][i] != -6 for side in sums for end in ("low", "high")])
            for i in range(len(data))
        ]
    )
    assert not says[[data.ids.index("13"), data.ids.index("14")]].any() and says[data.ids.index("15")]


def test_tables_that_change_while_the_run_prepares(world, tmp_path, monkeypatch):
    folder = write(world, tmp_path, "a")
    whole = loop.references

    def slow(*arguments, **names):
        write(world, tmp_path, "a", lambda frame: frame.with_columns(pl.col("chosen") * 0.5))
        return whole(*arguments, **names)

    monkeypatch.setattr(loop, "references", slow)
    with pytest.raises(UserError, match="finds other train likelihoods of a than"):
        train(config(world, tmp_path / "run", folder, max_steps=1))


def test_a_shared_reference_may_have_more_splits(world, tmp_path):
    folder, shared = write(world, tmp_path, "a"), str(tmp_path / "shared.npz")
    losses = []
    for name, data in (("both", {}), ("one", {"data": {"train": str(world / "dpo/train")}})):
        run = config(world, tmp_path / name, folder, max_steps=1, **data)
        run = run.model_copy(update={"preference": run.preference.model_copy(update={"reference": shared})})
        train(run)
        losses.append(json.loads((tmp_path / name / "metrics.jsonl").read_text())["loss"])
    assert losses[0] == losses[1]


def test_folders_that_are_refused(world, tmp_path):
    data = {"train": open_shards(world / "dpo/train").fingerprint}

    def problem(*folders):
        with pytest.raises(UserError) as raised:
            open_likelihoods(config(world, tmp_path / "run", *folders), data)
        return str(raised.value)

    assert "nowhere has nothing of train as the stage likelihoods writes it" in problem(str(tmp_path / "nowhere"))
    assert "is about other data" in problem(write(world, tmp_path / "other", "a", fingerprint="f"))
    folder = write(world, tmp_path, "a")
    assert "two are of the source a" in problem(folder, folder)
    (tmp_path / "a/train.parquet").write_bytes(b"")
    assert "not the one that its manifest is about" in problem(folder)
