"""Ctrl-C and SIGTERM that wait for a moment at which the work can be taken up again."""

import signal
from types import FrameType, TracebackType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Within `with Interruption() as interruption:` a first signal is only noted, for the work to see and `deliver`.

    A second one is delivered at once. Must be entered in the main thread; never entered, it is never pending.
    """

    def __init__(self) -> None:
        self._received: int | None = None

    @property
    def pending(self) -> bool:
        """Whether a signal has come that was not delivered yet."""
        return self._received is not None

    def deliver(self) -> NoReturn:
        """End the work as the signal asked: KeyboardInterrupt for Ctrl-C, SystemExit(143) for SIGTERM."""
        received, self._received = self._received, None
        if received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.pending and error is None:
            self.deliver()  # it came after the last good moment, and the work is done

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.pending
        self._received = number
        if again:
            self.deliver()
