"""Names of slices, and the devices that are compiled for."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fusejax.common.cli import UserError
from fusejax.config import MeshConfig
from fusejax.distributed.compiled import uncached
from fusejax.distributed.mesh import make_mesh
from fusejax.planning.compile import compiled
from fusejax.planning.topology import CHIPS, parse_topology

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.mark.parametrize(
    ("name", "chip", "shape", "chips", "slices"),
    [
        ("v5e-16", "v5e", "4x4", 16, 1),
        ("v5litepod-16", "v5e", "4x4", 16, 1),
        ("v5p-16", "v5p", "2x2x2", 8, 1),
        ("v5p-128", "v5p", "4x4x4", 64, 1),
        ("v6e-256", "v6e", "16x16", 256, 1),
        ("2xv5p-128", "v5p", "4x4x4", 128, 2),
        ("v5e-1", "v5e", "1x1", 1, 1),
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
    [("v5e", 4, 400e9, 25e9), ("v5p", 6, 1200e9, 50e9), ("v6e", 4, 800e9, 100e9)],
)
def test_links_are_as_published(chip, links, published, network):
    """What a program gets of a link is a tenth below what Google's pages say of a chip, in bytes/s both ways."""
    assert CHIPS[chip].link_bandwidth * 2 * links == pytest.approx(0.9 * published)
    assert CHIPS[chip].dcn_bandwidth * 8 == pytest.approx(network)
    assert {2 * len(shape.split("x")) for shape in CHIPS[chip].shapes.values()} == {links}


@pytest.mark.parametrize("name", ["v5p", "v5p-", "v4-8", "0xv5p-16", "v5p-16x2", "banana"])
def test_unknown_names_are_refused_with_what_there_is(name):
    with pytest.raises(UserError, match=rf"--topology {name}: unknown; there are v5e-\{{1,4,8,.*v5p-\{{8,.*v6e-"):
        parse_topology(name)


def test_unknown_sizes_are_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"--topology v5p-24: no slice of that size; there are v5p-\{8,16,32,"):
        parse_topology("v5p-24")


def test_without_the_compiler_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="extra `tpu`"):
        parse_topology("v5p-16").devices()


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e-1", "v5e-8", "v5p-16", "v6e-16", "2xv5p-16"])
def test_devices_fill_a_mesh(name):
    topology = parse_topology(name)
    mesh = make_mesh(MeshConfig(), topology.devices())
    assert mesh.size == topology.chips
    assert dict(mesh.shape) == {
        "slice": topology.slices,
        "data": 1,
        "fsdp": topology.chips // topology.slices,
        "tensor": 1,
    }


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e-4", "v5p-8", "v6e-4"])
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
