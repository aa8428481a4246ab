"""How far the work in a results folder is; safe to read while others work on it."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from suite import env
from suite.files import wrap
from suite.grid import remaining
from suite.grid.claims import Claim, Claims
from suite.grid.plan import Grid
from suite.grid.remaining import Planned, TimeLeft
from suite.progress import duration
from suite.results.store import Store

# Of a run whose processes are loading, nothing is to be seen for some seconds.
IDLE = "; nobody is at it: unless it began just now, give the command again to go on"


@dataclass(frozen=True)
class Status:
    """How far one command's grid is.

    Attributes:
        command: that was run.
        stages: of the grid, in order.
        done: keys of the finished stages.
        under_way: claims of stages that somebody is at.
        running: whether a run is there, be it between two stages.
        failed: reason of each stage that has failed and not succeeded since, by key.
        time_left: from what stages of the same kind took; None if nothing is known of
            the trainings that are left.
    """

    command: str
    stages: Sequence[Planned]
    done: frozenset[str]
    under_way: Sequence[Claim]
    running: bool
    failed: Mapping[str, str]
    time_left: TimeLeft | None


def plan_of(grid: Grid, command: Sequence[str]) -> dict[str, object]:
    """What a run leaves in the folder of what it is to do, for `read`."""
    stages = [[stage.kind, stage.key, str(stage.inputs["model"]), stage.name] for stage in grid.stages]
    return {"command": shlex.join(command), "stages": stages}


def read(store: Store) -> list[Status]:
    """The state of each command that was run on this folder, in the order of their
    beginnings.

    Raises:
        InputError: a plan or a record is damaged.
    """
    done = {stage: store.keys(stage) for stage in store.stages()}
    claims = {claim.key: claim for claim in Claims(store.root).under_way()}
    running = {run.name for run in Claims(store.root, "runs").under_way()}
    failed = {failure.key: failure.reason for failure in store.failures()}
    took = _seconds(store)
    found = []
    for plan in store.plans():
        stages = [Planned(*stage) for stage in plan.stages]
        finished = frozenset(stage.key for stage in stages if stage.key in done.get(stage.kind, ()))
        left = [stage for stage in stages if stage.key not in finished]
        under_way = [claims[stage.key] for stage in left if stage.key in claims]
        reasons = {stage.key: failed[stage.key] for stage in left if stage.key in failed and stage.key not in claims}
        time_left = remaining.time_left(stages, finished | set(reasons), list(claims.values()), took)
        there = bool(under_way) or plan.command in running
        found.append(Status(plan.command, stages, finished, under_way, there, reasons, time_left))
    return found


def _seconds(store: Store) -> dict[str, float]:
    """What the finished stages took, by key."""
    return {record.key: record.timing.seconds for stage in store.stages() for record in store.each(stage)}


def _typed(command: str) -> str:
    """A command of a plan, as it is typed here."""
    as_module = shlex.join(env.AS_MODULE)
    return env.typed() + command.removeprefix(as_module) if command.startswith(as_module) else command


def _row(claim: Claim) -> tuple[str, ...]:
    """A stage under way: how far it is, how long the rest of it takes, and who is at
    it."""
    steps = f"{claim.done}/{claim.total}" if claim.total else ""
    left = f"about {duration.format_duration(claim.left)} left" if claim.left else ""
    return claim.name, steps, left, claim.note, f"{claim.holder.host}, process {claim.holder.pid}"


def _in_words(left: TimeLeft | None) -> str:
    if left is None:
        return "not known yet"
    return f"{left}" + (f", since of {' and '.join(left.left_out)} none has ended yet" if left.left_out else "")


def render(found: Sequence[Status], records: int = 0, where: str = "here", width: int | None = None) -> str:
    """As text: of each command its stages by kind, who is at what, what failed and why,
    and the time left; of a folder in which no command was given, as of published
    results, how many `records` it holds.

    Lines are as wide as a terminal, if that is given; but for commands, which can then
    be pasted.
    """
    from tabulate import tabulate

    if not found:
        if records:
            held = f"{records} record{'s' if records > 1 else ''}"
            return wrap(f"{held}, of commands that were given elsewhere: show and report print them\n", width)
        return f"nothing was begun {where}\n"
    parts = []
    for status in found:
        kinds = list(dict.fromkeys(stage.kind for stage in status.stages))
        all_of, done = (
            Counter(s.kind for s in status.stages),
            Counter(s.kind for s in status.stages if s.key in status.done),
        )
        names = {stage.key: stage.name for stage in status.stages}
        lines = [_typed(status.command)]
        lines.append("  done: " + ", ".join(f"{kind} {done[kind]}/{all_of[kind]}" for kind in kinds))
        if len(status.done) < len(status.stages):
            lines.append(f"  time left: {_in_words(status.time_left)}{'' if status.running else IDLE}")
        if status.under_way:
            text = tabulate(map(_row, status.under_way), tablefmt="plain")
            lines += ["  under way:", *("    " + line for line in text.splitlines())]
        if status.failed:
            lines += ["  failed:", *(f"    {names[key]}: {reason}" for key, reason in status.failed.items())]
        parts.append("\n".join([lines[0], *(wrap(line, width, "      ") for line in lines[1:])]))
    return "\n".join(parts) + "\n"
