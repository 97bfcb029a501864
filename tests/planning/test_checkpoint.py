"""The size of a checkpoint, and whether it can be written in time."""

import types

import jax
import jax.numpy as jnp

from fusejax.planning.checkpoint import CheckpointPlan, checkpoint_plan


def test_all_arrays_count_and_all_hosts_write():
    state = {"params": jax.ShapeDtypeStruct((10, 7), jnp.float32), "moments": jax.ShapeDtypeStruct((70,), jnp.bfloat16)}
    devices = [types.SimpleNamespace(process_index=index // 4) for index in range(8)]
    assert checkpoint_plan(state, devices) == CheckpointPlan(bytes=70 * 4 + 70 * 2, hosts=2)


def test_what_takes_longer_than_a_spot_tpu_has_is_saved_by_the_clock():
    small, large, huge = (CheckpointPlan(bytes=round(size * 1e9), hosts=2) for size in (60, 61, 600))
    assert (small.seconds, small.in_time, small.every_minutes) == (30, True, None)
    assert (
        str(small)
        == "checkpoint: 60.00 GB, 30 s to write at 1 GB/s (assumed) from each of 2 hosts; a spot TPU has 30 s"
    )
    assert (large.seconds, large.in_time, large.every_minutes) == (30.5, False, 10)
    assert str(large).endswith("; a spot TPU has only 30 s: add checkpoint.every_minutes=10")
    assert huge.every_minutes == 50  # writing takes five
    assert huge.as_json()["every_minutes"] == 50
