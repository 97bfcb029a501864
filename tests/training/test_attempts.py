"""What a second attempt at a run finds, keeps and refuses: changed starts, damaged files, folders in the way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from etils import epath

from fusejax.common.cli import UserError
from fusejax.common.files import check_writable, write_text
from fusejax.config import TrainConfig
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.training import tokens
from fusejax.training.checkpoints import Checkpoints, complete_steps
from fusejax.training.export import export
from fusejax.training.identity import claim, data_identity, tokenizer_fingerprint
from fusejax.training.loop import train
from tests.tiny_runs import make_tokenizer, run_config
from tests.training.test_resume import final_arrays, logged

SHORT = {"max_steps": 2, "checkpoint": {"every_steps": 1, "keep": 9}}


def start_folder(world: Path, folder: Path, *, seed: int = 0, broken: bool = False) -> Path:
    """A starting model, or one whose numbers are finite, but not what it computes with them."""
    hf_config = json.loads((world / "model" / "config.json").read_text())
    config = DecoderConfig.from_hf(hf_config)
    decoder = huggingface.init(config, seed=seed)
    if broken:
        decoder.final_norm.scale[...] = jnp.full_like(decoder.final_norm.scale[...], 3e38)
    shutil.rmtree(folder, ignore_errors=True)
    huggingface.save(decoder, config, folder, hf_config=hf_config, dtype="float32", tokenizer_from=world / "model")
    return folder


@pytest.fixture(scope="module")
def original(world, tmp_path_factory):
    """A DPO run of two steps, with both checkpoints, and the model that it started from."""
    folder = tmp_path_factory.mktemp("original")
    train(run_config(world, folder / "run", "dpo", model=str(start_folder(world, folder / "start")), **SHORT))
    return folder


@pytest.fixture
def killed(world, original, tmp_path):
    """The configuration of a copy of that run, as if killed after its first checkpoint."""
    shutil.copytree(original / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    return run_config(world, tmp_path / "run", "dpo", model=str(original / "start"), **SHORT)


HALF: dict = {
    "dtype": {"params": "bfloat16", "compute": "bfloat16"},
    "optimizer": {"learning_rate": 1e-3, "moments": "bfloat16"},
}


def test_a_run_in_bfloat16_goes_on_bit_for_bit(world, tmp_path):
    """Parameters and moments are stored as they are; the step seeds their rounding."""
    config = run_config(world, tmp_path / "run", **HALF, **SHORT)
    train(config)
    unbroken = final_arrays(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    train(config)
    resumed = final_arrays(tmp_path / "run")
    assert {array.dtype for array in resumed.values() if array.ndim} == {jnp.dtype(jnp.bfloat16)}
    assert unbroken.keys() == resumed.keys()
    for name, array in unbroken.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


def test_a_run_begun_when_bfloat16_was_rounded_to_nearest_says_so(world, tmp_path, capsys):
    config = run_config(world, tmp_path, **HALF)
    claim(epath.Path(tmp_path), config, {}, resumes=False)
    claim(epath.Path(tmp_path), config, {}, resumes=True)
    assert "to nearest" not in capsys.readouterr().err
    config = run_config(world, tmp_path, dtype=HALF["dtype"])
    claim(epath.Path(tmp_path), config, {}, resumes=False)
    edit_run(config, lambda values: values["optimizer"].pop("moments"))
    claim(epath.Path(tmp_path), config, {}, resumes=True)
    assert "to nearest; from here on they are rounded stochastically" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"dtype": {"params": "float32", "compute": "bfloat16"}}, r"dtype\.params"),
        ({"optimizer": {"learning_rate": 1e-3}}, r"optimizer\.moments"),
    ],
)
def test_a_run_keeps_its_dtypes(world, tmp_path, changed, key):
    train(run_config(world, tmp_path / "run", **HALF, **SHORT | {"max_steps": 1}))
    with pytest.raises(UserError, match=rf"holds a run that differs in {key}; choose"):
        train(run_config(world, tmp_path / "run", **HALF | changed, **SHORT | {"max_steps": 1}))


def test_the_start_is_not_needed_again(original, killed):
    """Nor its tokenizer: the run has its own copy, and its reference."""
    start = Path(killed.model)
    start.rename(start.with_name("elsewhere"))
    try:
        train(killed)
    finally:
        start.with_name("elsewhere").rename(start)
    assert logged(Path(killed.output_dir)) == logged(original / "run")


def test_a_lost_reference_is_computed_again_from_the_same_start_only(world, original, killed, tmp_path):
    sidecar = Path(killed.output_dir) / "reference.npz"
    before = np.load(sidecar)["train.chosen"]
    sidecar.unlink()
    aside = tmp_path / "aside"
    shutil.copytree(original / "start", aside)
    try:
        start_folder(world, original / "start", seed=1)
        with pytest.raises(UserError, match=r"model .* is not what .* started from"):
            train(killed)
        assert not sidecar.exists()
    finally:
        shutil.rmtree(original / "start")
        shutil.copytree(aside, original / "start")
    train(killed)
    np.testing.assert_array_equal(np.load(sidecar)["train.chosen"], before)


def test_before_the_first_checkpoint_everything_is_made_anew(world, original, tmp_path):
    """The copy of the model, the reference of another model, damaged tokens."""
    run = tmp_path / "run"
    shutil.copytree(original / "run", run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints" / "1.orbax-checkpoint-tmp-7").mkdir(parents=True)  # incomplete, so it does not count
    (run / "model" / "stale.json").write_text("{}")
    (run / "tokens" / "train.npz").write_bytes(b"damaged")
    other = start_folder(world, tmp_path / "other", seed=1)
    train(run_config(world, run, "dpo", model=str(other), **SHORT))
    assert not (run / "model" / "stale.json").exists()
    assert complete_steps(run) == [1, 2]
    assert logged(run)[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)


def test_tokens_that_a_run_needs_again_must_be_whole(killed):
    (Path(killed.output_dir) / "tokens" / "eval.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"eval\.npz: damaged .*; delete it"):
        train(killed)


def test_tokens_are_written_once(world, original):
    file = original / "run" / "tokens" / "train.npz"
    before = file.stat().st_mtime_ns
    train(run_config(world, original / "run", "dpo", model=str(original / "start"), **SHORT))
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize(("cut", "changes"), [(0, {}), (2, {"cut": ["?", "?"]})])
def test_tokens_of_a_release_that_counted_only_what_was_cut(tmp_path, cut, changes):
    path, arrays = tmp_path / "train.npz", {"loss_mask": [True], "offsets": [0, 1]}
    header = {"identity": {"a": "b"}, "kind": "sft", "ids": ["one"], "rejected": [], "truncated": cut}
    np.savez(path, header=json.dumps(header), tokens=np.ones(1, np.int32), **arrays)
    found = tokens.load(epath.Path(path), {"a": "b"})
    assert found is not None and found.changes == changes
    assert found.summary() == f"1 examples, 1 tokens; {'2 cut, ' * bool(cut)}0 rejected"


def test_a_damaged_checkpoint_is_named(original, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(original / "run", run)
    for file in (run / "checkpoints" / "2" / "params" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        UserError, match="checkpoints/2: the checkpoint is damaged; delete it, or choose another --step"
    ):
        export(str(run), str(tmp_path / "hf"), step=2, dtype="float32")
    assert not (tmp_path / "hf").exists()
    (run / "checkpoints" / "1" / "metrics" / "metrics").write_text("{")
    with pytest.raises(UserError, match="the metrics of a checkpoint are damaged"):
        Checkpoints(run)


def test_reading_changes_nothing(original, tmp_path, capsys):
    """A run may be writing the very checkpoint that another process sees half of."""
    run = tmp_path / "run"
    shutil.copytree(original / "run", run)
    half_written = run / "checkpoints" / "3.orbax-checkpoint-tmp-7"
    half_written.mkdir()
    before = sorted(run.rglob("*"))
    export(str(run), str(tmp_path / "hf"), step=1, dtype="bfloat16")
    assert sorted(run.rglob("*")) == before
    assert "exporting the checkpoint of step 1" in capsys.readouterr().err
    tokenizer = make_tokenizer()
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text()) == {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def edit_run(killed: TrainConfig, edit: Callable[[dict], None]) -> None:
    """Changes the configuration that a run was begun with, as another release would have written it."""
    path = Path(killed.output_dir) / "run.yaml"
    values = yaml.safe_load(path.read_text())
    edit(values["config"])
    path.write_text(yaml.safe_dump(values))


def without_some_keys(config: dict) -> None:
    del config["max_prompt_length"], config["packing"]["attention_length"], config["optimizer"]["eps"]
    del config["preference"]["label_smoothing"], config["mesh"]
    config["task"] = "dpo"  # as it was called


def test_a_run_begun_before_some_keys_existed_goes_on(original, killed):
    edit_run(killed, without_some_keys)
    train(killed)
    ours, theirs = final_arrays(Path(killed.output_dir)), final_arrays(original / "run")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert logged(Path(killed.output_dir)) == logged(original / "run")


def test_a_key_that_did_not_exist_is_refused_where_it_is_no_longer_as_it_was(world, original, killed):
    edit_run(killed, without_some_keys)
    values = killed.model_dump()
    values["optimizer"]["eps"] = 1e-6
    values["preference"]["label_smoothing"] = 0.1
    with pytest.raises(UserError, match=r"differs in optimizer\.eps, preference\.label_smoothing; choose"):
        train(TrainConfig.model_validate(values))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_run_whose_norms_decayed_is_refused_until_they_do_again(world, tmp_path, decay):
    """Where nothing decays, there is nothing to refuse."""

    def config(**changes):
        return run_config(world, tmp_path, optimizer={"learning_rate": 1e-3, "weight_decay": decay, **changes})

    claim(epath.Path(tmp_path), config(), {}, resumes=False)
    edit_run(config(), lambda values: values["optimizer"].pop("weight_decay_on"))
    if decay:
        with pytest.raises(
            UserError, match=r"differs in optimizer\.weight_decay_on; with optimizer\.weight_decay_on=all it goes on"
        ):
            claim(epath.Path(tmp_path), config(), {}, resumes=True)
        claim(epath.Path(tmp_path), config(weight_decay_on="all"), {}, resumes=True)
    else:
        claim(epath.Path(tmp_path), config(), {}, resumes=True)


def test_other_pairs_are_other_data(world, tmp_path):
    """So that tokens and references of an attempt that kept unordered pairs are not taken for one that drops them."""
    tokenizer = make_tokenizer()
    kept = data_identity(run_config(world, tmp_path, "dpo"), tokenizer)
    dropped = data_identity(run_config(world, tmp_path, "dpo", drop_unordered_pairs=True), tokenizer)
    assert kept == {name: dropped[name] for name in kept} and dropped != kept


def test_a_key_that_is_no_more_is_refused_by_name(killed):
    """What it did is not known: one that need not stop a run is still read, by a validator of the configuration."""
    edit_run(killed, lambda config: config["optimizer"].update(nesterov=True))
    with pytest.raises(UserError, match=r"holds a run that differs in optimizer\.nesterov; choose"):
        train(killed)


def test_keys_that_may_change_may_go_too(original, killed):
    edit_run(killed, lambda config: config.update(remat="by magic", mesh={"pipeline": 2}))
    train(killed)
    assert logged(Path(killed.output_dir)) == logged(original / "run")


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_a_run_is_read_as_it_was_written(world, tmp_path, task):
    config = run_config(world, tmp_path, task)
    claim(epath.Path(tmp_path), config, {"train data": "a"}, resumes=False)
    claim(epath.Path(tmp_path), config, {"train data": "a"}, resumes=True)
    with pytest.raises(UserError, match="differs in the eval data;"):
        claim(epath.Path(tmp_path), config, {"train data": "a", "eval data": "b"}, resumes=True)


def test_sidecars_may_move_and_nothing_else_of_a_fusion(world, tmp_path):
    """What they hold is a part of the data's identity."""

    def config(folder, **changes):
        return run_config(world, tmp_path, fusion={"sidecars": [f"{folder}/train"], **changes})

    claim(epath.Path(tmp_path), config("here"), {"sidecar of a": "1"}, resumes=False)
    claim(epath.Path(tmp_path), config("there"), {"sidecar of a": "1"}, resumes=True)
    with pytest.raises(UserError, match=r"differs in fusion\.clm_weight;"):
        claim(epath.Path(tmp_path), config("here", clm_weight=0.5), {"sidecar of a": "1"}, resumes=True)
    with pytest.raises(UserError, match="differs in the sidecar of a;"):
        claim(epath.Path(tmp_path), config("here"), {"sidecar of a": "2"}, resumes=True)
    with pytest.raises(UserError, match=r"differs in .*fusion"):
        claim(epath.Path(tmp_path), run_config(world, tmp_path), {}, resumes=True)


def test_a_reference_survives_what_it_does_not_depend_on(world, tmp_path):
    sidecar = tmp_path / "reference.npz"
    claim(epath.Path(tmp_path), run_config(world, tmp_path, "dpo"), {"train data": "a"}, resumes=False)
    sidecar.touch()
    claim(epath.Path(tmp_path), run_config(world, tmp_path, "dpo", remat="full"), {"train data": "a"}, resumes=False)
    assert sidecar.exists()


def test_giving_way_takes_the_reference_along(world, tmp_path):
    config = run_config(world, tmp_path, "dpo")
    sidecar = tmp_path / "reference.npz"
    claim(epath.Path(tmp_path), config, {"train data": "a"}, resumes=False)
    sidecar.touch()
    claim(epath.Path(tmp_path), config, {"train data": "a"}, resumes=False)
    assert sidecar.exists()
    claim(epath.Path(tmp_path), config, {"train data": "b"}, resumes=False)
    assert not sidecar.exists()
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["data"] == {"train data": "b"}


@pytest.mark.parametrize(("task", "other"), [("sft", "dpo"), ("dpo", "sft")])
def test_data_of_the_other_task(world, tmp_path, task, other):
    for data in (
        {"train": str(world / other / "train")},
        {"train": str(world / task / "train"), "eval": str(world / other / "eval")},
    ):
        split = "train" if len(data) == 1 else "eval"
        named = {"dpo": "preference"}.get(task, task)
        with pytest.raises(UserError, match=rf"data\.{split} .* holds examples for {other}, but the task is {named}"):
            train(run_config(world, tmp_path / "run", task, data=data))


def test_tokenizer_and_model_must_fit(world, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(world / "model", model)
    hf_config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(hf_config | {"vocab_size": 64}))
    with pytest.raises(UserError, match=r"its tokenizer gives the token id \d+, but vocab_size in config.json is 64"):
        train(run_config(world, tmp_path / "run", model=str(model)))


def test_a_length_beyond_the_models_is_told(world, tmp_path, capsys):
    with pytest.raises(UserError, match="batch_size"):  # only to end the run there
        train(run_config(world, tmp_path / "run", max_length=300, packing={"row_length": 300}, batch_size=1000))
    assert "max_length 300 is beyond the model's max_position_embeddings, 256" in capsys.readouterr().err


def test_a_broken_reference_is_not_kept(world, tmp_path):
    model = start_folder(world, tmp_path / "model", broken=True)
    with pytest.raises(UserError, match="gives 48 of 48 train examples no finite log-probability"):
        train(run_config(world, tmp_path / "run", "dpo", model=str(model)))
    assert not (tmp_path / "run" / "reference.npz").exists()


def test_the_copy_of_the_model_must_not_replace_the_model(world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "model")
    with pytest.raises(UserError, match="choose another output_dir"):
        train(run_config(world, tmp_path, model=str(tmp_path / "model")))
    assert any((tmp_path / "model").glob("*.safetensors"))


def test_special_tokens_are_part_of_a_tokenizer():
    """A template writes `eos_token` by name, so another one makes other conversations."""
    tokenizer = make_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.eos_token = "<|pad|>"
    assert tokenizer_fingerprint(tokenizer) != before


def test_folders_that_cannot_be_written(world, original, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    inside = str(tmp_path / "file" / "folder")
    for output_dir in (tmp_path / "file", inside):
        with pytest.raises(UserError, match=r"output_dir .*file is a file, not a folder"):
            train(run_config(world, output_dir, model="/nowhere/model"))
    preference = {"beta": 1.0, "reference": f"{inside}/reference.npz"}
    with pytest.raises(UserError, match=r"preference\.reference: the folder .* is a file"):
        train(run_config(world, tmp_path / "run", "dpo", preference=preference, model="/nowhere/model"))
    with pytest.raises(UserError, match=r"the folder .* is a file"):
        export(str(original / "run"), f"{inside}/hf", step=77, dtype="float32")  # before it looks for that step
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"output_dir {tmp_path}/new: {tmp_path} cannot be written"):
        check_writable(tmp_path / "new", "output_dir")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    write_text(tmp_path / "x", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x", "\ud800")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "old")]
