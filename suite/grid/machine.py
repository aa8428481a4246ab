"""One lock for the machine: timings have it to themselves, and all other work shares
it."""

import contextlib
import errno
import json
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep

from suite import env
from suite.files import printable, read_if_file
from suite.interrupt import NEVER, Deadline, TimeIsUp
from suite.results import locks
from suite.results.holder import Holder

# Of the whole machine, and in no results folder: runs of other folders, other users and another TMPDIR disturb too.
LOCK = Path(os.environ.get("PROGRAMDATA", "C:/ProgramData") if os.name == "nt" else "/tmp", "crelu-norm-suite.lock")
# Of POSIX alone, as what they keep off: links and pipes. And of Windows alone: line ends as they are.
_AS_IT_IS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
# Bytes of who holds it, beyond which nobody adds to them; whoever has it alone begins anew.
_LONG = 1 << 16

# Seconds between two tries to have the machine, of a run whose time is limited.
TRY = 0.5
# Seconds for which a run waits to hear who has the machine, and what it says if it does not.
NAMED = 1.0
UNNAMED = "who has it does not say so, as another user may be kept from writing"


class MachineLock:
    """This machine's processors, which timings have to themselves and everything else
    shares.

    Whoever may read the file can lock it. Each holder adds a line to it that says who
    it is, as far as it may write.

    Args:
        say: told what is waited for.
        path: the file.
        deadline: until when; waiting then ends with `TimeIsUp`.
    """

    def __init__(self, say: Callable[[str], None], path: Path = LOCK, deadline: Deadline = NEVER) -> None:
        self._say, self._path, self._deadline = say, path, deadline

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Work beside others, once no timing is under way."""
        with self._locked(True, "waiting for a timing on this machine to end"):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the machine to oneself, once all others have come to the end of what
        they are at."""
        with self._locked(False, "waiting for other work on this machine to end, to time without it"):
            yield

    @contextlib.contextmanager
    def _locked(self, shared: bool, reason: str) -> Iterator[None]:
        try:
            descriptor = _open(self._path)
        except OSError as error:
            self._say(f"{self._path}: {error.strerror}; timings and other work on this machine are not kept apart")
            yield
            return
        try:
            if not _try_lock(descriptor, shared) and not self._lock_before_named(descriptor, shared):
                self._say("; ".join([reason, *(self.holders() or [UNNAMED])]))
                self._wait(descriptor, shared)
            with self._note_in_file(descriptor, alone=not shared):
                yield
        finally:
            # Not only closed: a process that was forked meanwhile has the file open too. The system unlocks it when
            # all of them have ended, however that happens.
            locks.unlock(descriptor)
            os.close(descriptor)

    def _wait(self, descriptor: int, shared: bool) -> None:
        if not self._deadline.is_set:
            locks.lock(descriptor, shared)
            return
        while True:
            if self._deadline.passed:
                raise TimeIsUp
            sleep(TRY)
            if _try_lock(descriptor, shared):
                return

    def _lock_before_named(self, descriptor: int, shared: bool) -> bool:
        """Wait until whoever has the machine says so, which it does a moment after it
        has it and no longer a moment before it gives it up; True if this process has
        the machine by then."""
        end = monotonic() + NAMED
        while not self.holders() and monotonic() < end:
            sleep(NAMED / 20)
            if _try_lock(descriptor, shared):
                return True
        return False

    @contextlib.contextmanager
    def _note_in_file(self, locked: int, alone: bool) -> Iterator[None]:
        """Have a line in the locked file, for those who wait; none where this user may
        not write."""
        note = {"holder": vars(Holder.this()), "user": env.user(), "since": _now(), "command": _command()}
        content = json.dumps(note).encode() + b"\n"
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                # One to write behind the others in one piece, and one to write over that again.
                behind, over = (self._writer(stack, how) for how in (os.O_APPEND, 0))
                if not all(os.path.samestat(os.fstat(each), os.fstat(locked)) for each in (behind, over)):
                    raise OSError(errno.ESTALE, "was replaced")
                if alone:
                    os.ftruncate(behind, 0)
                if os.fstat(behind).st_size < _LONG:
                    os.write(behind, content)
                    place = os.lseek(behind, 0, os.SEEK_CUR) - len(content)
                    stack.callback(_blank, over, place, len(content) - 1)
            yield

    def _writer(self, stack: contextlib.ExitStack, how: int) -> int:
        descriptor = os.open(self._path, os.O_WRONLY | how | _AS_IT_IS)
        stack.callback(os.close, descriptor)
        return descriptor

    def holders(self) -> list[str]:
        """Who has the machine, as far as they have said so; what anybody may have
        written is made printable."""
        found = []
        for line in (read_if_file(self._path) or b"")[: 2 * _LONG].splitlines():
            try:
                raw = json.loads(line)
                holder = Holder(**raw["holder"])
                user, since, command = (str(raw[name])[:200] for name in ("user", "since", "command"))
                if holder.is_here and not holder.is_alive:
                    continue
                text = f"{command}, process {holder.pid} of user {user}, since {since}"
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            found.append(printable(text))
        return found


def _try_lock(descriptor: int, shared: bool) -> bool:
    """Lock the file unless another has it; whether that was done."""
    with contextlib.suppress(BlockingIOError):
        locks.lock(descriptor, shared, wait=False)
        return True
    return False


def _blank(descriptor: int, place: int, length: int) -> None:
    with contextlib.suppress(OSError):
        os.lseek(descriptor, place, os.SEEK_SET)
        os.write(descriptor, b" " * length)


def _open(path: Path) -> int:
    """A descriptor of a file for everybody, opened for reading: its owner may be
    another.

    Raises:
        OSError: it cannot be made or read, or it is no file.
    """
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY):
        # In a folder for everybody, Linux lets nobody create what another made already; hence not in one call.
        try:
            descriptor = os.open(path, flags | _AS_IT_IS, 0o666)
        except (FileNotFoundError, FileExistsError):
            continue
        if flags & os.O_CREAT and hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o666)  # whatever the umask
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # holders write into it
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is no file of its own", str(path))
        return descriptor
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _command() -> str:
    return shlex.join(env.command())[:200]
