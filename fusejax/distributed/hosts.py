"""The hosts of a run: how they find each other, agree on what they do, and end together.

Every host runs the same command. They exchange a few short texts through JAX's coordination service, which runs on host
0. Every two seconds each host writes a heartbeat there and reads those of the others, in a separate thread, as the main
thread may be in a collective that will never end. So when a host ends, for whatever reason, the others end too, and
report which one it was.

| exit status | meaning | the same command again |
|---|---|---|
| 0 | the run is complete | says so |
| 2 | a mistake of the user's, found by any host | fails alike |
| 1 | an exception on any host | probably fails alike |
| `HOST_LOST` | another host died or cannot be reached | goes on from the last checkpoint |
| `STOPPED` | SIGTERM; a checkpoint of the last whole step was saved | goes on as if nothing had happened |
| 130 | Ctrl-C on any host; nothing was saved | goes on from the last checkpoint |
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
from jax._src import cloud_tpu_init  # JAX has no public way to ask whether TPUs are attached without starting them,
from jax._src import distributed as jax_distributed  # nor to the coordination service; Orbax uses the same

from fusejax.common.cli import INTERRUPTED, UserError, note, one_line
from fusejax.distributed.agreement import Agreement

STOPPED = 75
"""Exit status of a run that SIGTERM ended: EX_TEMPFAIL of sysexits.h."""
HOST_LOST = 69
"""Exit status of a host that ended because another did: EX_UNAVAILABLE of sysexits.h."""
BEAT_SECONDS = 2.0
_MEET_SECONDS = 300
"""How long a host waits for the others to start: those of a pod may be minutes apart."""
LOST_SECONDS = 20.0
"""A host without a heartbeat for so long is considered lost."""

_UNWINDING_SECONDS = 5.0
"""How long Ctrl-C may take to end a host in an orderly way."""

_JAX_TIMEOUT = 100
"""Seconds, for JAX's own heartbeats: JAX aborts the other hosts after a good half of them, without our message. So it
is well above `LOST_SECONDS`, and matters only if our own thread is stuck."""
_FOREVER = 7 * 24 * 3600 * 1000
"""Milliseconds to wait for a host that is alive, but may be busy with work that only it does."""
_FAREWELL_SECONDS = 10.0
"""How long host 0 and its coordination service stay up after a failure, so that the others learn of it."""

Result = TypeVar("Result")


class Stopped(Exception):
    """SIGTERM asked the run to stop, and it has saved where it was; the text says where."""


class Hosts:
    """This host and the others; made by `join`, or without arguments for a run on one host alone.

    Attributes:
      index: this host's, from 0; host 0 writes everything that is written once per run.
      count: how many there are.
      agreement: on where they stop.
    """

    def __init__(self, client: Any = None, index: int = 0, count: int = 1):
        self.index, self.count = index, count
        self._client = client
        self.is_busy: Callable[[], bool] = lambda: False
        """Whether threads are at work that Python would wait for at its end, so that the process must end at once."""
        self._leads = self._meetings = 0
        self._closed = threading.Event()
        self._ending = threading.Lock()
        if client is not None:
            self._set(f"name/{index}", f"host {index} ({socket.gethostname()}, process {os.getpid()})")
            threading.Thread(target=self._watch, name="hosts", daemon=True).start()
        self.agreement = Agreement(client and _Board(client), index, self._leave_without_saving)

    def lead(self, work: Callable[[], Result]) -> Result:
        """Calls `work` on host 0 only, while the others wait, and returns its result on all; it must be short JSON."""
        if self._client is None:
            return work()
        self._leads += 1
        key = f"lead/{self._leads}"
        if self.index == 0:
            result = work()
            self._set(key, json.dumps(result))
            return result
        return json.loads(self._client.blocking_key_value_get(_ROOT + key, _FOREVER))

    def meet(self) -> None:
        """Waits until all hosts are here."""
        if self._client is not None:
            self._meetings += 1
            self._client.wait_at_barrier(f"{_ROOT}meet/{self._meetings}", _FOREVER)

    def same(self, what: str, value: str) -> None:
        """Makes sure that the hosts agree.

        Args:
          what: names it in the error, such as "the configuration".
          value: must be the same on all hosts.

        Raises:
          UserError: this host's differs from host 0's.
        """
        if self.lead(lambda: value) != value:
            raise UserError(f"{what} on host {self.index} differs from host 0's")

    def note(self, text: str) -> None:
        """Prints a line on host 0 only, as all hosts would print the same."""
        if self.index == 0:
            note(text)

    # How a host ends.

    def close(self) -> None:
        """Waits until every host is done, and disconnects from them."""
        if self._client is not None:
            self._client.wait_at_barrier(_ROOT + "done", _FOREVER)
            self._closed.set()
            self.agreement.close()
            jax.distributed.shutdown()

    def leave(self, status: int, text: str) -> NoReturn:
        """Ends this process at once, and with it all others: they give the same status, and `text` as the reason.

        Not by an exception: other threads may be stuck, and JAX would wait at exit for hosts that never come.
        """
        self._end(status, text, f"host {self.index}: {text}")

    def await_verdict(self) -> None:
        """Ends this process if another host is found to have ended; returns if all are still there."""
        if self._client is not None:
            time.sleep(LOST_SECONDS + 3 * BEAT_SECONDS)

    def sigterm(self) -> None:
        """What SIGTERM does, called by the thread that listens for it: the main thread may be busy."""
        with contextlib.suppress(ConnectionError):  # host 0 is gone: the handler of `_on_abort` says so
            self.agreement.ask("stop")

    def _leave_without_saving(self) -> NoReturn:
        self.leave(STOPPED, "stopped by SIGTERM before the first step; the same command starts again")

    def _watch(self) -> None:
        """Writes this host's heartbeat and checks those of the others."""
        heard = {index: ("", time.monotonic()) for index in range(self.count)}
        beat = 0
        while not self._closed.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._client.key_value_set(f"{_ROOT}alive/{self.index}", str(beat), True)
                ended, alive = self._all("end/"), dict(self._all("alive/"))
            except jax.errors.JaxRuntimeError:
                continue  # host 0 is gone: the handler of `_on_abort` says so
            if self._closed.is_set():
                return
            for _, end in ended:
                told = json.loads(end)
                self._end(told["status"], told["text"], told["text"])
            now = time.monotonic()
            for index, (last, since) in heard.items():
                value = alive.get(f"{_ROOT}alive/{index}", "")
                if value != last:
                    heard[index] = value, now
                elif now - since > LOST_SECONDS:
                    name = dict(self._all("name/")).get(f"{_ROOT}name/{index}", f"host {index}")
                    text = f"{name} died or cannot be reached: no sign of life for {now - since:.0f} s"
                    self._end(HOST_LOST, text, text)

    def _end(self, status: int, text: str, to_others: str) -> NoReturn:
        while not self._ending.acquire(timeout=60):
            pass  # another thread is at it
        _tell(status, text)
        if self._client is not None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._set(f"end/{self.index}", json.dumps({"status": status, "text": to_others}))
                deadline = time.monotonic() + _FAREWELL_SECONDS
                while self.index == 0 and len(self._all("end/")) < self.count and time.monotonic() < deadline:
                    time.sleep(0.2)
        _exit(status)

    def _set(self, key: str, value: str) -> None:
        self._client.key_value_set(_ROOT + key, value)

    def _all(self, prefix: str) -> list[tuple[str, str]]:
        return self._client.key_value_dir_get(_ROOT + prefix)


@contextlib.contextmanager
def join(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> Iterator[Hosts]:
    """Connects to the other hosts until the block ends; to be called before JAX computes anything.

    SIGTERM and exceptions in the block end the process as the table above says, here and on all other hosts.

    Args:
      coordinator: HOST:PORT of host 0, where its port is free; by default the hosts of a TPU pod find each other, and
        any other machine is alone.
      count: how many hosts there are; given together with `coordinator`, or not at all.
      index: which of them this is, from 0; given together with `coordinator`, or not at all.

    Raises:
      UserError: some arguments are missing; the hosts do not find each other. On a single host that is not busy, also
        the block's.
    """
    listener = _Listener()  # before the wait for the others
    hosts = Hosts(*_connect(coordinator, count, index))
    listener.call(hosts.sigterm)
    listener.interrupted = lambda: hosts.leave(INTERRUPTED, "interrupted")
    try:
        yield hosts
        hosts.close()
    except Stopped as stopped:
        note(str(stopped))
        hosts.close()
        _exit(STOPPED)  # not by an exception: devices may be busy with what nobody waits for any more
    except KeyboardInterrupt:
        hosts.leave(INTERRUPTED, "interrupted")
    except Exception as error:
        if hosts.count == 1 and not hosts.is_busy():
            raise
        if not isinstance(error, UserError):
            traceback.print_exc()
        if _may_be_anothers(error):
            hosts.await_verdict()
        hosts.leave(2 if isinstance(error, UserError) else 1, _describe(error))


_ROOT = "fusejax/"


class _Board:
    """JAX's coordination service as a `fusejax.distributed.agreement.Board`; ConnectionError: it is gone."""

    def __init__(self, client: Any):
        self._client = client

    def post(self, key: str, value: str) -> bool:
        try:
            self._client.key_value_set(_ROOT + key, value)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                return False
            raise ConnectionError(one_line(error)) from error
        return True

    def read(self, key: str) -> str:
        with _connected():
            return self._client.blocking_key_value_get(_ROOT + key, _FOREVER)

    def read_all(self, prefix: str) -> list[str]:
        with _connected():
            return [value for _, value in self._client.key_value_dir_get(_ROOT + prefix)]

    def meet(self, name: str) -> None:
        with _connected():
            self._client.wait_at_barrier(_ROOT + name, _FOREVER)


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(one_line(error)) from error


class _Listener:
    """Handles SIGTERM in a thread: Python calls handlers only in the main thread, and not while that is in a library.

    SIGINT, too: the `KeyboardInterrupt` in the main thread is lost if it is raised in a library's callback, and if it
    interrupts the work of a queue, unwinding may wait for ever. In both cases, `interrupted` is called.
    """

    def __init__(self) -> None:
        self._action: Callable[[], None] = lambda: _exit(STOPPED)
        self.interrupted: Callable[[], None] = lambda: _exit(INTERRUPTED)
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), name="signals", daemon=True).start()

    def call(self, action: Callable[[], None]) -> None:
        self._action = action

    def _listen(self, pipe: int) -> None:
        while received := os.read(pipe, 1):
            if received[0] == signal.SIGTERM:
                self._action()
            elif received[0] == signal.SIGINT:
                timer = threading.Timer(_UNWINDING_SECONDS, self.interrupted)
                timer.daemon = True
                timer.start()


def _connect(coordinator: str | None, count: int | None, index: int | None) -> tuple[Any, int, int]:
    """The coordination service's client, and which of how many hosts this is."""
    given = (coordinator, count, index)
    if (coordinator is None and given != (None, None, None)) or (coordinator is not None and None in given):
        raise UserError("--coordinator, --num-hosts and --host-index are given together, or none of them")
    if coordinator is None and not _on_tpu_pod():
        return None, 0, 1
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(f"--host-index {index}: with --num-hosts {count} it is from 0 to {count - 1}")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator {coordinator}: expected HOST:PORT")
    # On CPU; elsewhere it has no effect.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Otherwise JAX would handle SIGTERM itself.
    jax.config.update("jax_enable_preemption_service", False)
    with_coordinator = f"--coordinator {coordinator}" if coordinator else "this TPU pod"
    _on_abort(lambda: f"{with_coordinator}: the hosts did not find each other in {_MEET_SECONDS} s; did all start?")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=_MEET_SECONDS,
            heartbeat_timeout_seconds=_JAX_TIMEOUT,
        )
    except (RuntimeError, ValueError, OSError) as error:
        why = f"the hosts do not find each other: {one_line(error)}"
        if coordinator:
            raise UserError(f"{with_coordinator}: {why}") from error
        # Not a mistake of the user's: starting the command again may well help.
        _tell(HOST_LOST, f"{with_coordinator}: {why}")
        sys.exit(HOST_LOST)
    state = jax_distributed.global_state
    _on_abort(lambda: _lost_host_0(state.process_id, state.coordinator_address))
    return state.client, state.process_id, state.num_processes


def _on_tpu_pod() -> bool:
    """Whether TPUs are attached; JAX then asks the environment (GKE) or the metadata server (TPU VMs) for the pod."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return cloud_tpu_init.running_in_cloud_tpu_vm and (not platforms or "tpu" in platforms.split(","))


def _on_abort(why: Callable[[], str | None]) -> None:
    """Makes an abort of this process print its reason and exit with `HOST_LOST`, if `why` knows the reason.

    JAX aborts the process when the hosts have not met in time and, within milliseconds, when host 0 ends; there is no
    way to learn of either before.
    """

    def handler(number: int) -> None:
        if text := why():
            _tell(HOST_LOST, text)
            _exit(HOST_LOST)

    global _abort_handler
    previous, _abort_handler = _abort_handler, ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, _abort_handler)
    del previous  # only now that nothing calls it any more


_abort_handler: Any = None  # kept from the garbage collector


def _lost_host_0(index: int, coordinator: str | None) -> str | None:
    if index == 0 or not coordinator:
        return None
    address, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((address.strip("[]"), int(port)), timeout=5).close()
        return None
    except OSError:
        return f"host 0 ({coordinator}) died or cannot be reached"


def _may_be_anothers(error: Exception) -> bool:
    """Whether an exception may follow from another host's end: JAX's and the collectives' own, also as a cause."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, jax.errors.JaxRuntimeError) or "Gloo" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"


def _tell(status: int, text: str) -> None:
    # Below a progress bar, if there is one.
    note(f"\n{text}" if status in (STOPPED, INTERRUPTED) else f"\nerror: {text}")


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    os._exit(status)
