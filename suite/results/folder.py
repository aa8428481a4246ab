"""A results folder on disk: one writer at a time, a folder for each stage under way,
and no link that leads out."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from suite.errors import InputError
from suite.files import inherit_permissions, make_folder
from suite.results import locks

# Seconds after which what nobody has changed counts as left behind where locks cannot tell: on file systems without
# them, and of other machines, whose locks may not reach this one.
LONG = 7 * 24 * 3600.0
# The folders in a results folder; of the first two each has a folder for each stage.
INSIDE = ("records", "failures", "artifacts", "checkpoints", "plans", "claims", "runs", "removed", "work")


class Folder:
    """A results folder, which others may use at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder for a stage's files, gone afterwards unless `put` has taken
        it over."""
        work = self.inside("work")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            make_folder(work)
            with self.alone():  # of those who sweep, which would find it without a lock
                folder, held = _make_held(work)
                inherit_permissions(folder)  # tempfile makes what only its owner may read
        except OSError as error:
            raise self.cannot_write(error) from None
        try:
            yield folder
        finally:
            _remove_held(folder, held)

    def check(self) -> None:
        """See to it that results can be written, before there are any.

        Raises:
            InputError: a folder cannot be written to by this user; it is named.
        """
        if not self.root.is_dir():
            return  # it is made, or cannot be, by the first who writes
        kinds = [self.inside(name) for name in INSIDE[:2]]
        inside = [folder for kind in kinds if kind.is_dir() for folder in kind.iterdir()]
        others = [self.inside(name) for name in INSIDE[2:]]
        for folder in (self.root, *kinds, *inside, *others):
            if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
                if _is_on_read_only_disk(folder):
                    raise InputError(
                        f"--results {self.root}: cannot write to {folder}, which lies on a disk that is read only; "
                        "use another folder"
                    )
                found = folder.stat()
                raise InputError(
                    f"--results {self.root}: cannot write to {folder}, which has the owner {found.st_uid}, the group "
                    f"{found.st_gid} and the mode {found.st_mode & 0o7777:04o}; have its owner give you the right, or "
                    "use another folder"
                )

    def sweep(self) -> None:
        """Remove what processes that were killed have left: folders of stages that
        nobody is at, and files that were to be renamed."""
        work = self.inside("work")
        with contextlib.suppress(OSError), self.alone():  # a folder that cannot be written to is left as it is
            for folder in list(work.iterdir()):
                if folder.is_dir() and _is_left(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            for file in work.glob(f"*{_LOCK}"):  # of folders that are not there any more
                if not file.with_suffix("").is_dir():
                    with contextlib.suppress(OSError):  # one of a process that is about to remove it
                        file.unlink()
        for kind in ("records", "failures", "checkpoints", "plans", "claims", "runs"):
            for path in self.inside(kind).glob("**/*.tmp"):
                with contextlib.suppress(OSError):
                    if _age(path) > LONG:
                        path.unlink()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from writing who use this too."""
        self.root.mkdir(parents=True, exist_ok=True)
        root = self.root.resolve()
        folder = locks.open_folder(root, root / _LOCK)
        try:
            # Some network file systems have no locks; there only claims keep workers apart.
            with contextlib.suppress(OSError):
                locks.lock(folder)
            yield
        finally:
            os.close(folder)

    def inside(self, *parts: str) -> Path:
        """A path in the folder, and not one that a link leads out of it."""
        path = self.root.joinpath(*parts)
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError):  # links in a circle
            inside = False
        if not inside:
            raise InputError(f"{path}: a link leads out of the results folder; delete the link")
        return path

    def cannot_write(self, error: OSError) -> InputError:
        return InputError(f"--results {self.root}: cannot write there: {error.strerror or error}")


# How the folders begin in which a file is exported, beside where it is to be.
EXPORT = ".export-"
# Seconds after which one of them counts as left behind if nobody holds it: its owner takes it just after it was made.
SHORT = 60.0


@contextlib.contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """An empty folder beside a file that is to be made, on its disk and gone
    afterwards; those that killed processes have left there are removed."""
    with contextlib.suppress(OSError):
        for left in list(out.parent.glob(f"{EXPORT}{_kernel()}-*")):
            if left.is_dir() and not left.is_symlink() and _age(left) > SHORT and _is_left(left, EXPORT):
                shutil.rmtree(left, ignore_errors=True)
                _lock_file(left).unlink(missing_ok=True)
    folder, held = _make_held(out.parent, EXPORT)
    try:
        yield folder
    finally:
        _remove_held(folder, held)


def _make_held(parent: Path, prefix: str = "") -> tuple[Path, int]:
    """A new folder, and the descriptor by which this process holds it."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{prefix}{_kernel()}-"))
    held = locks.open_folder(folder, _lock_file(folder))
    with contextlib.suppress(OSError):  # some network file systems have no locks; see `_is_left`
        locks.lock(held)
    return folder, held


def _remove_held(folder: Path, held: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(held)
    _lock_file(folder).unlink(missing_ok=True)


def _kernel() -> str:
    """What tells whose locks this process sees: this machine since its start, in all
    its containers."""
    import socket  # here, as what follows it: who reads only need not wait for them

    from suite.results.holder import boot_id

    return hashlib.sha256((boot_id() or socket.gethostname()).encode()).hexdigest()[:8]


# Name of the file, or its end, that is locked for a folder where the system opens no folders.
_LOCK = ".lock"


def _lock_file(folder: Path) -> Path:
    return folder.with_suffix(_LOCK)


def _is_left(folder: Path, prefix: str = "") -> bool:
    """Whether a folder that `_make_held` has made belongs to no process that lives."""
    try:
        descriptor = locks.open_folder(folder, _lock_file(folder))
    except OSError:
        return False
    try:
        locks.lock(descriptor, wait=False)
        seen = folder.name.startswith(f"{prefix}{_kernel()}-")
    except BlockingIOError:
        return False
    except OSError:
        seen = False
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):  # what it held is just being moved
        return seen or min(map(_age, (folder, *folder.rglob("*")))) > LONG
    return False


def _is_on_read_only_disk(folder: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _age(path: Path) -> float:
    """Seconds since a file or folder was last changed, by the clock that file systems
    use too."""
    return datetime.now(UTC).timestamp() - path.lstat().st_mtime
