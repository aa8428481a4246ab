"""What a run says while it works: plain lines when piped, and the bars of
`suite.progress.bars` on a terminal."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic, perf_counter

from suite.errors import InputError
from suite.files import is_terminal, printable
from suite.interrupt import TimeIsUp

Steps = Callable[[int, int, str], None]
# What another process is at: steps done, steps in all, a note, and the seconds left, 0 where they are not known.
Work = tuple[int, int, str, float]
# Outcomes of stages that the same command takes up again.
GOES_ON = ("interrupted", "stopped")


class Pace:
    """How long the steps take that are left of some work, at the speed of those that
    were done since the first that was told of."""

    def __init__(self) -> None:
        self._begun: tuple[int, float] | None = None
        self._done = 0

    def left(self, done: int, total: int) -> float:
        """Seconds for the rest; 0 where that is not known."""
        if not total:
            return 0.0
        if self._begun is None or done < self._done:  # a training that begins anew at a lower learning rate
            self._begun = done, monotonic()
        self._done = done
        first, start = self._begun
        return (monotonic() - start) * max(0, total - done) / (done - first) if done > first else 0.0


class Lines:
    """Progress as one line for each finished stage, on standard error, so that the
    table can be piped alone.

    Args:
        total: how many stages there are.
        goes_on: whether the same command takes up what was interrupted; where it does
            not, nothing is said of where that was.
    """

    def __init__(self, total: int, goes_on: bool = False) -> None:
        self.total = total
        self.goes_on = goes_on
        self.done = 0

    def expect(self, left: Callable[[], str]) -> None:
        """Show how long the rest will take, which `left` says whenever it is asked;
        where there is a bar."""

    def note(self, text: str) -> None:
        """Say something that belongs to no stage."""
        if sys.stderr is not None:  # for which print would take standard output
            print(printable(text), file=sys.stderr, flush=True)

    def log(self, text: str) -> None:
        """Say what a bar shows anyway, such as the figures of an epoch."""
        self.note(text)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Steps]:
        """Accompany one stage of `total` steps, None if it does not count them; yields
        what the stage calls with steps done, steps in all, and a note."""
        start = perf_counter()
        outcome = "failed"
        try:
            yield lambda done, total, note: None
            outcome = "done"
        except InputError:  # which is told in one line, and is no outcome
            outcome = ""
            raise
        except Exception:
            raise
        except TimeIsUp:
            outcome = "stopped"
            raise
        except BaseException:  # Ctrl-C, SIGTERM or SIGHUP
            outcome = "interrupted" if self.goes_on else ""
            raise
        finally:
            if outcome:
                self.ended(name, outcome, perf_counter() - start)

    def ended(self, name: str, outcome: str, seconds: float) -> None:
        """Tell the outcome of a stage, done here or by another process, and count it
        unless it is to go on."""
        self.done += outcome not in GOES_ON
        self.note(f"[{self.done:{len(str(self.total))}}/{self.total}] {name}: {outcome}, {seconds:.1f} s")

    def elsewhere(self, work: Mapping[str, Work]) -> None:
        """Show what other processes are at, by name."""

    def skip(self, name: str) -> None:
        """Count a stage whose result is stored already."""
        self.done += 1

    def close(self) -> None:
        """End the display."""


class Silent(Lines):
    """No progress: that of a process whose work another one reports."""

    def note(self, text: str) -> None:
        pass


def display(total: int, goes_on: bool = False) -> Lines:
    """The display that suits standard error: bars on a terminal, else lines; arguments
    as of `Lines`."""
    if not is_terminal(sys.stderr):
        return Lines(total, goes_on)
    from suite.progress.bars import Bars  # which loads Rich

    return Bars(total, goes_on)
