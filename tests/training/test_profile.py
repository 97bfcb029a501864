"""A trace of the steps that `profile` names, of a real run, and in a bucket."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from jax.profiler import ProfileData

from fusejax.common.cli import UserError
from fusejax.config import ProfileConfig
from fusejax.training.loop import train
from fusejax.training.profile import Profile
from tests.tiny_runs import run_config


def traced_steps(trace: Path) -> set[int]:
    events = [
        event for plane in ProfileData.from_file(str(trace)).planes for line in plane.lines for event in line.events
    ]
    return {int(dict(event.stats)["step_num"]) for event in events if event.name == "train"}


def test_a_run_traces_the_steps_it_is_told_to(world, tmp_path, capfd):
    output_dir = tmp_path / "run"
    train(run_config(world, output_dir, max_steps=5, profile={"start_step": 3, "steps": 2}))
    (trace,) = (output_dir / "profile").rglob("*.xplane.pb")
    assert traced_steps(trace) == {3, 4}
    assert f"profile: {output_dir / 'profile'}\n" in capfd.readouterr().err
    # Another profile is the same run: it is complete, and not refused.
    train(run_config(world, output_dir, max_steps=5, profile={"start_step": 5}))
    train(run_config(world, output_dir, max_steps=5))
    with pytest.raises(UserError, match="start_step 6 is beyond the run's 5 steps"):
        train(run_config(world, output_dir, max_steps=5, profile={"start_step": 6}))


def test_an_end_in_the_midst_of_the_steps_ends_the_trace(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        Profile(ProfileConfig(start_step=1, steps=9), epath.Path(tmp_path)) as profile,
    ):
        profile.before(1)
        raise ZeroDivisionError
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    jax.profiler.start_trace(str(tmp_path / "another"))  # which two at once could not
    jax.profiler.stop_trace()


def test_a_trace_in_a_bucket(gcs):
    target = epath.Path(gcs.bucket) / "run"
    with Profile(ProfileConfig(start_step=2, steps=1), target) as profile:
        for step in (1, 2, 3):
            profile.before(step)
            profile.after(step, jnp.ones(2) * step)
    assert [path.name for path in (target / "profile").glob("plugins/profile/*/*.xplane.pb")]
