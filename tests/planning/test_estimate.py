"""Arithmetic of FLOPs and seconds."""

import numpy as np
import pytest

from fusejax.models.decoder.config import DecoderConfig
from fusejax.planning.compile import Cost
from fusejax.planning.estimate import (
    attention_flops,
    extrapolate,
    seconds,
    shallow_depths,
    with_layers,
)
from fusejax.planning.topology import CHIPS
from fusejax.training.throughput import model_flops


def model(*windows: int | None, **changes) -> DecoderConfig:
    shape = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "num_kv_heads": 2}
    return DecoderConfig(**(shape | {"head_dim": 16, "windows": windows} | changes))


@pytest.mark.parametrize(
    ("windows", "depths"),
    [
        ((None,) * 32, (2, 4)),
        ((4096, None) * 21, (2, 4)),
        ((None,) * 4, (4,)),
        ((8, 8, None) * 4, (3, 6)),
        (((512,) * 5 + (None,)) * 4 + (512, 512), (8, 14)),
    ],
)
def test_shallow_models_hold_whole_blocks(windows, depths):
    full = model(*windows)
    assert shallow_depths(full) == depths
    for depth in depths[: len(depths) - (depths[-1] == full.num_layers)]:
        shallow = with_layers(full, depth)
        assert (shallow.pattern, shallow.tail) == (full.pattern, full.tail)


def test_extrapolation_is_exact_for_costs_that_grow_with_layers():
    def cost(layers: int) -> Cost:
        return Cost(flops=3 + 5 * layers, attention=7 * layers, bytes=2 + layers, seconds=1 + 0.5 * layers)

    full = model(*(None,) * 32)
    found = extrapolate([cost(depth) for depth in shallow_depths(full)], full)
    assert found == cost(32)


def test_extrapolation_is_exact_where_layers_and_tail_differ():
    def cost(model: DecoderConfig) -> Cost:
        windowed = sum(window is not None for window in model.windows)
        return Cost(flops=1 + 5 * windowed + 9 * (model.num_layers - windowed), attention=0, bytes=0, seconds=0)

    full = model(*(((512,) * 5 + (None,)) * 4 + (512, 512)))
    found = extrapolate([cost(with_layers(full, depth)) for depth in shallow_depths(full)], full)
    assert found.flops == pytest.approx(cost(full).flops)


FORWARD = (
    "  %splash_mha_fwd_segmented_residuals.1 = (f32[4,512,128]{2,1,0:T(8,128)}, f32[4,512,128]{2,1,0:T(8,128)}, "
    "bf16[4,32,2048,128]{3,2,1,0:T(8,128)(2,1)}, f32[4,32,2048,128]{3,2,1,0:T(8,128)}) custom-call(%a, %b), "
    'custom_call_target="tpu_custom_call"'
)
BACKWARD = (
    "  %splash_mha_dkv_segmented_no_residuals.1 = (f32[4,512,128]{2,1,0}, bf16[4,2,32,2048,128]{4,3,2,1,0}, "
    "bf16[4,8,2048,128]{3,2,1,0}, bf16[4,8,2048,128]{3,2,1,0}) custom-call(%a, %b), "
    'custom_call_target="tpu_custom_call"'
)


@pytest.mark.parametrize("window", [None, 1, 2, 513, 514, 700, 4096])
def test_attention_counts_the_blocks_that_a_kernel_computes(window):
    distance = np.arange(2048)[:, None] - np.arange(2048)
    visible = (distance >= 0) & (distance < (window or 2048))
    blocks = visible.reshape(4, 512, 4, 512).any(axis=(1, 3)).sum()
    one_product = 2 * 128 * 4 * 32 * blocks * 512**2
    counted = model(*(window,) * 8)
    assert attention_flops(FORWARD, counted) == 2 * one_product
    both = "\n".join([FORWARD, "%x = f32[2] add(%y)", BACKWARD])
    assert attention_flops(both, counted) == 7 * one_product
    # Kernels for one row come without an axis for rows.
    assert attention_flops(both.replace("[4,", "["), counted) == 7 * one_product / 4


def test_model_flops_are_those_of_palm():
    untied, tied = model(None, None), model(None, 8, tie_embeddings=True)
    weights = 10_000 - 100 * 64
    assert model_flops(untied, 10_000, 32, training=True) == 6 * weights + 12 * 4 * 16 * (32 + 32)
    assert model_flops(tied, 10_000, 32, training=True) == 6 * 10_000 + 12 * 4 * 16 * (32 + 8)
    assert model_flops(tied, 10_000, 32, training=False) * 3 == model_flops(tied, 10_000, 32, training=True)


def test_the_compilers_seconds_are_used_only_where_they_can_be():
    v5p, v6e = CHIPS["v5p"], CHIPS["v6e"]
    good = Cost(flops=459e12, attention=459e11, bytes=1e9, seconds=1.2)
    assert seconds([good], v5p) == ([pytest.approx(1.3)], "compiler")
    assert seconds([good], v6e) == ([pytest.approx(0.55)], "roofline")
    # One program of which the compiler knows less than the products alone take: then no program's is used.
    bad = Cost(flops=459e11, attention=0, bytes=2765e9, seconds=-0.9)
    assert seconds([good, bad], v5p) == ([pytest.approx(1.1), pytest.approx(1.0)], "roofline")
