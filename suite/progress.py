"""What a run says while it works: bars on a terminal, plain lines when piped."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from suite.errors import InputError
from suite.files import printable
from suite.interrupt import TimeIsUp

if TYPE_CHECKING:
    from rich.progress import Task, TaskID
    from rich.text import Text

Steps = Callable[[int, int, str], None]
# Outcomes of stages that the same command takes up again.
GOES_ON = ("interrupted", "stopped")
# Columns that bars leave free, for two Ctrl-C between two refreshes.
ROOM = 5


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
        except BaseException:  # Ctrl-C or SIGTERM
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

    def elsewhere(self, work: Mapping[str, tuple[int, int, str]]) -> None:
        """Show what other processes are at: by name steps done, steps in all, and a
        note."""

    def skip(self, name: str) -> None:
        """Count a stage whose result is stored already."""
        self.done += 1

    def close(self) -> None:
        """End the display."""


class Bars(Lines):
    """Progress as two bars: all stages with the time left, and the steps of the stage
    under way."""

    def __init__(self, total: int, goes_on: bool = False) -> None:
        super().__init__(total, goes_on)
        from rich.console import Console, RenderableType
        from rich.constrain import Constrain
        from rich.progress import BarColumn, Progress, ProgressColumn
        from rich.table import Column
        from rich.text import Text

        console = Console(stderr=True)

        class Narrow(Progress):
            """Bars after which a terminal has room for its `^C`: on a line of its own
            that would leave the bars of that moment behind."""

            def get_renderable(self) -> RenderableType:
                return Constrain(super().get_renderable(), max(1, console.width - ROOM))

        def spelt(text: str) -> str:
            """As the terminal gets it, whose encoding may lack a character."""
            return text.encode(console.encoding, "backslashreplace").decode(console.encoding)

        class Named(ProgressColumn):
            """What a bar is of."""

            def render(self, task: "Task") -> "Text":
                return Text(spelt(task.description))

        class Counted(ProgressColumn):
            """Steps done and steps in all; nothing of a stage that does not count
            them."""

            def render(self, task: "Task") -> "Text":
                return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}")

        class Left(ProgressColumn):
            """How long the rest will take, beside the bar of all stages."""

            def render(column, task: "Task") -> "Text":  # noqa: N805 - `self` is the display
                return Text(self._left() if task.id == self._all else "")

        self._left: Callable[[], str] = lambda: ""
        one_line = Column(ratio=1, no_wrap=True, overflow="ellipsis" if spelt("…") == "…" else "crop")
        self._progress = Narrow(
            Named(table_column=one_line),
            BarColumn(bar_width=16),
            Counted(table_column=Column(no_wrap=True)),
            Left(table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            transient=True,
        )
        self._others: dict[str, TaskID] = {}
        self._all = self._progress.add_task("stages", total=total)
        self._progress.start()

    def expect(self, left: Callable[[], str]) -> None:
        self._left = left

    def note(self, text: str) -> None:
        self._progress.console.print(printable(text), markup=False, highlight=False)

    def log(self, text: str) -> None:
        pass

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Steps]:
        task = self._progress.add_task(name, total=total)

        def step(done: int, total: int, note: str) -> None:
            self._progress.update(task, completed=done, total=total, description=f"{name}, {note}")

        try:
            with super().stage(name, total):
                yield step
        finally:
            self._progress.remove_task(task)

    def ended(self, name: str, outcome: str, seconds: float) -> None:
        super().ended(name, outcome, seconds)
        self._progress.update(self._all, completed=self.done)

    def elsewhere(self, work: Mapping[str, tuple[int, int, str]]) -> None:
        for name in set(self._others) - set(work):
            self._progress.remove_task(self._others.pop(name))
        for name, (done, total, note) in work.items():
            if name not in self._others:
                self._others[name] = self._progress.add_task(name, total=None)
            description = printable(f"{name}, {note}" if note else name)  # from a file that others may have written
            self._progress.update(self._others[name], completed=done, total=total or None, description=description)

    def skip(self, name: str) -> None:
        super().skip(name)
        self._progress.update(self._all, completed=self.done)

    def close(self) -> None:
        self._progress.stop()


class Silent(Lines):
    """No progress: that of a process whose work another one reports."""

    def note(self, text: str) -> None:
        pass


def display(total: int, goes_on: bool = False) -> Lines:
    """The display that suits standard error: bars on a terminal, else lines; arguments
    as of `Lines`."""
    return (Bars if sys.stderr.isatty() else Lines)(total, goes_on)
