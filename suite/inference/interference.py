"""How much of the machine other processes take while something is timed."""

from contextlib import suppress
from time import monotonic

import psutil

from suite import env

# All that is not idle, by the names that systems have for it; a guest's time is in that of its user.
_AT_WORK = ("user", "nice", "system", "irq", "softirq", "steal", "interrupt", "dpc")


class Interference:
    """Counts from its making on what others than this process and its descendants take
    of the cores that this process may run on; a hypervisor's other guests are others
    too."""

    def __init__(self) -> None:
        self._cores = env.usable_cores()
        self._start, self._before = monotonic(), self._seconds_of_others()

    def share(self) -> float | None:
        """How much of the cores' time others have taken so far, from 0 to 1; None where
        the system does not say."""
        elapsed, now = monotonic() - self._start, self._seconds_of_others()
        if now is None or self._before is None or elapsed <= 0:
            return None
        return min(max((now - self._before) / elapsed / len(self._cores), 0.0), 1.0)

    def _seconds_of_others(self) -> float | None:
        own = 0.0
        with suppress(psutil.Error, OSError):
            me = psutil.Process()
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.Error):  # ended meanwhile; its parent has its time
                    times = process.cpu_times()
                    # One that ends hands its time on to its parent.
                    own += times.user + times.system + times.children_user + times.children_system
            cores = psutil.cpu_times(percpu=True)
            spent = [cores[number] for number in self._cores if number < len(cores)]
            return sum(getattr(each, name, 0.0) for each in spent for name in _AT_WORK) - own
        return None
