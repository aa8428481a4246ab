"""Faults of the machine: kills at random moments, full and read-only disks, files cut short; and the table of them all.

A handful of kills for each kind of work; with `--nightly` 100.
"""

import ast
import errno
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from suite.errors import InputError
from suite.export import onnxfile
from suite.inference import deploy, networks
from suite.inference.latency import Protocol, Request, measure
from suite.report import page
from suite.results import compact
from suite.results.folder import folder_beside
from suite.results.store import Store
from suite.results.verify import verify
from suite.training import checkpoint

TESTS = Path(__file__).parent
Suite = Callable[..., tuple[int, str, str]]
INPUTS: dict[str, Any] = {"model": "resnet20_relu_bn", "seed": 0}
# Kills of each kind of work.
USUAL, NIGHTLY = 4, 100


def test_every_fault_of_the_table_has_its_tests() -> None:
    text = (TESTS.parent / "docs" / "reliability.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and not re.match(r"\|[-| ]+\|$", line)]
    rows = [row for row in rows if not row.startswith("| fault |")]
    assert len(rows) > 40
    defined = {
        path.stem: {node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}
        for path in TESTS.rglob("test_*.py")
    }
    for row in rows:
        named = re.findall(r"`(test_\w+)\.(test_\w+)`", row)
        assert named, f"no test backs: {row}"
        for module, name in named:
            assert name in defined[module], f"{module}.{name}"


# --- Kills ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return NIGHTLY if request.config.getoption("--nightly") else USUAL


def killed(work: Callable[..., None], *arguments: Any, within: float) -> None:
    """Start work in a fresh process, and kill it outright some time within so many seconds of its beginning."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["suite.inference.deploy", "suite.training.checkpoint", "suite.results.compact", "suite.inference.parity"]
    )
    begun = context.Event()
    process = context.Process(target=_begin, args=(begun, work, *arguments))
    process.start()
    assert begun.wait(120)
    time.sleep(random.uniform(0, within))
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)


def _begin(begun: Any, work: Callable[..., None], *arguments: Any) -> None:
    begun.set()
    work(*arguments)


def put_many(root: Path) -> None:
    store = Store(root)
    for seed in range(1000):
        with store.workspace() as folder:
            (folder / "weights").write_bytes(bytes(200_000))
            (folder / "config").write_text(str(seed))
            store.put("other", INPUTS | {"seed": seed}, {"value": seed}, {}, {}, folder)
        store.fail("other", INPUTS | {"seed": -1}, "no reason")


def test_kills_while_results_are_written_leave_each_of_them_whole_or_absent(store: Store, kills: int) -> None:
    kept = 0
    for _ in range(kills):
        killed(put_many, store.root, within=0.5)
        for problem in verify(store.root).problems:
            assert "unexpected" in problem, problem
        records = store.records("other")
        assert len(records) >= kept, "a record was lost"
        kept = len(records)
        for record in records:
            assert store.get("other", record.inputs) == record
            assert store.artifact(record, "config").read_text() == str(record.result["value"])
        assert [failure.reason for failure in store.failures()] in ([], ["no reason"])
    assert kept > 0


def rewrite_all(root: Path) -> None:
    compact.rewrite(Store(root))


def test_kills_while_records_are_written_anew_leave_each_of_them_in_one_of_two_forms(store: Store, kills: int) -> None:
    timed = {"export": "e", "machine": "m", "runtime": "onnxruntime", "provider": "cpu"}
    rounds = [[(10**7 + run) / 1e9 for run in range(100)] for _ in range(24)]
    whole = {"rounds": rounds, "samples": [seconds for each in rounds for seconds in each]}
    inputs = [INPUTS | timed | {"batch_size": size} for size in range(1, 41)]
    for each in inputs:
        store.put("latency", each, whole, {}, {})
    for _ in range(kills):
        killed(rewrite_all, store.root, within=0.5)
        found = [store.get("latency", each) for each in inputs]
        assert all(record and {"samples", "rounds_ns"} & set(record.result) for record in found)
    rewrite_all(store.root)
    for record in store.records("latency"):
        assert set(record.result) == {"rounds_ns"}


def checkpoint_many(folder: Path) -> None:
    for number in range(1, 1000):
        checkpoint.write(folder, number, {"weight": torch.full((100_000,), float(number))}, {"number": number})


def test_kills_while_checkpoints_are_written_leave_a_sound_one(tmp_path: Path, kills: int) -> None:
    for kill in range(kills):
        folder = tmp_path / str(kill)
        checkpoint.write(folder, 0, {"weight": torch.zeros(1)}, {"number": 0})
        killed(checkpoint_many, folder, within=0.5)
        found = checkpoint.read(folder, lambda text: pytest.fail(text))
        assert found is not None
        assert (found[0]["weight"] == found[1]["number"]).all()
        shutil.rmtree(folder)


def export_once(out: Path) -> None:
    with networks.find_network("resnet20_relu_bn") as of:
        deploy.export(of, out, "fp32", "cpu", False, {})


@pytest.mark.full
def test_kills_while_a_file_is_exported_leave_the_one_before_it_or_all_of_the_new_one(
    tmp_path: Path, kills: int
) -> None:
    out = tmp_path / "net.onnx"
    export_once(out)
    whole = len(out.read_bytes())
    for _ in range(kills):
        out.write_bytes(b"before")
        killed(export_once, out, within=6)
        assert out.read_bytes() == b"before" or (len(out.read_bytes()) == whole and onnxfile.read(out))


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_export_that_is_ended_or_whose_terminal_is_closed_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    pty = pytest.importorskip("pty", reason="this system has no terminals of this kind")
    child, master = pty.fork()
    if child == 0:
        command = [sys.executable, "-m", "suite", "export", "resnet20_relu_bn", str(tmp_path / "net.onnx")]
        os.execv(sys.executable, command)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".export-*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number == signal.SIGTERM:
        os.kill(child, number)
    else:
        os.close(master)
    _, state = os.waitpid(child, 0)
    if number == signal.SIGTERM:
        os.close(master)
    assert os.waitstatus_to_exitcode(state) == 128 + number
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time, pathlib
from suite.results.folder import folder_beside
with folder_beside(pathlib.Path(sys.argv[1]) / "net.onnx") as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_killed_exports_have_left_is_removed_by_the_next_one_and_what_a_living_one_is_at_stays(
    tmp_path: Path,
) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        killed, living = (Path((each.stdout.readline() if each.stdout else "").strip()) for each in started)
        started[0].kill()
        started[0].wait()
        theirs = tmp_path / ".export-of-mine"
        theirs.mkdir()
        with folder_beside(tmp_path / "net.onnx"):
            assert killed.is_dir()  # of somebody who may just be about to hold it
        for each in (killed, living, theirs):
            os.utime(each, (0, 0))
        with folder_beside(tmp_path / "net.onnx") as ours:
            assert set(tmp_path.iterdir()) == {living, theirs, ours}
        assert set(tmp_path.iterdir()) == {living, theirs}
    finally:
        for each in started:
            each.kill()
            each.communicate()


def check_once(path: Path) -> None:
    deploy.parity(str(path), None, {}, 100, "cpu")


def time_once(path: Path) -> None:
    protocol = Protocol(rounds=100, min_seconds=0.05, min_runs=1, max_runs=5, warmup=1)
    measure([Request("onnxruntime", str(path), "cpu", 1, 32, 1, protocol)])


@pytest.mark.full
@pytest.mark.parametrize(("work", "within"), [(check_once, 4.0), (time_once, 3.0)])
def test_kills_while_a_file_is_checked_or_timed_leave_it_alone_and_no_process_behind(
    tmp_path: Path, kills: int, work: Callable[[Path], None], within: float
) -> None:
    out = tmp_path / "net.onnx"
    export_once(out)
    whole = out.read_bytes()
    for _ in range(kills):
        killed(work, out, within=within)
        assert out.read_bytes() == whole
        deadline = time.monotonic() + 20
        while left := _processes("suite.inference.timing"):
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def _processes(module: str) -> list[str]:
    """Processes of this module whose parent is gone."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(re.search(r"PPid:\s+(\d+)", (place / "status").read_text())[1])  # type: ignore[index]
            if module.encode() in (place / "cmdline").read_bytes().split(b"\0") and parent == 1:
                found.append(place.name)
        except OSError:
            continue
    return found


@pytest.mark.full
def test_kills_in_the_midst_of_whole_runs_lose_no_cell_and_leave_none_twice(tmp_path: Path, kills: int) -> None:
    root = tmp_path / "results"
    row = ["--table", "2", "--depth", "20", "--rows", "resnet20_relu_bn@cifar10", "--steps", "3", "--compile", "never"]
    row += ["--batch-sizes", "1", "--runtimes", "onnxruntime"]
    command = [sys.executable, "-m", "suite", "run", *row, "--results", str(root)]
    kept: set[Path] = set()
    for kill in range(kills // 2):
        # A run takes about ten seconds: three to begin, one or two for each of its stages.
        run = subprocess.Popen(
            [*command, "--seeds", str(1 + kill // 2)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            said = run.communicate(timeout=random.uniform(2, 14))[1]
            assert run.returncode == 0, said.decode()
        except subprocess.TimeoutExpired:
            run.kill()
            run.communicate()
        found = verify(root)
        assert all("unexpected" in problem for problem in found.problems), found.problems
        records = set(root.glob("records/*/*.json"))
        assert records >= kept, "a record was lost"
        kept = records
    done = subprocess.run([*command, "--seeds", str(kills // 4)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Files aside, `.NAME.tmp`, that a kill may leave are no records.
    counts = {folder.name: len(list(folder.glob("*.json"))) for folder in (root / "records").iterdir()}
    # One seed is timed.
    assert counts == dict.fromkeys(("train", "export", "parity"), kills // 4) | {"latency": 1, "peak": 1}
    assert not list(root.glob("claims/*.json"))


# --- Disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, left: int) -> None:
    """Leave so many bytes of a disk free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free
    ballast.write_bytes(bytes(free - left))


def complaint(work: Callable[[], object]) -> str:
    """What work says of itself when it does not succeed."""
    try:
        work()
    except (InputError, OSError) as error:
        return str(error)
    return ""


def test_a_report_that_cannot_be_written_leaves_no_folder_that_was_made_for_it(
    store: Store, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("other", INPUTS, {"value": 1}, {}, {})

    def write_nothing(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(page, "write_file", write_nothing)
    (store.root / "empty").mkdir()
    for wanted in (store.root / "pages" / "today", store.root / "empty"):
        code, _, err = suite("report", "--results", str(store.root), "--out", str(wanted))
        assert (code, err) == (2, f"error: {wanted}: cannot write the report there: No space left on device\n")
    assert {path.name for path in store.root.iterdir()} == {"records", "empty"}


@pytest.mark.parametrize("pages", range(14))
def test_a_full_disk_at_any_write_leaves_results_as_they_were_or_complete(disk: Path, pages: int) -> None:
    store = Store(disk / "results")
    before = store.put("other", INPUTS | {"seed": 9}, {"value": 9}, {}, {})

    def put() -> None:
        with store.workspace() as folder:
            (folder / "weights").write_bytes(bytes(20_000))
            store.put("other", INPUTS, {"value": 1}, {}, {}, folder)

    def save() -> None:
        checkpoint.write(store.root / "checkpoints" / "key", 1, {"weight": torch.zeros(2000)}, {})

    fill(disk, pages * 4096)
    said = complaint(put)
    assert "No space left on device" in said if said else store.get("other", INPUTS)
    said = complaint(lambda: store.fail("other", INPUTS | {"seed": 3}, "a reason"))
    assert said in ("", f"--results {store.root}: cannot write there: No space left on device")
    said = complaint(save)
    assert "00000001.safetensors" in said if said else list(store.root.glob("checkpoints/*/*.safetensors"))
    assert store.get("other", INPUTS | {"seed": 9}) == before
    assert [problem for problem in verify(store.root).problems if "unexpected" not in problem] == []
    assert list(store.root.glob("work/*")) == []


def test_a_report_that_does_not_fit_the_disk_is_one_line_and_the_one_before_it_stays(disk: Path, suite: Suite) -> None:
    (disk / "results").mkdir()
    (disk / "out").mkdir()
    before = f"<title>mine{page.MARK.decode()}"
    (disk / "out" / "index.html").write_text(before)
    code, out, err = suite("report", "--results", str(disk / "results"), "--out", str(disk / "out"))
    assert (code, out) == (2, "")
    assert err == f"error: {disk / 'out'}: cannot write the report there: No space left on device\n"
    assert (disk / "out" / "index.html").read_text() == before
    assert [path.name for path in (disk / "out").rglob("*")] == ["index.html"]


def test_a_report_cut_short_is_written_anew(store: Store, suite: Suite) -> None:
    store.put("other", INPUTS, {"value": 1}, {}, {})
    command = ("report", "--results", str(store.root))
    assert suite(*command)[0] == 0
    whole = {path: path.stat().st_size for path in (store.root / "report").rglob("*") if path.is_file()}
    for path, size in whole.items():
        os.truncate(path, size // 2)
    assert suite(*command)[0] == 0
    assert {path: path.stat().st_size for path in whole} == whole


def test_an_export_that_does_not_fit_the_disk_is_one_line_and_leaves_nothing(disk: Path, suite: Suite) -> None:
    out = disk / "net.onnx"
    out.write_text("before")
    code, _, err = suite("export", "resnet20_relu_bn", str(out))  # 1.1 MB
    assert code == 2
    said = f"error: no space left in the folder {disk}: free some, or choose another\n"
    assert err == f"export resnet20_relu_bn ...\n{said}"
    assert [path.name for path in disk.iterdir()] == ["net.onnx"]
    assert out.read_text() == "before"


@pytest.mark.full
def test_a_run_whose_files_may_not_grow_says_so_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    limit = 500_000  # bytes: less than the weights
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "import suite.__main__ as m; m.main()"
    )
    row = ["--table", "2", "--depth", "20", "--rows", "resnet20_relu_bn@cifar10", "--steps", "1", "--compile", "never"]
    done = subprocess.run(
        [sys.executable, "-c", code, "run", *row, "--batch-sizes", "1", "--results", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert verify(tmp_path / "results").problems == []
    assert not (tmp_path / "results" / "records").exists()


def test_a_folder_that_is_read_only_is_read_and_named_when_it_must_be_written(
    disk: Path, suite: Suite, tmp_path: Path
) -> None:
    store = Store(disk / "results")
    store.put("other", INPUTS, {"value": 1}, {}, {})
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    results = str(store.root)
    assert suite("show", "--table", "2", "--results", results)[0] == 0
    assert suite("verify", "--results", results)[0] == 0
    code, out, err = suite("report", "--results", results)
    assert (code, out) == (2, "")
    assert err == (
        f"error: {store.root / 'report'}: cannot write the report there: Read-only file system; "
        "to have it elsewhere: report --out FOLDER\n"
    )
    assert suite("report", "--results", results, "--out", str(tmp_path / "page"))[0] == 0
    assert suite("clean", "--dry-run", "--results", results)[0] == 0
    with pytest.raises(InputError, match=f"--results {results}: cannot write there: Read-only file system"):
        store.put("other", INPUTS | {"seed": 1}, {"value": 1}, {}, {})
    with pytest.raises(InputError, match=f"--results {results}: cannot write there: Read-only file system"):
        store.fail("other", INPUTS, "a reason")
    with pytest.raises(InputError, match="cannot write there: Read-only"), store.workspace():
        pass
    with pytest.raises(InputError, match="which lies on a disk that is read only; use another folder"):
        store.check()


def test_verify_ends_with_1_and_a_line_for_each_problem(store: Store, suite: Suite) -> None:
    store.put("other", INPUTS, {"value": 1}, {}, {})
    results = str(store.root)
    code, out, _ = suite("verify", "--results", results)
    assert (code, out) == (0, "read 1 record and no files: no problems\n")
    (path,) = (store.root / "records" / "other").iterdir()
    path.write_text(path.read_text().replace('"value": 1', '"value": 2'))
    (path.parent / "\x1b[2J.tmp").write_text("")
    code, out, _ = suite("verify", "--results", results)
    assert code == 1
    assert out.splitlines() == [
        f"{path.parent}/\\x1b[2J.tmp: unexpected; delete it",
        f"{path}: not a record (changed since it was written); delete it to measure again",
        "read no records and no files: 2 problems",
    ]
    assert suite("verify", "--results", f"{results}/none")[2] == f"error: --results {results}/none: no such folder\n"


# --- Habits ---------------------------------------------------------------------------------------------------------


def test_nothing_but_the_restricted_reader_of_cifar_unpickles() -> None:
    forbidden = re.compile(r"\bpickle\b|\btorch\.load\b|\bmarshal\b|\bshelve\b|\bdill\b|allow_pickle|local-dir|hf-hub")
    for folder in ("suite", "models"):
        for path in (TESTS.parent / folder).rglob("*.py"):
            found = [
                node
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.Import | ast.ImportFrom | ast.Attribute | ast.keyword)
                and forbidden.search(ast.unparse(node))
                and ast.unparse(node) != "allow_pickle=False"
            ]
            assert not found or path.name == "cifar.py", f"{path}: {[ast.unparse(node) for node in found]}"


def test_durations_are_of_a_clock_that_nobody_sets() -> None:
    for path in (TESTS.parent / "suite").rglob("*.py"):
        assert not re.search(r"\btime\.time\(|from time import .*\btime\b", path.read_text("utf-8")), path


@pytest.mark.full
def test_a_process_without_a_network_misses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "attempts"
    (tmp_path / "results").mkdir()
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event == 'socket.getaddrinfo' or event == 'socket.connect' and isinstance(arguments[1], tuple):\n"
        f"        open({str(log)!r}, 'a').write(f'{{event}} {{arguments}}\\n')\n"
        "        raise OSError('no network')\n"
        "sys.addaudithook(refuse)\n"
    )
    code = (
        "import sys, suite.__main__ as m\n"
        "def call(*arguments):\n"
        "    sys.argv = ['suite', *arguments]\n"
        "    try: m.main()\n"
        "    except SystemExit as e: assert not e.code, arguments\n"
        "net, results = sys.argv[1:]\n"
        "call('export', 'resnet20_relu_bn', net)\n"
        "call('parity', net, '--images', '20')\n"
        "call('explain', net)\n"
        "call('show', '--table', '2', '--results', results)\n"
        "call('list', 'models')\n"
        "from suite.inference.latency import *\n"
        "protocol = Protocol(1, 0, 1, 1, 0)\n"
        "(answer,) = measure([Request('onnxruntime', net, 'cpu', 1, 32, 1, protocol)])\n"
        "assert answer.rounds_ns\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "net.onnx"), str(tmp_path / "results")],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
    probe = "import socket; socket.create_connection(('127.0.0.1', 9))"
    refused = subprocess.run(
        [sys.executable, "-c", probe], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, check=False
    )
    assert b"no network" in refused.stderr, "the lock on the network does not hold"
