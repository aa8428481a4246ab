"""Locks by POSIX's calls and, with an imitation of its module, by Windows's; what other systems lack, hidden."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from suite import env, files
from suite.grid import claims, workers
from suite.grid.machine import MachineLock
from suite.inference import processes
from suite.results import holder, locks
from suite.results.store import Store

ROOT = Path(__file__).parents[2]

# Windows's locks of bytes, among the descriptors of one process.
MSVCRT = """
import os
LK_NBLCK, LK_UNLCK = 2, 0
taken = []

def locking(descriptor, mode, count):
    found, first = os.fstat(descriptor), os.lseek(descriptor, 0, os.SEEK_CUR)
    file = found.st_dev, found.st_ino
    last = first + count
    if mode == LK_UNLCK:
        taken.remove((file, descriptor, first, last))
        return
    for entry in list(taken):
        try:
            held = os.fstat(entry[1])
        except OSError:
            held = None
        if held is None or (held.st_dev, held.st_ino) != entry[0] or (entry[0], entry[1]) == (file, descriptor):
            taken.remove(entry)  # closed since, which unlocks
        elif entry[0] == file and entry[2] < last and first < entry[3]:
            raise PermissionError(13, "Permission denied")
    taken.append((file, descriptor, first, last))
"""

# What Windows lacks, gone from a process whose libraries, which go by the system that they are on, are loaded already.
# Of its children only those that the suite starts as on Windows.
ELSEWHERE = f"""
import asyncio, concurrent.futures, multiprocessing, os, pathlib, shutil, signal, socket, subprocess, sys, tempfile
import types
import click, onnx, onnxruntime, onnxscript, msgspec, PIL.Image, psutil, rich.console, safetensors.torch, scipy.stats
import sklearn.datasets, tabulate, timm, torch, torch.onnx, torchvision
import multiprocessing.connection, multiprocessing.popen_spawn_posix, multiprocessing.spawn
import onnxruntime.quantization, torch._dynamo, torch.export, torch.utils.data

subprocess.Popen.kill = subprocess.Popen.terminate
multiprocessing.popen_spawn_posix.Popen.kill = multiprocessing.popen_spawn_posix.Popen.terminate
multiprocessing.get_all_start_methods = lambda: ["spawn"]
shutil._use_fd_functions = False
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "triton"):
    sys.modules[name] = None
sys.modules["msvcrt"] = types.ModuleType("msvcrt")
exec({MSVCRT!r}, vars(sys.modules["msvcrt"]))
for name in (
    "chown fchmod fchown fork forkpty getegid geteuid getgid getgroups getloadavg getpgid getuid killpg lchown link "
    "mkfifo mknod nice pread pwrite register_at_fork sched_getaffinity sched_setaffinity setsid statvfs sync sysconf "
    "uname wait3 wait4 O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK"
).split():
    delattr(os, name)
windows = {{"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}}
for name in [name for name in vars(signal) if name.startswith("SIG") and name not in windows]:
    delattr(signal, name)
for name in ("alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigwait"):
    delattr(signal, name)

from suite.results import holder
holder._LINUX = False
import contextlib, io, json
from suite.__main__ import main
found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["suite", *arguments]
    code, out, err = None, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


def elsewhere(*commands: list[str]) -> list[tuple[int, str, str]]:
    """Call the command line without what Windows lacks; returns exit code, standard output and standard error of each
    command."""
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, json.dumps(commands)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


@pytest.mark.full
def test_without_what_windows_lacks_help_lists_and_published_tables_are_the_same(
    suite: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = ROOT / "results" / "published" / "amd-epyc-2-cores"
    commands = [["--help"], ["list", "tables"], ["show", "--table", "2", "--results", str(published)]]
    for arguments, (code, out, err) in zip(commands, elsewhere(*commands), strict=True):
        assert code == 0, err
        usual = suite(*arguments)  # type: ignore[operator]
        # The first line of help names the program, as which pytest may have been started.
        assert (code, out.split("[OPTIONS]")[-1], err) == (usual[0], usual[1].split("[OPTIONS]")[-1], usual[2])


@pytest.mark.full
def test_without_what_windows_lacks_a_row_is_trained_exported_and_checked(tmp_path: Path) -> None:
    row = ["--table", "2", "--depth", "20", "--rows", "resnet20_relu_bn@cifar10", "--steps", "2"]
    # Not timed: the standard library's own start of a process on Linux takes what Windows lacks.
    options = ["--compile", "never", "--stages", "train,export,parity", "--results", str(tmp_path / "results")]
    ((code, out, err),) = elsewhere(["run", *row, *options])
    assert code == 0, err
    assert "| BatchNorm | ReLU " in out
    store = Store(tmp_path / "results")
    (parity,) = store.records("parity")
    assert parity.result["passed"]
    assert not list((tmp_path / "results" / "work").iterdir())
    assert not list((tmp_path / "results" / "claims").iterdir())


@pytest.fixture(params=["posix", "windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each form of locks."""
    if request.param == "windows":
        module = types.ModuleType("msvcrt")
        exec(MSVCRT, vars(module))
        monkeypatch.setitem(sys.modules, "msvcrt", module)
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.delattr(os, "O_DIRECTORY")
    return str(request.param)


def test_a_lock_is_shared_or_had_alone_by_descriptors_that_only_read(system: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    first, second, third = (os.open(path, os.O_RDONLY) for _ in range(3))
    locks.lock(first, shared=True)
    locks.lock(second, shared=True, wait=False)
    with pytest.raises(BlockingIOError):
        locks.lock(third, wait=False)
    assert path.read_text() == "content"
    locks.unlock(first)
    with pytest.raises(BlockingIOError):
        locks.lock(third, wait=False)
    os.close(second)
    locks.lock(third, wait=False)
    for shared in (False, True):
        with pytest.raises(BlockingIOError):
            locks.lock(first, shared, wait=False)
    locks.unlock(third)
    locks.lock(first)
    for descriptor in (first, third):
        os.close(descriptor)


def test_a_stage_at_work_keeps_its_folder_and_a_timing_the_machine(system: str, tmp_path: Path) -> None:
    store, lock = Store(tmp_path / "results"), tmp_path / "machine.lock"
    with store.workspace() as folder:
        store.sweep()
        assert folder.is_dir()
        left = folder.with_name(f"{folder.name}x")
        left.mkdir()
        store.sweep()
        assert folder.is_dir()
        assert not left.exists()
    store.sweep()
    assert not list((tmp_path / "results" / "work").iterdir())

    class Waits(Exception):  # noqa: N818 - no error, but what ends a wait
        pass

    def say(text: str) -> None:
        raise Waits(text)

    waited = pytest.raises(Waits, match=r"^waiting for .*; .*, process \d+ of user .*, since \d")
    with MachineLock(say, lock).shared(), MachineLock(say, lock).shared(), waited:
        MachineLock(say, lock).alone().__enter__()
    with MachineLock(say, lock).alone(), waited:
        MachineLock(say, lock).shared().__enter__()


def test_a_claim_on_a_file_system_without_links_has_one_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: object, target: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    written, path = tmp_path / "written", tmp_path / "claim"
    written.write_text("mine")
    assert claims._put(written, path)
    assert path.read_text() == "mine"
    assert not claims._put(written, path)


def test_processes_are_told_apart_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "_LINUX", False)
    monkeypatch.setattr(holder.uuid, "getnode", lambda: 0x2FC00000001)
    mine = holder.Holder.this()
    assert mine.is_here
    assert mine.is_alive
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    theirs = holder.Holder(mine.host, mine.boot, child.pid, holder._start_of(child.pid))
    assert theirs.is_alive
    assert not holder.Holder(mine.host, mine.boot, child.pid, mine.born).is_alive
    child.kill()
    child.wait()
    assert not theirs.is_alive
    monkeypatch.setattr(holder.uuid, "getnode", lambda: 1 << 40)  # drawn, where there is no network
    assert not holder.Holder.this().is_here


def test_a_system_that_cannot_fork_starts_processes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.fork_context(["json"]).get_start_method() == "forkserver"
    monkeypatch.setattr(processes.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert processes.fork_context(["json"]).get_start_method() == "spawn"


def test_without_cores_to_choose_and_modes_to_set_nothing_is_chosen_or_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(env.psutil.Process, "cpu_affinity")
    assert len(env.usable_cores()) == os.cpu_count()
    workers._take_share(0, 2)
    monkeypatch.delattr(os, "chown")
    files.write(tmp_path / "new" / "file", b"content")
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
