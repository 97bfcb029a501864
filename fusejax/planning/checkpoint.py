"""How large a checkpoint is, and whether a spot TPU that is taken away has the time to write one."""

import dataclasses
import math
from typing import Any

import jax

GRACE_SECONDS = 30
"""What Google Cloud gives a spot VM between the notice and the end."""
BYTES_PER_SECOND = 1e9
"""Assumed of each host's way to its storage; `gs://` in the same region usually takes more."""
_RARELY = 10


@dataclasses.dataclass(frozen=True)
class CheckpointPlan:
    bytes: int
    """Parameters and moments as they are written, over all hosts."""
    hosts: int
    """Each writes an equal part, also where some devices hold the same."""

    @property
    def seconds(self) -> float:
        """To write it, at `BYTES_PER_SECOND`."""
        return self.bytes / (self.hosts * BYTES_PER_SECOND)

    @property
    def in_time(self) -> bool:
        """Whether it can be written within `GRACE_SECONDS`."""
        return self.seconds <= GRACE_SECONDS

    @property
    def every_minutes(self) -> int | None:
        """If not, how often to save anyway: ten minutes apart, or ten times as far as writing takes."""
        return None if self.in_time else max(10, math.ceil(_RARELY * self.seconds / 60))

    def as_json(self) -> dict[str, Any]:
        return {
            "bytes": self.bytes,
            "hosts": self.hosts,
            "seconds": self.seconds,
            "in_time": self.in_time,
            "every_minutes": self.every_minutes,
        }

    def __str__(self) -> str:
        text = (
            f"checkpoint: {self.bytes / 1e9:.2f} GB, {self.seconds:.3g} s to write at {BYTES_PER_SECOND / 1e9:g} GB/s "
            f"(assumed) from each of {self.hosts} hosts"
        )
        if self.in_time:
            return f"{text}; a spot TPU has {GRACE_SECONDS} s"
        return f"{text}; a spot TPU has only {GRACE_SECONDS} s: add checkpoint.every_minutes={self.every_minutes}"


def checkpoint_plan(state: Any, devices: list[Any]) -> CheckpointPlan:
    """Of a training state's shapes, and the devices that hold it."""
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    return CheckpointPlan(size, len({device.process_index for device in devices}))
