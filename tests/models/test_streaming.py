"""Weights that stream: who reads which bytes, how much is held at a time, many devices, hosts and buckets."""

import collections
import errno
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fusejax.common.cli import UserError
from fusejax.models.decoder.decoder import named_parameters
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.models.huggingface import import_weights, safetensors_file
from fusejax.models.huggingface.export_weights import WeightFiles
from fusejax.models.huggingface.names import parameters
from tests.models import tiny_checkpoints as tiny
from tests.models.test_huggingface import assert_same_bits, export, tensors_of

# What every process of the tests below does: counts the bytes that it reads, and splits parameters as a run does. Gloo
# writes to standard output, from several threads at once; that goes to standard error, so that it cannot run into what
# the test prints.
PRELUDE = textwrap.dedent("""
    import json, os, sys
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import jax, jax.numpy as jnp, numpy as np
    from fusejax.config import MeshConfig
    from fusejax.distributed.mesh import make_mesh
    from fusejax.distributed.sharding import parameter_sharding
    from fusejax.models.huggingface import checkpoint as huggingface
    from fusejax.models.huggingface import safetensors_file
    from fusejax.models.decoder.decoder import named_parameters

    read = 0

    def counted(file, offset, target, read_range=safetensors_file.read_range):
        global read
        read += target.nbytes
        read_range(file, offset, target)

    safetensors_file.read_range = counted

    def load(source, mesh, dtype=jnp.float32):
        shardings = lambda name, shape: parameter_sharding(name, shape, mesh)
        model = huggingface.load(source, shardings=shardings, param_dtype=dtype)
        for name, parameter in named_parameters(model).items():
            array = parameter.get_value()
            assert array.dtype == dtype, name
            assert array.sharding.is_equivalent_to(shardings(name, array.shape), array.ndim), name
        return model
""")


def python(script: str, *arguments: str, devices: int = 1) -> subprocess.Popen:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


def outputs(processes: list[subprocess.Popen], status: int = 0) -> list[list[str]]:
    """The lines that each has printed; all must end with `status`."""
    found = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=120)
            assert process.returncode == status, errors
            found.append(output.splitlines())
    finally:
        for process in processes:
            process.kill()
    return found


def weight_bytes(directory: Path, replicated: bool | None = None) -> int:
    """The bytes of a checkpoint's tensors: all of them, or those of the norms alone, or all but the norms."""
    tensors = tensors_of(directory)
    return sum(x.nbytes for name, x in tensors.items() if replicated is None or ("norm" in name) == replicated)


# Many devices


@pytest.mark.parametrize(
    ("family", "meshes"),
    [
        (
            "gemma2",
            [
                {"data": 1, "fsdp": 4, "tensor": 1},
                {"data": 1, "fsdp": 8, "tensor": 1},
                {"data": 2, "fsdp": 2, "tensor": 2},
            ],
        ),
        ("qwen2", [{"data": 1, "fsdp": 2, "tensor": 2}, {"data": 4, "fsdp": 1, "tensor": 1}]),
    ],
)
def test_however_the_devices_share_it(family, meshes, tmp_path):
    """On four and eight devices, all parameters are those that one device has, and each byte is read once."""
    tiny.checkpoint(tmp_path / "model", family, hidden_size=64, intermediate_size=96)
    script = """
        whole = {k: np.asarray(v.get_value()) for k, v in named_parameters(huggingface.load(sys.argv[1])).items()}
        for sizes in json.loads(sys.argv[2]):
            read = 0
            count = int(np.prod(list(sizes.values())))
            model = load(sys.argv[1], make_mesh(MeshConfig(**sizes), jax.devices()[:count]))
            for name, parameter in named_parameters(model).items():
                np.testing.assert_array_equal(parameter.get_value(), whole[name], err_msg=name)
            print(read)
    """
    process = python(script, str(tmp_path / "model"), json.dumps(meshes), devices=8)
    [lines] = outputs([process])
    assert list(map(int, lines)) == [weight_bytes(tmp_path / "model")] * len(meshes)


def test_rows_that_cannot_be_shared_out_are_read_whole(tmp_path):
    """Here 36 rows over 8 devices: each tensor is then read by those alone who split its rows themselves."""
    tiny.checkpoint(tmp_path / "model", "llama-untied", hidden_size=36, head_dim=8)
    script = """
        whole = {k: np.asarray(v.get_value()) for k, v in named_parameters(huggingface.load(sys.argv[1])).items()}
        model = load(sys.argv[1], make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
        for name, parameter in named_parameters(model).items():
            np.testing.assert_array_equal(parameter.get_value(), whole[name], err_msg=name)
    """
    outputs([python(script, str(tmp_path / "model"), devices=8)])


# Many hosts

JOIN = """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


def on_hosts(count: int, script: str, *arguments: str, devices: int = 1) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = textwrap.dedent(JOIN) + textwrap.dedent(script)
    return [python(script, address, str(count), str(i), *arguments, devices=devices) for i in range(count)]


@pytest.mark.parametrize(("hosts", "devices"), [(2, 2), (4, 1)])
def test_each_host_reads_its_share_and_they_export_together(hosts, devices, tmp_path):
    """Of what is split, each host reads its share and not a byte more; norms are on every device."""
    source = tmp_path / "model"
    tiny.reference("llama-untied").bfloat16().save_pretrained(source, max_shard_size="20KB")
    script = """
        model = load(sys.argv[4], make_mesh(MeshConfig(data=1, fsdp=4, tensor=1)), jnp.float32)
        hf_config = json.load(open(sys.argv[4] + "/config.json"))
        options = dict(hf_config=hf_config, dtype="bfloat16", max_shard_bytes=20_000)
        huggingface.save(model, model.config, sys.argv[5], **options)
        print(read)
    """
    lines = outputs(on_hosts(hosts, script, str(source), str(tmp_path / "out"), devices=devices))
    share = weight_bytes(source, replicated=False) // hosts + weight_bytes(source, replicated=True)
    assert [int(line) for [line] in lines] == [share] * hosts
    assert_same_bits(tensors_of(tmp_path / "out"), tensors_of(source))


def test_hosts_with_replicas_read_them_all(tmp_path):
    tiny.checkpoint(tmp_path / "model", "gemma2")
    script = "load(sys.argv[4], make_mesh(MeshConfig(data=2, fsdp=2, tensor=1)))\nprint(read)"
    lines = outputs(on_hosts(2, script, str(tmp_path / "model"), devices=2))
    assert [int(line) for [line] in lines] == [weight_bytes(tmp_path / "model")] * 2


def test_when_the_first_host_cannot_write_all_hosts_fail(tmp_path):
    tiny.checkpoint(tmp_path / "model", "llama-tied")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "something").touch()
    script = """
        model = load(sys.argv[4], make_mesh(MeshConfig(data=1, fsdp=2, tensor=1)))
        hf_config = json.load(open(sys.argv[4] + "/config.json"))
        try:
            huggingface.save(model, model.config, sys.argv[5], hf_config=hf_config, dtype="float32")
        except Exception as error:
            print(type(error).__name__, error)
    """
    first, second = outputs(on_hosts(2, script, str(tmp_path / "model"), str(tmp_path / "out")))
    assert first == [f"UserError {tmp_path}/out exists already; remove it or choose another directory"]
    assert second == [f"UserError export to {tmp_path}/out: the first process failed; its own message says why"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["something"]


# Not all at once


def test_readers_do_not_run_far_ahead(tmp_path, monkeypatch):
    """However slow the devices: what is read and not yet taken is no more than the largest tensor has."""
    tiny.checkpoint(tmp_path / "model", "mistral-full", num_hidden_layers=8)
    config = huggingface.read_config(tmp_path / "model")
    tensors = import_weights.find_tensors(epath.Path(tmp_path / "model"), ["model.safetensors"])
    largest = max(tensor.nbytes for tensor in tensors.values())
    taken, read, most = 0, 0, 0
    read_range = safetensors_file.read_range

    def counted(file, offset, target):
        nonlocal read, most
        read += target.nbytes
        most = max(most, read - taken)
        read_range(file, offset, target)

    convert = import_weights.jax.device_put

    def slow(buffer, device):
        nonlocal taken
        time.sleep(0.005)
        placed = convert(buffer, device)
        taken += buffer.nbytes
        return placed

    monkeypatch.setattr(safetensors_file, "read_range", counted)
    monkeypatch.setattr(import_weights.jax, "device_put", slow)
    huggingface.load_parameters(
        epath.Path(tmp_path / "model"), config, dtype=jnp.float32, shardings=huggingface._on_one_device
    )
    assert read == taken == sum(tensor.nbytes for tensor in tensors.values())
    assert most == largest


class Counted:
    """A source of zeros that knows how many of its pieces are still held."""

    on_all_processes = False

    def __init__(self):
        self.held: collections.Counter[int] = collections.Counter()
        self.most = 0

    def pieces(self, parameter, block):
        yield lambda: self._make(parameter.hf_shape)

    def _make(self, shape):
        piece = np.zeros(shape, np.float32)
        self.held[id(piece)] += 1
        self.most = max(self.most, self.held.total())
        weakref.finalize(piece, self.held.subtract, [id(piece)])
        return piece


def test_export_holds_two_tensors(tmp_path):
    source = Counted()
    tiny.checkpoint(tmp_path / "model", "llama-tied")
    config = huggingface.read_config(tmp_path / "model")
    WeightFiles(source, parameters(config), np.dtype(np.float32), 20_000).write(epath.Path(tmp_path))
    assert source.most == 2
    assert source.held.total() == 0


# Formats


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 5),
    part=st.tuples(st.integers(0, 11), st.integers(1, 12)),
    wanted=st.sampled_from([np.float32, np.float64]),
)
def test_rows_read_are_the_rows_of_the_whole(tmp_path_factory, rows, columns, part, wanted):
    tensor = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    first = min(part[0], rows - 1)
    last = min(first + part[1], rows)
    file = epath.Path(tmp_path_factory.mktemp("rows") / "file")
    file.write_bytes(b"header" + tensor.tobytes())
    stored = safetensors_file.Tensor(file, "F32", tensor.shape, len(b"header"), tensor.nbytes)
    found = np.empty((last - first, columns), wanted)
    import_weights._read_rows(stored, first, found)
    np.testing.assert_array_equal(found, tensor[first:last])


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_every_dtype_is_rounded_once(stored, wanted, tmp_path):
    tiny.checkpoint(tmp_path, "qwen2")
    tensors = {name: tensor.astype(stored) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = huggingface.load(str(tmp_path), param_dtype=jnp.dtype(wanted))
    found = named_parameters(model)["blocks.0.mlp.down.weight"].get_value()
    expected = tensors["model.layers.2.mlp.down_proj.weight"].astype(np.float32).astype(wanted)
    np.testing.assert_array_equal(np.asarray(found[2]), expected)


def test_vocabularies_that_devices_do_not_divide_get_rows_of_zeros(tmp_path):
    """Each byte is still read once; the rows that are read for padding are not there to read."""
    tiny.checkpoint(tmp_path / "model", "llama-untied", vocab_size=97)
    script = """
        from etils import epath

        from fusejax.models.huggingface.checkpoint import load_parameters, read_config

        folder = sys.argv[1]
        config = read_config(folder)
        width = config.hidden_size
        whole = load_parameters(epath.Path(folder), config, dtype=jnp.float32, shardings=lambda name, shape:
            parameter_sharding(name, shape, make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])))
        once, read = read, 0
        for axes in ({"fsdp": 1, "tensor": 2}, {"fsdp": 2, "tensor": 2}):
            mesh = make_mesh(MeshConfig(**axes), jax.devices()[:axes["fsdp"] * axes["tensor"]])
            for dtype in (jnp.float32, jnp.bfloat16):
                read = 0
                shardings = lambda name, shape: parameter_sharding(name, shape, mesh)
                params = load_parameters(epath.Path(folder), config, dtype=dtype, shardings=shardings)
                assert read == once, (read, once)
                for name in ("embedder", "lm_head"):
                    found, expected = params[name]["embedding"], whole[name]["embedding"]
                    assert (found.shape, found.dtype, expected.shape) == ((98, width), dtype, (97, width)), found
                    np.testing.assert_array_equal(found[:97], expected.astype(dtype))
                    assert not np.any(found[97:])
    """
    outputs([python(script, str(tmp_path / "model"), devices=4)])


def test_every_finite_number_survives(tmp_path):
    """Every bfloat16 there is: subnormals, both zeros, the largest."""
    tiny.reference("llama-tied", vocab_size=2048).bfloat16().save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    every = every[np.isfinite(every.astype(np.float32))]
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.gate_proj.weight"):
        tensors[name] = np.resize(every, tensors[name].shape)
    save_file(tensors, file, metadata={"format": "pt"})
    model = huggingface.load(str(tmp_path / "theirs"), param_dtype=jnp.bfloat16)
    export(model, tmp_path / "ours", tmp_path / "theirs", "bfloat16")
    assert_same_bits(tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs"))


def test_what_we_write_the_library_reads(tmp_path):
    tiny.checkpoint(tmp_path / "model", "gemma2")
    export(huggingface.load(str(tmp_path / "model")), tmp_path / "out", tmp_path / "model", "float32")
    with safe_open(tmp_path / "out" / "model-00001-of-00001.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    theirs = safetensors_file.read_header(epath.Path(tmp_path / "model" / "model.safetensors"))
    ours = safetensors_file.read_header(epath.Path(tmp_path / "out" / "model-00001-of-00001.safetensors"))
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in theirs.items()}
    assert min(tensor.offset for tensor in ours.values()) % 8 == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["a"].update(data_offsets=[0, 12]),  # not the bytes of its shape
        lambda header: header["b"].update(data_offsets=[20, 28]),  # a gap
        lambda header: header["b"].update(data_offsets=[8, 16]),  # an overlap
        lambda header: header["b"].update(shape="two"),
        lambda header: header["b"].pop("data_offsets"),
        lambda header: header.update(c=7),
        lambda header: header["b"].update(data_offsets=[16, 2**63]),
    ],
)
def test_headers_that_cannot_be_are_refused(change, tmp_path):
    header = {
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
    }
    file = epath.Path(tmp_path / "model.safetensors")

    def write():
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))

    write()
    assert safetensors_file.read_header(file).keys() == {"a", "b"}
    change(header)
    write()
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        safetensors_file.read_header(file)


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    with pytest.raises(UserError, match="file: ends at byte 100, within a tensor"):
        safetensors_file.read_range(epath.Path(tmp_path / "file"), 90, memoryview(bytearray(20)))


@pytest.mark.parametrize("past_the_cache", [True, False])
def test_any_range_of_a_file(past_the_cache, tmp_path, monkeypatch):
    """Disks are read in whole sectors, in pieces of a buffer that is used again."""
    if not past_the_cache:

        def refused(file, flags, open_=os.open):
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return open_(file, flags)

        monkeypatch.setattr(safetensors_file.os, "open", refused)
    content = np.random.default_rng(0).bytes(3 * 2**20 + 4999)
    file = epath.Path(tmp_path / "file")
    file.write_bytes(content)
    edges = [0, 1, 4095, 4096, 4097, 2**20 - 1, 2**20, 2**20 + 1, 2 * 2**20 + 8, 3 * 2**20 + 4096, len(content)]
    for start, stop in itertools.combinations(edges, 2):
        target = bytearray(stop - start)
        safetensors_file.read_range(file, start, memoryview(target))
        assert target == content[start:stop], (start, stop)
    with pytest.raises(UserError, match=f"ends at byte {len(content)}, within a tensor"):
        safetensors_file.read_range(file, len(content) - 5000, memoryview(bytearray(5001)))


# In a bucket


def test_from_a_bucket_and_back(gcs, tmp_path):
    reference = tiny.reference("gemma2").bfloat16()
    reference.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    source, target = (epath.Path(gcs.bucket) / "models" / name for name in ("theirs", "ours"))
    for path in (tmp_path / "model").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    model = huggingface.load(str(source), param_dtype=jnp.bfloat16)
    files = huggingface.find(str(source)).files
    assert {path.name for path in files.iterdir()} == {"config.json", "generation_config.json", "tokenizer.json"}
    export(model, target, files, "bfloat16", max_shard_bytes=20_000, tokenizer_from=files)
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*.safetensors*"):
        path.unlink()
    for path in target.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    assert_same_bits(tensors_of(tmp_path / "copy"), tensors_of(tmp_path / "model"))
    assert (tmp_path / "copy" / "tokenizer.json").read_text() == "{}"
    with pytest.raises(UserError, match="exists already"):
        export(model, target, files, "bfloat16")


def test_through_a_bad_connection(gcs, tmp_path):
    """A fifth of all requests fails, in every way there is."""
    tiny.reference("qwen2").save_pretrained(tmp_path / "model", max_shard_size="20KB")
    source, target = (epath.Path(gcs.bucket) / name for name in ("theirs", "ours"))
    for path in (tmp_path / "model").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    with gcs.faults(0.2, seed=1):
        model = huggingface.load(str(source))
        export(model, target, tmp_path / "model", "float32", max_shard_bytes=20_000)
    assert gcs.served.total() > gcs.served["ok"] > 0
    again = huggingface.load(str(target))
    export(again, tmp_path / "again", tmp_path / "model", "float32")
    assert_same_bits(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "model"))


def test_a_failed_export_leaves_nothing_in_the_bucket(gcs, tmp_path, monkeypatch):
    tiny.checkpoint(tmp_path / "model", "llama-tied")
    model = huggingface.load(str(tmp_path / "model"))
    (epath.Path(gcs.bucket) / "other").write_text("stays")

    def refuse(*arguments):
        assert len(gcs.objects()) > 2  # weights are there already
        raise OSError(5, "broken")

    monkeypatch.setattr(huggingface, "write_tokenizer", refuse)
    with pytest.raises(OSError, match="broken"):
        export(model, f"{gcs.bucket}/out", tmp_path / "model", "float32", max_shard_bytes=20_000, tokenizer_from="x")
    assert gcs.objects().keys() == {"other"}


def test_nothing_but_what_is_needed_is_fetched(gcs, tmp_path):
    """A missing bucket, an empty one, a missing file: each is named."""
    tiny.reference("qwen2").save_pretrained(tmp_path / "model", max_shard_size="20KB")
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        huggingface.load(f"{gcs.bucket}/nothing")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    missing = next(name for name in names if name.endswith("safetensors"))
    for name in names:
        if name != missing:
            (epath.Path(gcs.bucket) / name).write_bytes((tmp_path / "model" / name).read_bytes())
    with pytest.raises(UserError, match=f"{missing}: no such file"):
        huggingface.load(gcs.bucket)
