"""Hosts of a test: processes on this machine, each with some devices of its own."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


def on_hosts(command: Sequence[str], count: int) -> list[list[str]]:
    """The command for each of `count` hosts."""
    if count == 1:
        return [[*command]]
    options = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-hosts", str(count), "--host-index"]
    return [[*command, *options, str(index)] for index in range(count)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


_OF_GRPC = re.compile(r"[EWI]\d{4} |:UNKNOWN:Error received from peer|$")


@dataclass
class Processes:
    """Started commands, one a host; their stderr goes to files."""

    commands: Sequence[Sequence[str]]
    folder: Path
    devices: int = 1
    """Of each."""
    environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> "Processes":
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}",
            **self.environment,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = [self.folder / f"host-{i}" for i in range(len(self.commands))]
        self.running = []
        for command, path in zip(self.commands, self.files, strict=True):
            with path.open("w") as file:
                self.running.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.running:
            process.kill()
            process.wait()

    def send(self, index: int, number: signal.Signals) -> None:
        self.running[index].send_signal(number)

    def wait(self, seconds: float = 300) -> list[int]:
        """Their exit statuses."""
        deadline = time.monotonic() + seconds
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.running]

    def output(self, index: int) -> str:
        return self.files[index].read_text()

    def errors(self) -> list[str]:
        """The last line that each host said, whatever gRPC's threads wrote after it of the connection that is gone."""

        def last(text: str) -> str:
            return [line for line in text.strip().splitlines() if not _OF_GRPC.match(line)][-1]

        return [last(self.output(i)) for i in range(len(self.files))]
