"""Exports of checkpoints: the same bits whichever way they take, wherever they lie, however they were split."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from fusejax.common.cli import UserError
from fusejax.distributed.mesh import one_device_mesh
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.models.huggingface.export_weights import WeightFiles
from fusejax.models.huggingface.names import parameters
from fusejax.training.checkpoints import Checkpoints
from fusejax.training.export import StoredParameters, export
from fusejax.training.start import StartingModel, fingerprint
from fusejax.training.state import TrainState
from tests.models import tiny_checkpoints as tiny
from tests.models.test_huggingface import assert_same_bits, tensors_of
from tests.tiny_runs import make_tokenizer


def make_run(folder: Path, family: str = "gemma2", dtype: str = "float32", **shape) -> Path:
    """A run's folder after two steps, of which the first was the better; `folder/model` is what it holds after it."""
    tiny.checkpoint(folder / "model", family, vocab_size=320, **shape)
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "run" / "model").mkdir(parents=True)
    for file in (folder / "model").iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder / "run" / "model")
    params = StartingModel(str(folder / "model")).load(one_device_mesh(), dtype=dtype)
    with Checkpoints(folder / "run", keep=2) as checkpoints:
        for step, loss in ((1, 0.5), (2, 0.7)):
            checkpoints.save(TrainState(jnp.int32(step), params, {}), {"eval_loss": loss})
            params = jax.tree.map(lambda x: x + 1, params)
    return folder / "run"


def expected(folder: Path, dtype) -> dict[str, np.ndarray]:
    return {name: tensor.astype(dtype) for name, tensor in tensors_of(folder / "model").items()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_checkpoint_holds_is_exported(family, dtype, tmp_path):
    export(str(make_run(tmp_path, family)), str(tmp_path / "out"), step=None, dtype=dtype)
    assert_same_bits(tensors_of(tmp_path / "out"), expected(tmp_path, jnp.dtype(dtype)))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == dtype
    assert "dtype" not in config
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_an_export_stops_where_its_answers_end(tmp_path):
    """A base model's files name another end than the template that it is trained with."""
    run = make_run(tmp_path)
    tokenizer = make_tokenizer()
    end, other = tokenizer.convert_tokens_to_ids("<|im_end|>"), 7
    for i, (named, expected) in enumerate([(other, [other, end]), ([other], [other, end]), (end, end), (None, end)]):
        (run / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": named, "top_k": 5}))
        export(str(run), str(tmp_path / str(i)), step=None, dtype="bfloat16")
        values = json.loads((tmp_path / str(i) / "generation_config.json").read_text())
        assert values == {"eos_token_id": expected, "top_k": 5}


def test_the_step_asked_for(tmp_path):
    run = make_run(tmp_path, dtype="bfloat16")
    export(str(run), str(tmp_path / "out"), step=2, dtype="bfloat16")
    one = {name: tensor + tensor.dtype.type(1) for name, tensor in expected(tmp_path, jnp.bfloat16).items()}
    assert_same_bits(tensors_of(tmp_path / "out"), one)


def test_rows_that_a_mesh_added_are_not_exported(tmp_path):
    run = make_run(tmp_path, "llama-untied")
    params = StartingModel(str(tmp_path / "model")).load(one_device_mesh(), dtype="float32")
    widened = {
        name: {"embedding": jnp.pad(params[name]["embedding"], ((0, 2), (0, 0)))} for name in ("embedder", "lm_head")
    }
    with Checkpoints(run, keep=9) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(3), params | widened, {}), {"eval_loss": 0.1})
        foreign = {"embedder": {"embedding": widened["embedder"]["embedding"] + 1}}
        checkpoints.save(TrainState(jnp.int32(4), params | widened | foreign, {}), {"eval_loss": 0.2})
    export(str(run), str(tmp_path / "out"), step=None, dtype="float32")
    assert_same_bits(tensors_of(tmp_path / "out"), expected(tmp_path, jnp.float32))
    with pytest.raises(UserError, match=r"embedder\.embedding has shape \(322, \d+\); config\.json asks for \(320,"):
        export(str(run), str(tmp_path / "other"), step=4, dtype="float32")
    # And a run that starts from it has what its own mesh needs.
    again = StartingModel(str(run)).load(one_device_mesh(), dtype="float32", step=3)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert fingerprint(params | widened, 320) == fingerprint(params, 320) == fingerprint(again, 320)


def test_a_checkpoint_of_many_devices(tmp_path):
    """Saved from four devices, each parameter in parts."""
    make_run(tmp_path)
    script = (
        "import sys, jax, jax.numpy as jnp\n"
        "from fusejax.config import MeshConfig\n"
        "from fusejax.distributed.mesh import make_mesh\n"
        "from fusejax.training.checkpoints import Checkpoints\n"
        "from fusejax.training.start import StartingModel\n"
        "from fusejax.training.state import TrainState\n"
        "mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))\n"
        "params = StartingModel(sys.argv[1]).load(mesh, dtype='float32')\n"
        "with Checkpoints(sys.argv[2], keep=1) as checkpoints:\n"
        "    checkpoints.save(TrainState(jnp.int32(3), params, {}), {'eval_loss': 0.1})\n"
    )
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script, tmp_path / "model", tmp_path / "run"], env=environment, check=True)
    export(str(tmp_path / "run"), str(tmp_path / "out"), step=3, dtype="float32")
    assert_same_bits(tensors_of(tmp_path / "out"), expected(tmp_path, np.float32))


def test_the_embedding_is_read_in_pieces(tmp_path, monkeypatch):
    run = make_run(tmp_path, "llama-untied")
    monkeypatch.setattr("fusejax.training.export._PIECE_BYTES", 100)
    config = huggingface.read_config(tmp_path / "model")
    source = StoredParameters(epath.Path(run / "checkpoints" / "1" / "params"), np.dtype(np.float32))
    store = source._open(parameters(config)[0])

    class Small:
        """The same array, as if it were stored in chunks of seven rows."""

        def __getattr__(self, name):
            return getattr(store, name)

        def __getitem__(self, index):
            return store[index]

        class chunk_layout:
            class read_chunk:
                shape = (7, 32)

    source._open = lambda parameter: (
        Small() if parameter.path == "embedder.embedding" else source._open_array(parameter)
    )
    pieces = [fetch() for fetch in source.pieces(parameters(config)[0], 0)]
    assert [len(piece) for piece in pieces] == [7] * 45 + [5]
    WeightFiles(source, parameters(config), np.dtype(np.float32), 1e9).write(epath.Path(tmp_path / "out"))
    assert_same_bits(tensors_of(tmp_path / "out"), expected(tmp_path, np.float32))


def test_layers_are_stored_apart(tmp_path):
    """So that one can be read without the others being decoded."""
    run = make_run(tmp_path)
    source = StoredParameters(epath.Path(run / "checkpoints" / "1" / "params"), np.dtype(np.float32))
    for parameter in parameters(huggingface.read_config(tmp_path / "model")):
        chunk = source._open(parameter).chunk_layout.read_chunk.shape
        assert chunk == (1, *parameter.shape[1:]) if parameter.stacked else parameter.shape


def test_from_bucket_to_bucket(gcs, tmp_path):
    run = make_run(tmp_path)
    for file in run.rglob("*"):
        if file.is_file():
            (epath.Path(gcs.bucket) / "run" / file.relative_to(run)).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "fusejax.export", "--dtype", "float32"]
    command += ["--checkpoint", f"{gcs.bucket}/run", "--output", f"{gcs.bucket}/out"]
    subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
    (tmp_path / "out").mkdir()
    for path in (epath.Path(gcs.bucket) / "out").iterdir():
        (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    assert_same_bits(tensors_of(tmp_path / "out"), expected(tmp_path, np.float32))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (run / "model" / "tokenizer.json").read_text()


def test_on_two_hosts_the_first_exports(tmp_path):
    run = make_run(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "fusejax.export", "--checkpoint", run, "--output", tmp_path / "out"]
    command += ["--coordinator", address, "--num-hosts", "2", "--dtype", "float32", "--host-index"]
    hosts = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    errors = [host.communicate(timeout=120)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], errors
    assert_same_bits(tensors_of(tmp_path / "out"), expected(tmp_path, np.float32))
    hosts = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    errors = [host.communicate(timeout=120)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [2, 2], errors
    assert all("exists already" in error for error in errors)


def test_damage_is_named(tmp_path):
    run = make_run(tmp_path)
    params = run / "checkpoints" / "1" / "params"
    for file in params.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{params.parent}: the checkpoint is damaged; delete it"):
        export(str(run), str(tmp_path / "out"), step=1, dtype="float32")
    assert not (tmp_path / "out").exists()
    config = json.loads((run / "model" / "config.json").read_text())
    (run / "model" / "config.json").write_text(json.dumps(config | {"intermediate_size": 50}))
    with pytest.raises(UserError, match=r"gate\.weight has shape .*config\.json asks for"):
        export(str(run), str(tmp_path / "out"), step=2, dtype="float32")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "run"}
