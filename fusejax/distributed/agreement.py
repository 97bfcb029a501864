"""After which program the hosts stop: all after the same one, within a microbatch of being asked.

Hosts dispatch programs without waiting for them, and devices run them in that order. A program in which hosts exchange
data ends nowhere before all hosts have dispatched it, so all must dispatch the same sequence of *programs*:
microbatches and, at the end of each step, an *update*, which alone changes the training state and gives its memory to
the new one. Who stops must not leave others waiting, and all must save the same state.

A round of agreement, in a thread of each host, whatever the host's main thread is doing:

1. A host asks: SIGTERM came, say. The others' threads are waiting for that.
2. Every host starts nothing more, and announces its place: how many programs it has started, and how many of them were
   updates.
3. When all places are known, the furthest is the answer. Hosts behind it start what they lack, without waiting for
   their devices; there everybody stops, and saves the state that the last update makes. What is still running then is
   dropped.

*All agree*: each takes the furthest of the same places, and the same sequence up to there has the same updates.

*Nothing hangs*: a host's answer needs nothing of its main thread. After that, the host that is least far waits at most
for programs that it has started itself, so all others have, too: they end. So it comes to the agreed place, and so does
the next one. No program beyond that place was started anywhere: all that were started will end.

*At most one microbatch*: a host starts a program only when all but one of those before it have ended, so there is
always one to run and one behind it (`Pace`). And before an update all hosts `meet`: none starts it before every host's
devices are at the last microbatch of the step. So if any host has started the update, then on every host at most that
microbatch and the update itself stand before the state that is saved. If none has, the state of the update before is
saved, for which the same is true.

Saving at a time that only one host knows is agreed in the same way: after the first update beyond the agreed place.
"""

import collections
import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

Request = Literal["stop", "save"]
_CLOSED = "closed"
_POLL_SECONDS = 0.01
"""The longest between two looks at a device, which does not wait meanwhile: one more program is queued."""


class Halt(Exception):
    """Here the hosts have agreed to stop."""


class Place(NamedTuple):
    """How far a host has come, in programs that it has started."""

    programs: int = 0
    updates: int = 0


@runtime_checkable
class Board(Protocol):
    """What all hosts write and read."""

    def post(self, key: str, value: str) -> bool:
        """Writes a value that stays; False if there is one already."""

    def read(self, key: str) -> str:
        """The value, as soon as there is one."""

    def read_all(self, prefix: str) -> list[str]:
        """All values whose keys begin so."""

    def meet(self, name: str) -> None:
        """Returns when every host has called it; for each name any number of times."""


class Agreement:
    """This host's part of the agreement.

    Args:
      board: shared with the other hosts; None for a host alone.
      index: which host this is.
      leave: called when the hosts are to stop before the first update, when there is nothing to save; ends the process.
    """

    def __init__(self, board: Board | None = None, index: int = 0, leave: Callable[[], Any] = lambda: None):
        self.place = Place()
        self._board, self._index, self._leave = board, index, leave
        self._changed = threading.Condition()
        self._held = False
        self._last: Place | None = None
        self._saves: list[Place] = []
        self._round = 1
        self._thread = threading.Thread(target=self._listen, name="agreement", daemon=True)
        if board is not None:
            self._thread.start()

    # The main thread's way through the sequence.

    def start(self, *, update: bool = False) -> None:
        """To be called before each program is dispatched.

        Raises:
          Halt: it must not be, nor any after it.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._held)
            if self.stops_here:
                raise Halt
            self.place = Place(self.place.programs + 1, self.place.updates + update)

    def until(self, ready: Callable[[], bool]) -> None:
        """Waits for results of programs that were started.

        Raises:
          Halt: the hosts stop here, and will not use them.
        """
        start = time.monotonic()
        while not ready():
            if self.stops_here:
                raise Halt
            # By a small part of a program too late, however short it is.
            time.sleep(min(_POLL_SECONDS, 1e-4 + (time.monotonic() - start) / 10))

    def meet(self) -> None:
        """Waits for all other hosts; counts as a program.

        Raises:
          Halt: as `start`.
        """
        self.start()
        if self._board is not None:
            self._board.meet("update")

    def save_is_due(self) -> bool:
        """Whether the hosts save here because one has asked; to be called after every update, and only there."""
        with self._changed:
            due = [asked for asked in self._saves if asked.programs < self.place.programs]
            self._saves = self._saves[len(due) :]
        return bool(due)

    @property
    def stopping(self) -> bool:
        """Whether it is known where to stop."""
        return self._last is not None

    @property
    def stops_here(self) -> bool:
        return self._last is not None and self.place.programs >= self._last.programs

    # A round, called by other threads.

    def ask(self, request: Request) -> None:
        """Asks all hosts to stop within a microbatch, or to save soon; returns before they do."""
        if self._board is None:
            self.release(request, self.hold())
            return
        self._post(request)

    def hold(self) -> Place:
        """Lets no program start until `release`; returns how many have."""
        with self._changed:
            self._held = self._last is None
            return self.place

    def release(self, request: Request, agreed: Place) -> None:
        """Lets programs start again, to be called with the furthest of all hosts' places."""
        if request == "stop" and not agreed.updates:
            self._leave()
            return
        with self._changed:
            if request == "save":
                self._saves.append(agreed)
            elif self._last is None:
                self._last = agreed
            self._held = False
            self._changed.notify_all()

    def _listen(self) -> None:
        assert self._board is not None
        try:
            while (request := self._board.read(f"asked/{self._round}")) != _CLOSED:
                self._board.post(f"place/{self._round}/{self._index}", json.dumps(self.hold()))
                self._board.meet("places")
                places = [Place(*json.loads(place)) for place in self._board.read_all(f"place/{self._round}/")]
                self.release("stop" if request == "stop" else "save", max(places))
                self._round += 1
        except ConnectionError:  # the hosts notice that in their own way
            return

    def close(self) -> None:
        """Ends the thread, when all hosts are done."""
        if self._board is not None:
            self._post(_CLOSED)
            self._thread.join()

    def _post(self, request: str) -> None:
        """Begins the next round that nobody has begun, unless somebody has begun one for the same."""
        assert self._board is not None
        for number in itertools.count(self._round):
            if self._board.post(f"asked/{number}", request) or self._board.read(f"asked/{number}") == request:
                return


class Pace:
    """Dispatches programs so that the devices always have one to run and one behind it, and never more."""

    def __init__(self, agreement: Agreement):
        self._agreement = agreement
        self._unfinished: collections.deque[Any] = collections.deque()

    def start(self) -> None:
        """To be called before a microbatch is dispatched.

        Raises:
          Halt: as `Agreement.start`.
        """
        self._room()
        self._agreement.start()

    def start_update(self) -> None:
        """To be called before an update is dispatched.

        Raises:
          Halt: as `Agreement.start`.
        """
        self._room()
        self._agreement.meet()
        self._agreement.start(update=True)

    def started(self, result: Any) -> None:
        """To be called after that, with an array that the program makes and that no other takes over (donation)."""
        self._unfinished.append(result)

    def finish(self) -> None:
        """Waits for all programs. Where the hosts stop before every one of them has, none gets beyond this.

        Raises:
          Halt: as `Agreement.start`.
        """
        while self._unfinished:
            self._agreement.until(self._unfinished[0].is_ready)
            self._unfinished.popleft()
        self._agreement.start()

    def _room(self) -> None:
        # To catch up with the others, a host waits for nothing.
        if len(self._unfinished) > 1:
            oldest = self._unfinished[0]
            self._agreement.until(lambda: oldest.is_ready() or self._agreement.stopping)
            self._unfinished.popleft()
