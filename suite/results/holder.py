"""A process that holds something: told from all others, and looked up among the
living."""

import os
import socket
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

_LINUX = sys.platform == "linux"


@dataclass(frozen=True)
class Holder:
    """A process on some machine.

    Attributes:
        host: name of the machine.
        boot: of the machine's run since it was started, and of the process's container
            (elsewhere than on Linux, of the machine); where it is one's own, the
            process can be looked up.
        pid: of the process.
        born: when the process began, in the machine's ticks since its start, or
            elsewhere than on Linux in seconds; a later process of the same pid
            differs.
    """

    host: str
    boot: str
    pid: int
    born: str

    @staticmethod
    def this() -> "Holder":
        """The process that asks."""
        return Holder(socket.gethostname(), _boot(), os.getpid(), _start_of(os.getpid()))

    @property
    def is_here(self) -> bool:
        """Whether its pid means something to this process."""
        return bool(self.boot) and self.boot == _boot()

    @property
    def is_alive(self) -> bool:
        """Whether it is still there; to be asked only of one that `is_here`."""
        return _start_of(self.pid) == self.born != ""


def boot_id() -> str:
    """What tells this machine since its start from others, in all containers; empty
    where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _boot() -> str:
    """What tells this machine's run, and this container of it, from others; empty where
    the system does not say."""
    if not _LINUX:
        address = uuid.getnode()
        drawn = address >> 40 & 1  # a random number, where the machine has no network
        return "" if drawn else f"{socket.gethostname()} {address:x}"
    try:
        container = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return f"{running} {container}" if (running := boot_id()) else ""


def _start_of(pid: int) -> str:
    """When a process of this machine began; empty if there is none, or only its
    remains."""
    if not _LINUX:
        import psutil  # not for `show`, which asks for nobody

        try:
            process = psutil.Process(pid)
            return "" if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
        except psutil.Error:
            return ""
    # Not by psutil, which gives the time of day: it moves when the clock is set.
    try:
        # The name, in brackets, may hold anything; the fields after it are numbers (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
