"""What a host does in a test of `join`: `python scenes.py SCENE [PORT COUNT INDEX]`."""

import sys
import time

import numpy as np
from jax.experimental.multihost_utils import process_allgather

from fusejax.common.cli import UserError, run
from fusejax.distributed import hosts as hosts_module
from fusejax.distributed.agreement import Halt, Pace
from fusejax.distributed.hosts import Hosts, Stopped, join


def agree(hosts: Hosts) -> None:
    asked = []
    for value in ("first", "second"):
        print(hosts.lead(lambda value=value: asked.append(value) or {"value": value, "from": hosts.index}))
    assert asked == (["first", "second"] if hosts.index == 0 else [])
    hosts.same("the number of fingers", "10")


def disagree(hosts: Hosts) -> None:
    hosts.same("the number of fingers", str(10 + hosts.index // 2))
    step_forever(hosts)


def mistake(hosts: Hosts) -> None:
    if hosts.index == hosts.count - 1:
        raise UserError("data.train there/is/none: no such folder")
    step_forever(hosts)


def bug(hosts: Hosts) -> None:
    if hosts.index == 0:
        raise ZeroDivisionError("a bug")
    step_forever(hosts)


def slow_start(hosts: Hosts) -> None:
    print("started", flush=True)
    hosts.lead(lambda: time.sleep(60))


def meet(hosts: Hosts) -> None:
    print("met")


def step_forever(hosts: Hosts) -> None:
    """Steps of two microbatches and an update, all of which wait for those of the others."""
    pace = Pace(hosts.agreement)
    done = 0
    try:
        for step in range(1, 10_000):
            for _ in range(2):
                pace.start()
                process_allgather(np.int32(step))
                time.sleep(0.01 * (hosts.index + 1))
            pace.start_update()
            process_allgather(np.int32(step))
            done = step
            if step == 5:
                print("started", flush=True)
    except Halt:
        raise Stopped(f"stopped after step {done}") from None


def main() -> None:
    scene, *where = sys.argv[1:]
    if scene == "meet":
        hosts_module._MEET_SECONDS = 5
    # Without arguments as on a TPU pod, where the hosts find each other.
    with join(f"127.0.0.1:{where[0]}", int(where[1]), int(where[2])) if where else join() as hosts:
        globals()[scene](hosts)


if __name__ == "__main__":
    run(main)
