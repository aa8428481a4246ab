"""What other processes take of the cores while something is timed."""

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from suite.inference import interference
from suite.inference.interference import Interference

Core = namedtuple("Core", "user nice system idle iowait irq softirq steal guest guest_nice")
Own = namedtuple("Own", "user system children_user children_system")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Four cores, of which this process may run on two, and a process with one child; all can be set."""
    found = SimpleNamespace(
        now=100.0, cores=[Core(*[0.0] * 10)] * 4, mine=Own(0.0, 0.0, 0.0, 0.0), child=Own(0.0, 0.0, 0.0, 0.0)
    )

    class Process:
        def __init__(self, child: bool = False) -> None:
            self.is_child = child

        def children(self, recursive: bool) -> list[Any]:
            return [Process(child=True)] if found.child else []

        def cpu_times(self) -> Own:
            return found.child if self.is_child else found.mine

    monkeypatch.setattr(interference, "monotonic", lambda: found.now)
    monkeypatch.setattr(interference.env, "usable_cores", lambda: [1, 2])
    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: found.cores)
    return found


def core(**seconds: float) -> Core:
    return Core(**dict.fromkeys(Core._fields, 0.0) | seconds)


def test_what_others_take_is_a_share_of_this_process_s_cores(machine: SimpleNamespace) -> None:
    watch = Interference()
    machine.now = 110.0
    # 8 of 20 seconds of two cores; the other two cores are not this process's.
    machine.cores = [core(user=10), core(user=5, system=1, idle=4), core(steal=2, iowait=8), core(user=10)]
    assert watch.share() == pytest.approx(0.4)
    machine.mine, machine.child = Own(1.0, 1.0, 0.0, 0.0), Own(2.0, 0.0, 0.0, 0.0)
    assert watch.share() == pytest.approx(0.2)


def test_a_child_that_has_ended_is_still_not_an_other(machine: SimpleNamespace) -> None:
    machine.child = Own(3.0, 0.0, 0.0, 0.0)
    watch = Interference()
    machine.now, machine.cores = 110.0, [core(user=5)] * 4
    machine.child, machine.mine = None, Own(0.0, 0.0, 13.0, 0.0)
    assert watch.share() == 0


def test_a_guest_s_time_counts_once(machine: SimpleNamespace) -> None:
    watch = Interference()
    machine.now, machine.cores = 110.0, [core(user=5, guest=5)] * 4
    assert watch.share() == pytest.approx(0.5)


def test_nothing_is_said_where_the_system_does_not_tell(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(percpu: bool) -> None:
        raise PermissionError("no /proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    watch = Interference()
    machine.now = 110.0
    assert watch.share() is None


def test_this_machine_tells() -> None:
    share = Interference().share()
    assert share is None or 0 <= share <= 1
