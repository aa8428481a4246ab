"""Ctrl-C, SIGTERM, SIGHUP and the end of the time, which wait for a moment at which the
work can be taken up again."""

import contextlib
import math
import os
import signal
import socket
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Thread
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, NoReturn

# What comes as a terminal is closed; Windows has no such signal.
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
_ENDING = [number for number in (signal.SIGTERM, HANGUP) if number is not None]
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


def end_on_signals() -> None:
    """Have SIGTERM and SIGHUP end this process by SystemExit, with which all that was
    begun is cleared away; SIGHUP not where it is ignored, as `nohup` has it."""
    for number in _ENDING:
        if number != HANGUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    if number == HANGUP:
        _leave_terminal()
    raise SystemExit(128 + number)


def _leave_terminal() -> None:
    """Print nowhere from now on, in the place of a terminal: it is gone, and to write
    to it would be an error, of which a stage would be said to have failed.

    It is told again as the shell ends too, which is not to disturb what ends in good
    order.
    """
    if HANGUP is not None:
        signal.signal(HANGUP, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        with contextlib.suppress(OSError):  # closed
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


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
        SIGTERM and SystemExit(129) for SIGHUP, else TimeIsUp where there is a deadline,
        be it another process that found it passed."""
        received, self._received = self._received, None
        if received is not None and received in _ENDING:
            raise SystemExit(128 + received)
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
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, *_ENDING):
            if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
                self._before[number] = handler
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in list(self._before.items()):
            if number in self._before:
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._wake_before)
        self._wake.shutdown(socket.SHUT_WR)  # by which the thread ends; processes that were forked have the socket too
        self._answers.join()
        self._wake.close()
        self._told.close()
        if self._received is not None and error is None:
            self.deliver()  # it came after the last good moment, and the work is done

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == HANGUP:
            _leave_terminal()
            self._before.pop(number, None)  # it stays ignored
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
