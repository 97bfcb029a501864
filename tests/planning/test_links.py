"""How long collectives take, worked out by hand."""

import pytest

from fusejax.planning.links import HOP_SECONDS, Links, sent_bytes
from fusejax.planning.topology import parse_topology

GB = 10**9


def links(name: str) -> Links:
    """Devices in the order of their coordinates, the last axis first, as a mesh of one axis has them on TPUs."""
    topology = parse_topology(name)
    grid = [()]
    for size in reversed(topology.axes):
        grid = [(place, *rest) for rest in grid for place in range(size)]
    return Links(topology, tuple((part, place) for part in range(topology.slices) for place in grid))


@pytest.mark.parametrize(
    ("topology", "kind", "members", "seconds"),
    [
        # 2x2x2: three links of 90 GB/s from each chip, three hops to the farthest.
        ("v5p-16", "all-gather", range(8), 7 / 8 / (3 * 90) + 3 * HOP_SECONDS),
        ("v5p-16", "reduce-scatter", range(8), 7 / 8 / (3 * 90) + 3 * HOP_SECONDS),
        ("v5p-16", "all-reduce", range(8), 2 * (7 / 8 / (3 * 90) + 3 * HOP_SECONDS)),
        # Along the first axis alone; and a plane of the other two.
        ("v5p-16", "all-gather", [0, 1], 1 / 2 / 90 + HOP_SECONDS),
        ("v5p-16", "all-gather", [0, 2, 4, 6], 3 / 4 / (2 * 90) + 2 * HOP_SECONDS),
        # 4x4 without links around: a corner has two links, six hops to the opposite one.
        ("v6e-16", "all-gather", range(16), 15 / 16 / (2 * 90) + 6 * HOP_SECONDS),
        ("v5e-16", "all-gather", range(16), 15 / 16 / (2 * 45) + 6 * HOP_SECONDS),
        # Rings: both directions of each axis, and half of the hops.
        ("v5p-128", "all-gather", range(64), 63 / 64 / (6 * 90) + 6 * HOP_SECONDS),
        ("v6e-256", "all-gather", range(256), 255 / 256 / (4 * 90) + 16 * HOP_SECONDS),
        # Half of an axis that wraps is no ring.
        ("v6e-256", "all-gather", range(8), 7 / 8 / 90 + 7 * HOP_SECONDS),
        # A line of 4: its middle link carries, each way, what two chips send to two others.
        ("v5e-16", "all-to-all", range(16), 4 / 4 / 45 + 6 * HOP_SECONDS),
        ("v6e-256", "all-to-all", range(256), 16 / 8 / 90 + 16 * HOP_SECONDS),
        # Of 2x2x2, each link carries half of what a chip has: more than its share of 7/8 over three links.
        ("v5p-16", "all-to-all", range(8), 1 / 2 / 90 + 3 * HOP_SECONDS),
        ("v5p-16", "all-gather", [3], 0.0),
        # Two slices of four chips: within each, then each chip's quarter between them, at 6.25 GB/s.
        ("2xv5p-8", "all-reduce", range(8), 2 * (3 / 4 / (2 * 90) + 2 * HOP_SECONDS + 1 / 4 / 2 / 6.25)),
        ("2xv5p-8", "all-reduce", [0, 4], 2 * (1 / 2 / 6.25)),
    ],
)
def test_a_gigabyte(topology, kind, members, seconds):
    assert links(topology).seconds(kind, GB, list(members)) == pytest.approx(seconds)


def test_permutations_take_the_most_hops_along_an_axis():
    pod = links("v6e-256")
    ring = [(i, i // 16 * 16 + (i + 1) % 16) for i in range(256)]
    assert pod.permute_seconds(GB, ring) == pytest.approx(1 / 90 + HOP_SECONDS)
    opposite = [(i, (i + 8) % 16) for i in range(16)]
    assert pod.permute_seconds(GB, opposite) == pytest.approx(8 / 90 + 8 * HOP_SECONDS)
    # Without links around, the last chip of a line reaches the first over all others.
    line = links("v6e-16")
    assert line.permute_seconds(GB, [(0, 1), (1, 2), (2, 3), (3, 0)]) == pytest.approx(3 / 90 + 3 * HOP_SECONDS)
    assert links("2xv5p-8").permute_seconds(GB, [(0, 4)]) == pytest.approx(1 / 6.25)


def test_bytes_sent():
    assert sent_bytes("all-gather", 800, 8) == sent_bytes("reduce-scatter", 800, 8) == 700
    assert sent_bytes("all-reduce", 800, 8) == 1400
    assert sent_bytes("collective-permute", 800, 8) == 800
