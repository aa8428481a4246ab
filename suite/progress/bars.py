"""What a run says on a terminal while it works: bars, and lines above them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from suite.files import printable
from suite.progress.duration import format_duration
from suite.progress.lines import Lines, Pace, Steps, Work

# Columns that bars leave free, for two Ctrl-C between two refreshes.
ROOM = 5
# Columns of the bar itself, on a terminal of at least so many columns and on a narrower one.
WIDE, BAR, NARROW_BAR = 100, 16, 8
# Characters of a stage's name that stand before what is said of its speed.
LEAST = 10
# Seconds between two refreshes.
REFRESH = 0.1


class _OneAtATime(Console):
    """A terminal on which one thread prints at a time.

    Rich looks up where the bars are, which are to be printed over, before it prints a
    line. Had another thread refreshed them meanwhile, and were they more or fewer, they
    stayed on the screen or took a line above them along.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True)
        self.turn = threading.RLock()

    def print(self, *objects: Any, **options: Any) -> None:
        with self.turn:
            super().print(*objects, **options)


class _Narrow(Progress):
    """Bars after which a terminal has room for its `^C`: on a line of its own that
    would leave the bars of that moment behind.

    They are refreshed by whoever calls `refresh`, not by Rich's own thread, which knows
    nothing of the terminal's `turn`.
    """

    def __init__(self, terminal: _OneAtATime, *columns: ProgressColumn) -> None:
        self._terminal = terminal
        super().__init__(*columns, console=terminal, auto_refresh=False, expand=True, transient=True)

    def get_renderable(self) -> RenderableType:
        return Constrain(super().get_renderable(), max(1, self._terminal.width - ROOM))

    def refresh(self) -> None:
        with self._terminal.turn:
            super().refresh()

    def stop(self) -> None:
        with self._terminal.turn:
            super().stop()


def shorten(name: str, note: str, width: int, more: str) -> str:
    """A name and a note, divided by ", ", in so many columns.

    The end of the name is left out first, for which `more` stands; with fewer than
    `LEAST` columns for it, parts of the note from the last.
    """
    parts = note.split(", ") if note else []
    while True:
        tail = "".join(f", {part}" for part in parts)
        room = width - len(tail)
        if len(name) <= room:
            return name + tail
        if room >= LEAST or not parts:
            return name[: max(0, room - len(more))] + more + tail
        parts.pop()


@dataclass(frozen=True)
class _Label:
    """A name and a note, as much of them as there is room for."""

    name: str
    note: str
    more: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shorten(self.name, self.note, options.max_width, self.more), no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)


class _Named(ProgressColumn):
    """What a bar is of, as the terminal gets it, whose encoding may lack a
    character."""

    def __init__(self, encoding: str) -> None:
        super().__init__(Column(ratio=1, no_wrap=True))
        self._encoding = encoding

    def render(self, task: Task) -> RenderableType:
        more = "…" if self._spelt("…") == "…" else ""
        return _Label(self._spelt(task.description), self._spelt(task.fields.get("note", "")), more)

    def _spelt(self, text: str) -> str:
        return text.encode(self._encoding, "backslashreplace").decode(self._encoding)


class _Counted(ProgressColumn):
    """Steps done and steps in all; nothing of a stage that does not count them."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}")


class _Left(ProgressColumn):
    """How long the rest will take, of all stages and of each that counts its steps."""

    def __init__(self, of_all: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._of_all = of_all

    def render(self, task: Task) -> Text:
        seconds = task.fields.get("left", 0.0)
        return Text(f"about {format_duration(seconds)} left" if seconds else self._of_all(task))


class Bars(Lines):
    """Progress as bars: one of all stages, with the time left, and one of the steps of
    each stage under way, with its own."""

    def __init__(self, total: int, goes_on: bool = False) -> None:
        super().__init__(total, goes_on)
        terminal = _OneAtATime()
        self._terminal = terminal
        self._words: Callable[[], str] = lambda: ""
        self._progress = _Narrow(
            terminal,
            _Named(terminal.encoding),
            BarColumn(BAR if terminal.width >= WIDE else NARROW_BAR),
            _Counted(Column(no_wrap=True)),
            _Left(lambda task: self._words() if task.id == self._all else ""),
        )
        self._others: dict[str, TaskID] = {}
        self._all = self._progress.add_task("stages", total=total)
        self._progress.start()
        self._ended = threading.Event()
        self._refresher = threading.Thread(target=self._keep_fresh, daemon=True)
        self._refresher.start()

    def _keep_fresh(self) -> None:
        with suppress(OSError):  # the terminal is gone, as SIGHUP will say
            while not self._ended.wait(REFRESH):
                self._progress.refresh()

    def expect(self, left: Callable[[], str]) -> None:
        self._words = left

    def note(self, text: str) -> None:
        self._terminal.print(printable(text), markup=False, highlight=False)

    def log(self, text: str) -> None:
        pass

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Steps]:
        task = self._progress.add_task(name, total=total)
        pace = Pace()

        def step(done: int, total: int, note: str) -> None:
            left = pace.left(done, total)
            self._progress.update(task, completed=done, total=total or None, note=note, left=left)

        try:
            with super().stage(name, total):
                yield step
        finally:
            self._progress.remove_task(task)

    def ended(self, name: str, outcome: str, seconds: float) -> None:
        super().ended(name, outcome, seconds)
        self._progress.update(self._all, completed=self.done)

    def elsewhere(self, work: Mapping[str, Work]) -> None:
        for name in set(self._others) - set(work):
            self._progress.remove_task(self._others.pop(name))
        for name, (done, total, note, left) in work.items():
            if name not in self._others:
                self._others[name] = self._progress.add_task(printable(name), total=None)
            note = printable(note)  # from a file that others may have written
            self._progress.update(self._others[name], completed=done, total=total or None, note=note, left=left)

    def skip(self, name: str) -> None:
        super().skip(name)
        self._progress.update(self._all, completed=self.done)

    def close(self) -> None:
        self._ended.set()
        self._refresher.join()
        self._progress.stop()
