"""Names of slices, and the devices that are compiled for."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fusejax.common.cli import UserError
from fusejax.config import MeshConfig
from fusejax.distributed.chips import PEAK_FLOPS
from fusejax.distributed.compiled import uncached
from fusejax.distributed.mesh import make_mesh
from fusejax.planning.compile import compiled
from fusejax.planning.links import Links
from fusejax.planning.schedule import read
from fusejax.planning.topology import CHIPS, MACHINES, parse_topology

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.mark.parametrize(
    ("name", "chip", "shape", "chips", "slices"),
    [
        ("v4-8", "v4", "2x2x1", 4, 1),
        ("v4-32", "v4", "2x2x4", 16, 1),
        ("v5e-16", "v5e", "4x4", 16, 1),
        ("v5litepod-16", "v5e", "4x4", 16, 1),
        ("v5p-16", "v5p", "2x2x2", 8, 1),
        ("v5p-128", "v5p", "4x4x4", 64, 1),
        ("v6e-256", "v6e", "16x16", 256, 1),
        ("2xv5p-128", "v5p", "4x4x4", 128, 2),
        ("v5e-1", "v5e", "1x1", 1, 1),
        ("tpu7x-2", "tpu7x", "1x1x1", 1, 1),
        ("tpu7x-16", "tpu7x", "2x2x2", 8, 1),
        ("tpu7x-18432", "tpu7x", "16x24x24", 9216, 1),
        ("v7x-16", "tpu7x", "2x2x2", 8, 1),
        ("V5E-8", "v5e", "2x4", 8, 1),
        ("V5LitePod-8", "v5e", "2x4", 8, 1),
        ("v5p-4x4x4", "v5p", "4x4x4", 64, 1),
        ("2xtpu7x-2x2x1", "tpu7x", "2x2x1", 8, 2),
        ("ct4p-hightpu-4t", "v4", "2x2x1", 4, 1),
        ("ct5l-hightpu-8t", "v5e", "2x4", 8, 1),
        ("ct5lp-hightpu-8t", "v5e", "2x4", 8, 1),
        ("ct5lp-hightpu-1t", "v5e", "1x1", 1, 1),
        ("ct5p-hightpu-4t", "v5p", "2x2x1", 4, 1),
        ("ct6e-standard-8t", "v6e", "2x4", 8, 1),
        ("2xCT6E-standard-4t", "v6e", "2x2", 8, 2),
        ("tpu7x-standard-1t", "tpu7x", "1x1x1", 1, 1),
        ("tpu7x-standard-4t", "tpu7x", "2x2x1", 4, 1),
    ],
)
def test_names(name, chip, shape, chips, slices):
    topology = parse_topology(name)
    assert (topology.chip.name, topology.shape, topology.chips, topology.slices) == (chip, shape, chips, slices)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_a_name_counts_the_chips_of_its_shape(chip):
    for size, shape in chip.shapes.items():
        chips = 1
        for side in shape.split("x"):
            chips *= int(side)
        assert size == chips * chip.cores


@pytest.mark.parametrize(
    ("name", "axes", "wraps"),
    [
        ("v5e-1", (1, 1), (False, False)),
        ("v5e-64", (8, 8), (False, False)),
        ("v5e-128", (8, 16), (False, True)),
        ("v6e-256", (16, 16), (True, True)),
        ("v4-32", (2, 2, 4), (False, False, False)),
        ("v4-128", (4, 4, 4), (True, True, True)),
        ("tpu7x-64", (2, 4, 4), (False, False, False)),
        ("tpu7x-512", (4, 8, 8), (True, True, True)),
        ("v5p-8", (2, 2, 1), (False, False, False)),
        ("v5p-64", (2, 4, 4), (False, False, False)),
        ("v5p-128", (4, 4, 4), (True, True, True)),
        ("2xv5p-256", (4, 4, 8), (True, True, True)),
    ],
)
def test_axes_that_are_rings(name, axes, wraps):
    topology = parse_topology(name)
    assert (topology.axes, topology.wraps) == (axes, wraps)


@pytest.mark.parametrize(
    ("chip", "links", "published", "network"),
    [("v5e", 4, 400e9, 25e9), ("v5p", 6, 1200e9, 50e9), ("v6e", 4, 800e9, 100e9), ("tpu7x", 6, 1200e9, 100e9)],
)
def test_links_are_as_published(chip, links, published, network):
    """What a program gets of a link is a tenth below what Google's pages say of a chip, in bytes/s both ways."""
    assert CHIPS[chip].link_bandwidth * 2 * links == pytest.approx(0.9 * published)
    assert CHIPS[chip].dcn_bandwidth * 8 == pytest.approx(network)
    assert {2 * len(shape.split("x")) for shape in CHIPS[chip].shapes.values()} == {links}


@pytest.mark.parametrize(
    ("chip", "flops", "gibibytes", "bandwidth"),
    [
        ("v4", 275e12, 32, 1200e9),
        ("v5e", 197e12, 16, 819e9),
        ("v5p", 459e12, 96, 2765e9),
        ("v6e", 918e12, 32, 1638e9),
        ("tpu7x", 2307e12, 192, 7380e9),
    ],
)
def test_devices_of_a_chip_are_the_whole_chip(chip, flops, gibibytes, bandwidth):
    """Published of a chip; a program may use all of its HBM but for a little."""
    found = CHIPS[chip]
    assert (found.devices_per_chip * found.flops, found.devices_per_chip * found.bandwidth) == (flops, bandwidth)
    assert 0.95 * gibibytes * 2**30 < found.devices_per_chip * found.hbm < gibibytes * 2**30


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_type_ends_in_its_number_of_chips(machine):
    chips = int(re.search(r"-(\d)t$", machine)[1])
    assert parse_topology(machine).chips == chips


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("v3-8", r"; did you mean v\de-8\?|; did you mean v4-8\?"),
        ("v5-8", r"; did you mean v5[ep]-8\?"),
        ("ct6e-hightpu-8t", r"; did you mean ct5lp?-hightpu-8t\?|; did you mean ct6e-standard-8t\?"),
        ("ct5p-hightpu-8t", r"; did you mean ct5l?p-hightpu-[48]t\?"),
        ("2xtpu7-16", r"; did you mean tpu7x-16\?"),
        ("0xv5p-16", r"; did you mean v5p-16\?"),
        ("", ""),
        ("banana", ""),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(name, hint):
    there_are = r"v4-\{8,.*v5e-\{1,4,8,.*v5p-\{8,.*v6e-\{1,.*tpu7x-\{2,8,.*\}, machine types such as ct6e-standard-8t"
    with pytest.raises(UserError) as raised:
        parse_topology(name)
    assert re.fullmatch(rf"--topology {name}: unknown; there are {there_are}; NxNAME for N({hint})", str(raised.value))


@pytest.mark.parametrize(
    ("name", "hint", "cores"),
    [
        ("v5p-24", "; did you mean v5p-16?", True),
        ("V5P-4", "; did you mean v5p-8?", True),
        ("v5litepod-9", "; did you mean v5e-8?", False),
        ("tpu7x-4", "; did you mean tpu7x-2?", True),
        ("v5p-16x2", "", True),
        ("v5p-", "", True),
        ("v6e", "", False),
    ],
)
def test_unknown_sizes_are_refused_with_those_there_are(name, hint, cores):
    with pytest.raises(UserError) as raised:
        parse_topology(name)
    counting = ", counting cores, of which a chip has two" if cores else ""
    there_are = rf"there are \w+-\{{[\d,]+\}}{counting}"
    assert re.fullmatch(rf"--topology {name}: no such slice; {there_are}{re.escape(hint)}", str(raised.value))


def test_without_the_compiler_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="extra `tpu`"):
        parse_topology("v5p-16").devices()


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("v4-8", "TPU v4"),
        ("2xv4-16", "TPU v4"),
        ("v5e-1", "TPU v5 lite"),
        ("v5e-8", "TPU v5 lite"),
        ("v5p-16", "TPU v5"),
        ("2xv5p-16", "TPU v5"),
        ("v6e-16", "TPU v6 lite"),
        ("tpu7x-2", "TPU7x"),
        ("tpu7x-16", "TPU7x"),
        ("2xtpu7x-8", "TPU7x"),
    ],
)
def test_devices_fill_a_mesh(name, kind):
    topology = parse_topology(name)
    devices = topology.devices()
    assert {device.device_kind for device in devices} == {kind}
    assert PEAK_FLOPS[kind] == topology.chip.flops
    mesh = make_mesh(MeshConfig(), devices)
    assert mesh.size == topology.num_devices
    assert dict(mesh.shape) == {
        "slice": topology.slices,
        "data": 1,
        "fsdp": topology.num_devices // topology.slices,
        "tensor": 1,
    }


@needs_libtpu
@pytest.mark.parametrize("name", ["v4-8", "v5e-4", "v5p-8", "v6e-4", "tpu7x-8"])
def test_the_limit_is_the_compilers_own(name):
    topology = parse_topology(name)
    mesh = make_mesh(MeshConfig(), topology.devices())
    shape = jax.ShapeDtypeStruct((2**19, 2**19), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as raised, uncached():
        jax.jit(lambda x: 2 * x).lower(shape).compile()
    [limit] = re.findall(r"available HBM \(([\d.]+)G\)", str(raised.value))
    assert topology.chip.hbm == int(float(limit) * 2**30)
    found, _ = compiled(jax.jit(lambda x: 2 * x), shape)
    assert not found.fits
    assert found.temporary >= 2**40  # the result, beside the argument


@needs_libtpu
@pytest.mark.parametrize("name", ["v4-8", "v5e-4", "v5p-8", "v6e-4", "tpu7x-8"])
def test_a_matrix_product_takes_about_as_long_as_published(name):
    """As the compiler estimates it, by its cycles: never faster than the peak of what JAX calls a device."""
    topology = parse_topology(name)
    mesh = make_mesh(MeshConfig(), topology.devices())
    matrix = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    with uncached():
        text = jax.jit(jnp.matmul).lower(matrix, matrix).compile().as_text()
    found = read(text, Links.of(topology, list(mesh.devices.flat)))
    assert found.flops == 2 * 8192**3
    assert 0.6 < found.flops / found.seconds / topology.chip.flops < 1
