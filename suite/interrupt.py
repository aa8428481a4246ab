"""Ctrl-C, SIGTERM and the end of the time, which wait for a moment at which the work
can be taken up again."""

import contextlib
import math
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Thread
from time import monotonic
from types import FrameType, TracebackType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a first Ctrl-C is answered with at once.
NOTED = "interrupted: finishing the step, for a checkpoint; again to stop now"


class TimeIsUp(BaseException):
    """The work has come to the end of its time and was stopped in good order; no
    failure, like KeyboardInterrupt."""


class Deadline:
    """The moment at which a run is to end, None for never.

    Processes and machines tell it to each other by the time of day. Each counts from
    then on by a clock that nobody sets.
    """

    def __init__(self, until: datetime | None = None) -> None:
        left = math.inf if until is None else (until - datetime.now(UTC)).total_seconds()
        self._end = monotonic() + left

    @property
    def is_set(self) -> bool:
        """Whether there is one."""
        return self._end < math.inf

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return monotonic() >= self._end


NEVER = Deadline()


class Interruption:
    """Within `with Interruption() as interruption:` a first signal is only noted, for
    the work to see and `deliver`.

    A second one is delivered at once. A signal that the process ignores stays ignored.
    Must be entered in the main thread; never entered, no signal is ever pending.

    Args:
        deadline: one that has passed is pending too.
        say: called in another thread at the first Ctrl-C with the words that answer it,
            even while the main thread is in a library's call.
    """

    def __init__(self, deadline: Deadline = NEVER, say: Callable[[str], None] = lambda text: None) -> None:
        self._received: int | None = None
        self._deadline = deadline
        self._say = say

    @property
    def pending(self) -> bool:
        """Whether a signal has come that was not delivered yet, or the time is up."""
        return self._received is not None or self._deadline.passed

    def deliver(self) -> NoReturn:
        """End the work as was asked: KeyboardInterrupt for Ctrl-C, SystemExit(143) for
        SIGTERM, else TimeIsUp where there is a deadline, be it another process that
        found it passed."""
        received, self._received = self._received, None
        if received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if received is None and self._deadline.is_set:
            raise TimeIsUp
        raise KeyboardInterrupt

    def __enter__(self) -> "Interruption":
        # Python calls a handler when the main thread is back from a library's call, which may take seconds. The number
        # of the signal is written to this socket at once.
        self._told, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._wake_before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._answers = Thread(target=self._answer, daemon=True)
        self._answers.start()
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wake_before)
        self._wake.shutdown(socket.SHUT_WR)  # by which the thread ends; processes that were forked have the socket too
        self._answers.join()
        self._wake.close()
        self._told.close()
        if self._received is not None and error is None:
            self.deliver()  # it came after the last good moment, and the work is done

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self._received is not None
        self._received = number
        if again:
            self.deliver()

    def _answer(self) -> None:
        """Answer the first Ctrl-C, until there is no more to be heard."""
        said = False
        while number := self._told.recv(1):
            if number[0] == signal.SIGINT and not said:
                said = True
                with contextlib.suppress(OSError):  # whoever read it is gone
                    self._say(NOTED)


# Of work that is not to be ended: never entered, so that no signal is ever pending.
UNDISTURBED = Interruption()
