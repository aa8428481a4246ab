"""Who works on which stage: claims in a shared folder, by which processes and machines divide the work of a grid.

    DIR/claims/KEY.N.json   the N-th claim on stage KEY: who holds it, and how far the work is

A claim is made by creating its file, which only one process can do. Its holder writes it anew every few seconds. A
claim whose holder died is taken over by creating the one with the next number, which again only one process can do;
the highest number holds. Whether a holder is dead is decided without comparing clocks: one of this machine is looked
up among its processes, and one of another machine is dead once its file has stayed the same for `PATIENCE` seconds of
the observer's own clock. Should it be alive after all, work is done twice and the first record counts.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from suite import env
from suite.errors import InputError
from suite.files import make_folder, printable, share
from suite.grid import Stage
from suite.interrupt import NEVER, Deadline, TimeIsUp

# Seconds between two signs of life, and after how many without one a holder on another machine counts as dead.
BEAT = 2.0
PATIENCE = 60.0
# Seconds between two tries to have the machine, of a run whose time is limited.
TRY = 0.5


@dataclass(frozen=True)
class Holder:
    """A process on some machine.

    Attributes:
        host: name of the machine.
        boot: of the machine's run since it was started, and of the process's container; where it is one's own, the
            process can be looked up.
        pid: of the process.
        born: when the process began, in the machine's ticks since its start; a later process of the same pid differs.
    """

    host: str
    boot: str
    pid: int
    born: str

    @staticmethod
    def this() -> "Holder":
        """The process that asks."""
        return Holder(socket.gethostname(), _boot(), os.getpid(), _born(os.getpid()))

    @property
    def is_here(self) -> bool:
        """Whether its pid means something to this process."""
        return bool(self.boot) and self.boot == _boot()

    @property
    def lives(self) -> bool:
        """Whether it is still there; to be asked only of one that `is_here`."""
        return _born(self.pid) == self.born != ""


@dataclass(frozen=True)
class Claim:
    """A stage under way, as its file says.

    Attributes:
        key, kind, name: of the stage.
        number: how many held it before, plus one.
        holder: who does it.
        done, total: steps of the work; 0 and 0 if it has not said any.
        note: on its speed.
    """

    key: str
    kind: str
    name: str
    number: int
    holder: Holder
    done: int = 0
    total: int = 0
    note: str = ""


class Claims:
    """The claims of a results folder, and those that this process holds. Use it as a context, which ends them all."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "claims"
        self._me = Holder.this()
        self._held: dict[str, Claim] = {}
        # What a claim's file last said, and when this process first saw it say so.
        self._seen: dict[Path, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._beats = threading.Thread(target=self._keep_alive, daemon=True)

    def __enter__(self) -> "Claims":
        self._beats.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._beats.join()
        for key in list(self._held):
            self.release(key)

    def take(self, stage: Stage) -> bool:
        """Claim a stage; False if another process is at it.

        Raises:
            InputError: the folder cannot be written to.
        """
        files = self._files(stage.key)
        if files and self._is_alive(files[-1][1]):
            return False
        number = files[-1][0] + 1 if files else 1
        claim = Claim(stage.key, stage.kind, stage.name, number, self._me)
        if not self._create(claim):
            return False
        with self._lock:
            self._held[stage.key] = claim
        return True

    def release(self, key: str) -> None:
        """Give up a claim, because the work is done or will not be done by this process."""
        with self._lock:
            claim = self._held.pop(key, None)
        if claim:
            for number, path in self._files(key):
                if number <= claim.number:
                    path.unlink(missing_ok=True)

    def say(self, key: str, done: int, total: int, note: str) -> None:
        """Let others see how far the work on a claimed stage is, at the next sign of life."""
        with self._lock:
            claim = self._held.get(key)
            if claim:
                self._held[key] = replace(claim, done=done, total=total, note=note)

    def clear(self, keys: Collection[str]) -> None:
        """Remove what dead processes left of claims on these stages, which are done."""
        for key, _, path in list(self._all()):
            if key in keys and not self._is_alive(path):
                path.unlink(missing_ok=True)

    def under_way(self) -> list[Claim]:
        """All claims of the folder whose holders live, as far as this process can tell."""
        newest: dict[str, Path] = {}
        for key, _, path in sorted(self._all()):
            newest[key] = path
        return [claim for path in newest.values() if self._is_alive(path) and (claim := _parse(_content(path) or b""))]

    def _files(self, key: str) -> list[tuple[int, Path]]:
        """Number and file of each claim on a stage, in order."""
        return sorted((number, path) for other, number, path in self._all() if other == key)

    def _all(self) -> Iterator[tuple[str, int, Path]]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(self.folder):
                key, _, rest = name.partition(".")
                number, _, suffix = rest.partition(".")
                if suffix == "json" and number.isdecimal():
                    yield key, int(number), self.folder / name

    def _is_alive(self, path: Path) -> bool:
        content = _content(path)
        if content is None:
            return False
        claim = _parse(content)
        if claim and claim.holder.is_here:
            return claim.holder.lives
        before, since = self._seen.get(path, (b"", 0.0))
        if content != before:
            since = monotonic()
            self._seen[path] = content, since
        return monotonic() - since < PATIENCE

    def _create(self, claim: Claim) -> bool:
        """Write the file of a new claim, whole from the beginning; False if another process was faster."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(self.folder)
            with self._aside(claim) as temporary:
                try:
                    os.link(temporary, self._path(claim))
                except FileExistsError:
                    return False
        except OSError as error:
            raise InputError(f"--results {self.folder.parent}: cannot write there: {error.strerror}") from None
        return True

    def _keep_alive(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT):
            beat += 1
            with self._lock:
                held = list(self._held.values())
                for claim in held:
                    # A full disk or a network that is away must not end the work; at worst another takes it over.
                    with contextlib.suppress(OSError), self._aside(claim, beat) as temporary:
                        os.replace(temporary, self._path(claim))

    def _path(self, claim: Claim) -> Path:
        return self.folder / f"{claim.key}.{claim.number}.json"

    @contextlib.contextmanager
    def _aside(self, claim: Claim, beat: int = 0) -> Iterator[str]:
        """A file beside the claims that says what this one says; gone afterwards unless it was renamed."""
        content = {**vars(claim), "holder": vars(claim.holder), "beat": beat}
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
            share(Path(temporary))
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


# Of the whole machine, and in no results folder: runs of other folders, other users and another TMPDIR disturb too.
LOCK = Path("/tmp/crelu-norm-suite.lock")
# Bytes of who holds it, beyond which nobody adds to them; whoever has it alone begins anew.
_LONG = 1 << 16


class Machine:
    """This machine's processors, which timings have to themselves and everything else shares.

    Whoever may read the file can lock it. Each holder adds a line to it that says who it is, as far as it may write.

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
        with self._locked(fcntl.LOCK_SH, "waiting for a timing on this machine to end"):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the machine to oneself, once all others have come to the end of what they are at."""
        with self._locked(fcntl.LOCK_EX, "waiting for other work on this machine to end, to time without it"):
            yield

    @contextlib.contextmanager
    def _locked(self, how: int, reason: str) -> Iterator[None]:
        try:
            descriptor = _opened(self._path)
        except OSError as error:
            self._say(f"{self._path}: {error.strerror}; timings and other work on this machine are not kept apart")
            yield
            return
        try:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("; ".join([reason, *self._holders()]))
                self._wait(descriptor, how)
            with self._noted(descriptor, alone=how == fcntl.LOCK_EX):
                yield
        finally:
            # Not only closed: a process that was forked meanwhile has the file open too. The system unlocks it when
            # all of them have ended, however that happens.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _wait(self, descriptor: int, how: int) -> None:
        if not self._deadline.is_set:
            fcntl.flock(descriptor, how)
            return
        while True:
            if self._deadline.passed:
                raise TimeIsUp
            sleep(TRY)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                return

    @contextlib.contextmanager
    def _noted(self, locked: int, alone: bool) -> Iterator[None]:
        """Have a line in the locked file, for those who wait; none where this user may not write."""
        note = {"holder": vars(Holder.this()), "user": env.user(), "since": _now(), "command": _command()}
        content = json.dumps(note).encode() + b"\n"
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                writer = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
                stack.callback(os.close, writer)
                if not os.path.samestat(os.fstat(writer), os.fstat(locked)):
                    raise OSError(errno.ESTALE, "was replaced")
                if alone:
                    os.ftruncate(writer, 0)
                if os.fstat(writer).st_size < _LONG:
                    os.write(writer, content)  # in one piece, behind the others'
                    place = os.lseek(writer, 0, os.SEEK_CUR) - len(content)
                    stack.callback(_blank, writer, place, len(content) - 1)
            yield

    def _holders(self) -> list[str]:
        """Who has the machine, as far as they have said so; what anybody may have written is made printable."""
        found = []
        for line in (_content(self._path) or b"")[: 2 * _LONG].splitlines():
            try:
                raw = json.loads(line)
                holder = Holder(**raw["holder"])
                user, since, command = (str(raw[name])[:200] for name in ("user", "since", "command"))
                if holder.is_here and not holder.lives:
                    continue
                text = f"{command}, process {holder.pid} of user {user}, since {since}"
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            found.append(printable(text))
        return found


def _blank(descriptor: int, place: int, length: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)  # with O_APPEND, Linux would write at the end
        os.pwrite(descriptor, b" " * length, place)


def _opened(path: Path) -> int:
    """A descriptor of a file for everybody, opened for reading: its owner may be another.

    Raises:
        OSError: it cannot be made or read, or it is no file.
    """
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY):
        # In a folder for everybody, Linux lets nobody create what another made already; hence not in one call.
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except (FileNotFoundError, FileExistsError):
            continue
        if flags & os.O_CREAT:
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
    return " ".join(env.command())[:200]


def _content(path: Path) -> bytes | None:
    """What a claim's file says, nothing if it is no file; None if the claim was released just now."""
    try:
        return path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b""
    except FileNotFoundError:
        return None


def _parse(content: bytes) -> Claim | None:
    """The claim that a file's content stands for, or None if it is none: a machine lost power as it was written."""
    try:
        raw: Mapping[str, Any] = json.loads(content)
        claim = Claim(**{name: raw[name] for name in Claim.__dataclass_fields__} | {"holder": Holder(**raw["holder"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    values = [(getattr(part, each.name), each.type) for part in (claim, claim.holder) for each in fields(part)]
    return claim if all(type(value) is kind for value, kind in values) else None


def _boot() -> str:
    """What tells this machine's run, and this container of it, from others; empty where the system does not say."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process of this machine began; empty if there is none, or only its remains."""
    try:
        # The name, in brackets, may hold anything; the fields after it are numbers (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
