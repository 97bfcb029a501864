"""FLOPs of attention kernels, and of models."""

import numpy as np
import pytest

from fusejax.models.decoder.config import DecoderConfig
from fusejax.planning.attention_kernels import attention_flops
from fusejax.planning.hlo import Instruction, parse
from fusejax.training.throughput import model_flops


def model(*windows: int | None, **changes) -> DecoderConfig:
    shape = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "num_kv_heads": 2}
    return DecoderConfig(**(shape | {"head_dim": 16, "windows": windows} | changes))


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


def kernel(line: str) -> Instruction:
    program = parse(f"HloModule test, is_scheduled=true\n\nENTRY %main () -> f32[] {{\n{line}\n}}\n")
    [found] = program.computations["main"].values()
    return found


@pytest.mark.parametrize("window", [None, 1, 2, 513, 514, 700, 4096])
def test_attention_counts_the_blocks_that_a_kernel_computes(window):
    distance = np.arange(2048)[:, None] - np.arange(2048)
    visible = (distance >= 0) & (distance < (window or 2048))
    blocks = visible.reshape(4, 512, 4, 512).any(axis=(1, 3)).sum()
    one_product = 2 * 128 * 4 * 32 * blocks * 512**2
    counted = model(*(window,) * 8)
    assert attention_flops(kernel(FORWARD), counted) == 2 * one_product
    assert attention_flops(kernel(BACKWARD), counted) == 5 * one_product
    # Kernels for one row come without an axis for rows.
    assert attention_flops(kernel(FORWARD.replace("[4,", "[")), counted) == 2 * one_product / 4
    assert attention_flops(kernel(BACKWARD.replace("[4,", "[")), counted) == 5 * one_product / 4


def test_other_kernels_have_no_flops_of_attention():
    other = FORWARD.replace("splash_mha_fwd_segmented_residuals", "custom-call")
    assert attention_flops(kernel(other), model(None)) == 0


def test_model_flops_are_those_of_palm():
    untied, tied = model(None, None), model(None, 8, tie_embeddings=True)
    weights = 10_000 - 100 * 64
    assert model_flops(untied, 10_000, 32, training=True) == 6 * weights + 12 * 4 * 16 * (32 + 32)
    assert model_flops(tied, 10_000, 32, training=True) == 6 * 10_000 + 12 * 4 * 16 * (32 + 8)
    assert model_flops(tied, 10_000, 32, training=False) * 3 == model_flops(tied, 10_000, 32, training=True)
