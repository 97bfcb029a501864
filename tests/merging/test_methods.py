"""The methods on small tensors: worked numbers, another implementation's, and what must hold for all values."""

import dataclasses
import json
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fusejax.merging import stack as stacks
from fusejax.merging.methods import METHODS, MergeMethod, find_method
from fusejax.merging.methods.dare import Dare, keep
from fusejax.merging.methods.linear import Linear
from fusejax.merging.methods.sce import Sce, variance
from fusejax.merging.methods.task_arithmetic import TaskArithmetic
from fusejax.merging.methods.ties import Ties
from fusejax.merging.methods.varm import Varm
from fusejax.merging.selection import largest
from fusejax.merging.stack import Stack

GOLDEN = json.loads(Path(__file__).with_name("mergekit.json").read_text())
NAME = "model.layers.0.mlp.up_proj.weight"


@dataclasses.dataclass
class Memory:
    """Tensors in memory, as `stack.Models` has them."""

    tensors: dict[str, Stack]

    @property
    def names(self):
        return list(self.tensors)

    @property
    def targets(self):
        return len(next(iter(self.tensors.values())).targets)

    def read(self, name):
        return self.tensors[name]


def stack_of(pivot, targets, name=NAME) -> Stack:
    flat = [np.asarray(each).reshape(-1) for each in targets]
    return Stack(name, np.asarray(pivot).reshape(-1), tuple(flat), (1.0,) * len(flat))


def merged(method: MergeMethod, pivot, targets, name=NAME) -> np.ndarray:
    """The merged tensor in float32."""
    models = Memory({name: stack_of(pivot, targets, name)})
    stack = models.read(name).ordered(method.weights(models)(name))
    return np.concatenate(list(stack.map(method.merge(stack)))).reshape(np.shape(pivot))


PIVOT = np.float32([[1, 2], [3, 4]])
DELTAS = np.float32([[[0.4, -0.1], [0.02, 0.3]], [[-0.1, 0.2], [0.03, 0.1]], [[0.2, 0.2], [-0.01, -0.5]]])


@pytest.mark.parametrize(
    ("method", "delta"),
    [
        (Sce(tau=0.5), [[0.292593, 0.2], [0.020741, -0.5]]),
        (Sce(tau=0.5, select="deltas"), [[0.292593, 0], [0, -0.5]]),
        (Sce(tau=1), [[0.288196, 0.2], [0.021895, -0.5]]),
        (Sce(tau=1, select="deltas"), [[0.288196, 0.2], [0.021895, -0.5]]),
        (Varm(), [[0.251904, 0.080074], [0.005732, -0.124102]]),
    ],
)
def test_the_worked_example(method, delta):
    np.testing.assert_allclose(merged(method, PIVOT, PIVOT + DELTAS), PIVOT + np.float32(delta), atol=2e-6)


def test_the_steps_of_the_worked_example():
    variances = variance(DELTAS.reshape(3, 4))
    np.testing.assert_allclose(variances, [0.042222, 0.02, 0.000289, 0.115556], atol=1e-6)
    stack = stack_of(np.zeros_like(PIVOT), DELTAS)
    selected = largest(stack, lambda chunk: variance(chunk.deltas), lambda nonzero: nonzero // 2)
    assert selected.mask(variances, 0).tolist() == [True, False, False, True]
    # One target moved alone, in an element merged from all: it shows the weights, (.446429, .035714, .517857).
    for target, weight in enumerate((0.446429, 0.035714, 0.517857)):
        deltas = np.concatenate([DELTAS.reshape(3, 4), np.full((3, 1), 1e-4)], axis=1).astype(np.float32)
        deltas[target, 4] = 2e-4
        found = merged(Sce(tau=0.5), np.zeros(5, np.float32), deltas)[4]
        assert found == pytest.approx(1e-4 * (1 + weight), rel=1e-5)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_light_training_gives_the_same_weights(tau):
    """Where mergekit takes equal ones below a bound."""
    light = merged(Sce(tau=tau), np.zeros_like(PIVOT), DELTAS * np.float32(1e-3))
    np.testing.assert_allclose(light, merged(Sce(tau=tau), np.zeros_like(PIVOT), DELTAS) * 1e-3, rtol=1e-5)
    assert abs(light[0, 0] - 0.0003) > 5e-6  # which is what equal weights give


def test_one_large_delta_outvotes_two_small_ones():
    found = merged(Sce(tau=1), np.zeros(1, np.float32), np.float32([[0.3], [0.1], [-0.5]]))
    assert found == -0.5


def test_varm_compares_each_target_with_the_pivot():
    """Neither is the first target returned, nor are weights equal, nor do the targets' differences count."""
    found = merged(Varm(), np.zeros(2, np.float32), np.float32([[1, 0], [0, 3]]))
    np.testing.assert_allclose(found, [0.1, 2.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("variation", "weights"), [("square", [5 / 10, 5 / 10]), ("abs", [3 / 8, 5 / 8]), ("sum", [1 / 4, 3 / 4])]
)
def test_variations_of_a_matrix(variation, weights):
    targets = np.float32([[2, -1, 0, 0, 0], [-1, -1, 1, -1, -1]])
    found = merged(Varm(variation=variation), np.zeros(5, np.float32), targets)
    np.testing.assert_allclose(found, weights @ targets, rtol=1e-6)


def test_weights_are_equal_where_a_target_is_the_pivot():
    np.testing.assert_allclose(merged(Varm(), np.ones(2, np.float32), np.float32([[1, 1], [3, 5]])), [2, 3])


def test_varm_by_element():
    targets = np.float32([[1, 0, 2], [3, 0, 0]])
    np.testing.assert_allclose(
        merged(Varm(granularity="element"), np.zeros(3, np.float32), targets), [2.8, 0, 2], rtol=1e-6
    )


NAMES = (
    "model.embed_tokens.weight",
    *(f"model.layers.{n}.{part}" for n in (0, 1) for part in ("mlp.a", "mlp.b", "norm")),
)


@pytest.mark.parametrize(
    ("granularity", "group"),
    [
        ("module", {"model.layers.0.mlp.a", "model.layers.0.mlp.b"}),
        ("layer", {"model.layers.0.mlp.a", "model.layers.0.mlp.b", "model.layers.0.norm"}),
        ("model", set(NAMES)),
    ],
)
def test_what_shares_weights(granularity, group):
    """By the sum of the matrices' means, of a model by the mean over all elements."""
    sizes = dict(zip(NAMES, (7, 1, 2, 3, 4, 5, 6), strict=True))
    random = np.random.default_rng(0)
    deltas = {name: random.standard_normal((2, size)).astype(np.float32) for name, size in sizes.items()}
    models = Memory({name: stack_of(np.zeros(sizes[name], np.float32), each, name) for name, each in deltas.items()})
    count = (lambda name: sizes[name]) if granularity == "model" else lambda name: 1
    variations = sum(np.square(deltas[name]).mean(axis=1) * count(name) for name in group)
    weights = Varm(granularity=granularity).weights(models)
    for name in NAMES:
        alike = np.allclose(weights(name), variations / variations.sum(), rtol=1e-5)
        assert alike == (name in group), name
    own = np.square(deltas[NAMES[0]]).mean(axis=1)
    if granularity != "model":
        np.testing.assert_allclose(weights(NAMES[0]), own / own.sum(), rtol=1e-5)


WEIGHTS = GOLDEN["weights"]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("linear", Linear(weight=WEIGHTS)),
        ("task_arithmetic", TaskArithmetic(weight=WEIGHTS)),
        ("ties", Ties(weight=WEIGHTS)),
        ("ties, not normalized", Ties(weight=WEIGHTS, normalize=False)),
        ("sce, tau 1", Sce(tau=1)),
        ("sce, tau 0.3", Sce(tau=0.3, select="deltas")),
        ("dare_linear", Dare(weight=WEIGHTS, seed=GOLDEN["seed"])),
        ("dare_ties", Dare(weight=WEIGHTS, seed=GOLDEN["seed"], combine="ties")),
    ],
)
def test_as_mergekit_merges(name, method):
    found = merged(method, np.float32(GOLDEN["pivot"]), np.float32(GOLDEN["targets"]), GOLDEN["name"])
    np.testing.assert_allclose(found, np.float32(GOLDEN["merged"][name]), rtol=3e-6, atol=3e-7)


def test_dare_keeps_the_share_that_it_says():
    mask = keep(0, NAME, 0, 0.6, 0, 100_000)
    assert mask.mean() == pytest.approx(0.6, abs=0.006)
    assert (keep(0, NAME, 0, 0.6, 70_000, 10) == mask[70_000:70_010]).all()
    for other in (
        keep(1, NAME, 0, 0.6, 0, 100_000),
        keep(0, NAME, 1, 0.6, 0, 100_000),
        keep(0, "b", 0, 0.6, 0, 100_000),
    ):
        assert (mask == other).mean() == pytest.approx(0.6**2 + 0.4**2, abs=0.01)


def test_each_file_is_a_method():
    assert METHODS == ("dare", "linear", "sce", "task_arithmetic", "ties", "varm")
    assert all(find_method(name).model_fields["name"].default == name for name in METHODS)


ALL = [
    Sce(),
    Sce(tau=1),
    Sce(tau=0.5, select="deltas"),
    *(Varm(granularity=each) for each in ("matrix", "layer", "element")),
    Varm(variation="sum"),
    Linear(),
    TaskArithmetic(),
    Ties(),
    Ties(normalize=False),
    Dare(),
    Dare(combine="ties"),
]
TENSORS = st.tuples(st.integers(1, 4), st.integers(1, 20)).flatmap(
    lambda shape: arrays.arrays(np.float32, (shape[0] + 1, shape[1]), elements=st.floats(-4, 4, width=16))
)


@pytest.mark.parametrize("method", ALL, ids=str)
@given(tensors=TENSORS, random=st.randoms())
def test_the_order_of_targets_changes_no_bit(method, tensors, random):
    pivot, *targets = tensors
    found = merged(method, pivot, targets)
    random.shuffle(targets)
    assert found.tobytes() == merged(method, pivot, targets).tobytes()


@given(tensors=TENSORS, random=st.randoms(), weights=st.lists(st.floats(0.1, 2), min_size=4, max_size=4))
def test_weights_go_with_their_targets(tensors, random, weights):
    pivot, *targets = tensors
    pairs = list(zip(targets, weights, strict=False))
    found = [merged(kind(weight=[w for _, w in pairs]), pivot, [t for t, _ in pairs]) for kind in (Linear, Ties)]
    random.shuffle(pairs)
    again = [merged(kind(weight=[w for _, w in pairs]), pivot, [t for t, _ in pairs]) for kind in (Linear, Ties)]
    assert [each.tobytes() for each in found] == [each.tobytes() for each in again]


MEANS = [Sce(), Sce(tau=1), Varm(), Varm(granularity="element"), Linear(), TaskArithmetic(weight=1), Ties(density=1)]


def near(found, expected, *inputs):
    """Equal but for roundings of the numbers that were added."""
    scale = max(float(np.abs(each).max()) for each in inputs) or 1.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-7 * scale)


@pytest.mark.parametrize("method", MEANS, ids=str)
@given(tensors=TENSORS)
def test_one_target_is_the_result(method, tensors):
    near(merged(method, tensors[0], tensors[1:2]), tensors[1], tensors)


@pytest.mark.parametrize("method", [each for each in MEANS if not isinstance(each, TaskArithmetic)], ids=str)
@given(tensors=TENSORS, copies=st.integers(2, 4))
def test_identical_targets_are_the_result(method, tensors, copies):
    near(merged(method, tensors[0], [tensors[1]] * copies), tensors[1], tensors)


def test_bfloat16_targets_come_back_in_all_bits():
    random = np.random.default_rng(0)
    pivot, target = random.standard_normal((2, 10_000)).astype(ml_dtypes.bfloat16)
    for method in MEANS:
        assert merged(method, pivot, [target] * 1).astype(ml_dtypes.bfloat16).tobytes() == target.tobytes(), method


@pytest.mark.parametrize("method", [each for each in ALL if not isinstance(each, Dare)], ids=str)
@given(tensors=TENSORS, shift=st.integers(-8, 8))
def test_a_shift_of_all_models_shifts_the_result(method, tensors, shift):
    """But for DARE, whose masks go by the order of the targets' values."""
    shifted = tensors + np.float32(shift)
    assume((shifted - np.float32(shift) == tensors).all())
    found = merged(method, shifted[0], list(shifted[1:]))
    near(found, merged(method, tensors[0], list(tensors[1:])) + np.float32(shift), tensors, [20])


@given(
    values=arrays.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.one_of(st.integers(0, 5).map(float), st.floats(0, width=32, allow_infinity=False)),
    ),
    share=st.floats(0, 1),
    chunk=st.sampled_from([3, 64]),
)
def test_the_largest_are_those_of_a_stable_sort(values, share, chunk):
    count = int(share * len(values))
    expected = np.zeros(len(values), bool)
    expected[np.argsort(-values, kind="stable")[:count]] = True
    told = []
    with mock.patch.object(stacks, "CHUNK", chunk):
        measured = stack_of(np.zeros_like(values), [values])
        selected = largest(measured, lambda chunk: chunk.values[0], lambda nonzero: told.append(nonzero) or count)
    assert told == [np.count_nonzero(values)]
    for split in {0, len(values) // 2, len(values)}:
        parts = [selected.mask(values[:split], 0), selected.mask(values[split:], split)]
        assert (np.concatenate(parts) == expected).all()


@pytest.mark.parametrize("method", ALL, ids=str)
def test_a_tensor_without_elements(method):
    empty = np.empty((0, 3), np.float32)
    stack = stack_of(empty, [empty, empty])
    models = Memory({NAME: stack})
    assert list(stack.ordered(method.weights(models)(NAME)).map(method.merge(stack))) == []


@pytest.mark.parametrize("method", ALL, ids=str)
def test_chunks_are_only_for_memory(method, monkeypatch):
    random = np.random.default_rng(0)
    pivot, *targets = random.standard_normal((4, 1000)).astype(np.float32)
    whole = merged(method, pivot, targets)
    monkeypatch.setattr(stacks, "CHUNK", 64)
    np.testing.assert_allclose(merged(method, pivot, targets), whole, rtol=1e-5, atol=1e-6)


def test_stacks_are_ordered_by_values_dtypes_and_weights():
    one, two = np.float32([1, 2]), np.float32([1, 3])
    stack = Stack(NAME, one, (two, one, one), (1.0,) * 3).ordered([0.5, 2.0, 1.0])
    assert [each.tolist() for each in stack.targets] == [[1, 2], [1, 2], [1, 3]]
    assert stack.weights == (1.0, 2.0, 0.5)
    zeros = [np.zeros(2, dtype) for dtype in (np.float16, ml_dtypes.bfloat16)]
    names = {
        tuple(t.dtype.name for t in Stack(NAME, one, tuple(each), (1.0,) * 2).ordered([1, 1]).targets)
        for each in (zeros, zeros[::-1])
    }
    assert len(names) == 1
