"""Ctrl-C, SIGTERM and the end of the time, which wait for a moment at which the work
can be taken up again."""

import contextlib
import math
import os
import signal
from datetime import UTC, datetime
from time import monotonic
from types import FrameType, TracebackType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a first Ctrl-C is answered with at once.
NOTED = b"\ninterrupted: finishing the step, for a checkpoint; again to stop now\n"


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

    A second one is delivered at once. Must be entered in the main thread; never
    entered, no signal is ever pending.

    Args:
        deadline: one that has passed is pending too.
    """

    def __init__(self, deadline: Deadline = NEVER) -> None:
        self._received: int | None = None
        self._deadline = deadline

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
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._received is not None and error is None:
            self.deliver()  # it came after the last good moment, and the work is done

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self._received is not None
        self._received = number
        if again:
            self.deliver()
        if number == signal.SIGINT:
            # Not by Python's streams, which the signal may have found in the midst of writing.
            with contextlib.suppress(OSError):
                os.write(2, NOTED)


# Of work that is not to be ended: never entered, so that no signal is ever pending.
UNDISTURBED = Interruption()
