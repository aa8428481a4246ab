"""Runs as a user meets them: from end to end, interrupted, killed, in packs; and commands on one network."""

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from suite.files import read_if_file
from suite.grid.plan import RunOptions, plan
from suite.results.store import Store

Run = Callable[..., tuple[int, str, str]]
ROW = ("--table", "2", "--depth", "20", "--rows", "resnet20_crelu_bn@cifar10")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A results folder after one quick row, and how the command ended."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "suite", "run", *ROW, "--steps", "2", "--keep", "--results", str(folder)]
    return folder, subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_trains_exports_checks_times_and_prints_the_table(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = finished
    assert done.returncode == 0, done.stderr
    assert "ResNet-20" in done.stdout.splitlines()[0]
    (row,) = [line for line in done.stdout.splitlines() if "| CReLU " in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3:5] == ["5.72", "quick [1]"]
    assert all(cells)
    assert len(row) <= 100
    assert "quick run, not comparable with the paper" in done.stdout
    stages = {path.name: len(list(path.iterdir())) for path in (folder / "records").iterdir()}
    assert stages == {"train": 1, "export": 1, "parity": 1, "latency": 1, "peak": 1}
    for path in (folder / "records" / "latency").iterdir():
        timed = json.loads(path.read_text())["result"]
        assert len(timed["rounds_ns"]) == 5
        assert not {"rounds", "samples"} & set(timed), "each run is kept once"
    parity = json.loads(next((folder / "records" / "parity").iterdir()).read_text())["result"]
    assert parity["passed"]
    assert parity["max_logit_difference"] <= 1e-4 * parity["scale"]
    assert list((folder / "work").iterdir()) == []


def test_piped_progress_is_a_line_for_each_stage(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    said = finished[1].stderr.splitlines()
    lines = [line for line in said if line.startswith("[")]
    (trained,) = [line for line in said if line.endswith(" images per second")]
    assert trained.startswith("resnet20_crelu_bn on digits10: train: quick, 2 of 157 steps of an epoch, ")
    assert not any("train error" in line for line in said)
    told = [line for line in said if line.startswith("resnet20_crelu_bn on digits10: error quick (paper 5.72), ONNX w")]
    assert len(told) == 2, "when it is checked, and when it is timed"
    assert told[1].startswith(f"{told[0]}, cpu ")
    assert told[1].endswith(" ms")
    assert len(lines) == 5
    assert lines[0].startswith("[1/5] resnet20_crelu_bn on digits10: train: done")
    assert lines[-1].startswith("[5/5] resnet20_crelu_bn on digits10: latency onnxruntime cpu batch 1: done")


def test_the_same_command_again_does_no_work_twice(
    finished: tuple[Path, subprocess.CompletedProcess[str]], suite: Run
) -> None:
    folder, done = finished
    with Store(folder).workspace() as work:
        left = work.with_name(f"{work.name}-of-a-run-that-was-killed")
    left.mkdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    code, out, err = suite("run", *ROW, "--steps", "2", "--keep", "--results", str(folder))
    assert (code, err) == (0, f"report: {folder / 'report' / 'index.html'}\n")
    assert out == done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before
    assert not left.exists()


def test_a_complete_run_whose_report_cannot_be_written_prints_its_table(
    finished: tuple[Path, subprocess.CompletedProcess[str]], suite: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("suite.report.page.write", refuse)
    folder, done = finished
    code, out, err = suite("run", *ROW, "--steps", "2", "--keep", "--results", str(folder))
    assert (code, out) == (0, done.stdout)
    assert err == (
        f"no report: {folder / 'report'}: cannot write the report there: Read-only file system; "
        "to have it elsewhere: report --out FOLDER\n"
    )


@pytest.mark.parametrize("hiding", ["models.py", "models/__init__.py"])
def test_another_package_called_models_is_named(hiding: str, tmp_path: Path) -> None:
    path = tmp_path / hiding
    path.parent.mkdir(exist_ok=True)
    path.touch()
    command = [sys.executable, "-m", "suite", "list", "models"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {path}: this package or module called models hides this project's in ")
    assert done.stderr.count("\n") == 1
    command = [sys.executable, "-c", "from suite import api"]
    imported = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert imported.stderr.splitlines()[-1] == f"suite.errors.InputError: {done.stderr[len('error: ') : -1]}"


def test_show_prints_what_run_printed(finished: tuple[Path, subprocess.CompletedProcess[str]], suite: Run) -> None:
    folder, done = finished
    assert suite("show", *ROW, "--results", str(folder)) == (0, done.stdout, "")


def test_show_speaks_csv_and_json(finished: tuple[Path, subprocess.CompletedProcess[str]], suite: Run) -> None:
    _, text, _ = suite("show", *ROW, "--results", str(finished[0]), "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(text))
    _, text, _ = suite("show", *ROW, "--results", str(finished[0]), "--format", "json")
    (same,) = json.loads(text)["rows"]
    assert row["top1"] == same["top1"] == "quick"
    csv_ms, json_ms = float(row["onnxruntime_cpu_b1_p50_ms"]), same["onnxruntime_cpu_b1_p50_ms"]
    assert csv_ms == float(f"{json_ms:.12g}") > 0
    assert "onnxruntime_cpu_b8_p50_ms" not in row
    _, text, _ = suite("show", *ROW, "--results", str(finished[0]), "--format", "csv", "--columns", "speed,macs")
    (row,) = csv.DictReader(io.StringIO(text))
    assert {"macs", "onnxruntime_cpu_b1_images_per_s"} < set(row)
    assert not {"top1", "onnxruntime_cpu_b1_p50_ms"} & set(row)


def test_who_forgets_the_depth_is_told_which(
    finished: tuple[Path, subprocess.CompletedProcess[str]], suite: Run
) -> None:
    code, out, err = suite("show", "--table", "2", "--results", str(finished[0]))
    assert code == 0
    assert "resnet20" not in out
    assert err == f"{finished[0]} has runs of ResNet-20 that this table leaves out: give --depth 20 to see them\n"
    assert suite("show", "--table", "2", "--depth", "20", "--results", str(finished[0]))[2] == ""
    code, _, err = suite("show", "--table", "2", "--rows", "resnet20_*")
    assert code == 2
    assert "matches no row of table 2 with ResNet-110, but some with ResNet-20: add --depth 20" in err


@pytest.mark.full
def test_a_stage_that_fails_is_shown_and_the_others_go_on(tmp_path: Path) -> None:
    # The second row's export is broken by a weights file that is not there any more.
    code = (
        "import sys, suite.export.trained as t, suite.__main__ as m\n"
        "whole = t.save\n"
        "def save(model, *rest):\n"
        "    if 'CReLU' in str(model): raise MemoryError('no room')\n"
        "    return whole(model, *rest)\n"
        "t.save = save\n"
        "m.main()\n"
    )
    rows = "resnet20_relu_bn@cifar10,resnet20_crelu_bn@cifar10"
    options = ["--steps", "1", "--batch-sizes", "1", "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "--table", "2", "--depth", "20", "--rows", rows, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "train failed on digits10: MemoryError: no room" in done.stdout
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "records" / "latency").iterdir())) == 1


@pytest.mark.full
def test_packed_rows_are_as_if_run_alone_and_one_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    code = (
        "import sys, suite.export.trained as t, suite.__main__ as m\n"
        "whole = t.save\n"
        "def save(model, *rest):\n"
        "    if 'NormPropConv2d' in str(model): raise MemoryError('no room')\n"
        "    return whole(model, *rest)\n"
        "t.save = save\n"
        "m.main()\n"
    )
    rows = "resnet20_relu_bn@cifar10,resnet20_relu_np2@cifar10,resnet20_crelu_bn@cifar10"
    row = ["--table", "2", "--depth", "20", "--steps", "2", "--stages", "train"]
    command = [sys.executable, "-c", code, "run", *row, "--rows", rows]
    done = [
        subprocess.run(
            [*command, "--results", str(tmp_path / pack), "--pack", pack], capture_output=True, text=True, check=False
        )
        for pack in ("1", "3")
    ]
    assert [each.returncode for each in done] == [1, 1], done[1].stderr
    assert "resnet20_relu_np2 on digits10: train: failed" in done[1].stderr
    records = [
        {path.name: json.loads(path.read_text()) for path in (tmp_path / pack / "records/train").iterdir()}
        for pack in ("1", "3")
    ]
    assert len(records[0]) == 2
    assert {name: record["result"] for name, record in records[0].items()} == {
        name: record["result"] for name, record in records[1].items()
    }
    assert {record["timing"]["packed"] for record in records[1].values()} == {3}


@pytest.mark.full
def test_trainings_alone_and_then_the_rest_are_all_that_one_command_does(tmp_path: Path, suite: Run) -> None:
    arguments = ("run", *ROW, "--steps", "2", "--results", str(tmp_path))
    Store(tmp_path).fail("parity", {"model": "resnet20_crelu_bn"}, "MemoryError: of another day")
    code, out, err = suite(*arguments, "--stages", "train")
    assert code == 0
    assert "[1/1] resnet20_crelu_bn on digits10: train: done" in err
    (row,) = [line for line in out.splitlines() if "| CReLU " in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4] == "quick [1]"
    assert set(cells[5:]) <= {"[2]", "[3]"}
    assert "failed" not in out
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["train"]
    assert "done: train 1/1" in suite("status", "--results", str(tmp_path))[1]
    code, out, err = suite(*arguments, "--stages", "parity")
    assert code == 0
    assert "left out: 1 parity; what they need (export) is neither among --stages nor stored" in err.splitlines()
    assert cells[4] in out
    code, out, _ = suite(*arguments, "--stages", "latency,parity,export")
    assert code == 0
    timed: dict[str, Any] = dict(batch_sizes=(1,), runtimes=("onnxruntime",), timings="quick")
    whole = {stage.key for stage in plan(RunOptions(2, tmp_path, rows=ROW[-1:], depth=20, steps=2, **timed)).stages}
    assert {path.stem.split("-")[-1] for path in tmp_path.glob("records/*/*.json")} == whole


@pytest.mark.full
def test_at_the_end_of_its_time_a_run_keeps_a_checkpoint_and_says_what_is_left(
    tmp_path: Path, suite: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    arguments = ("run", *ROW, "--steps", "6", "--batch-sizes", "1", "--results", str(tmp_path))
    arguments += ("--stages", "train,export", "--precision", "float32")
    with monkeypatch.context() as patched:
        patched.setattr("suite.grid.claims.Claims.say", lambda self, key, done, total, note: steps.append(done))
        patched.setattr("suite.interrupt.Deadline.passed", property(lambda self: len(steps) >= 2))
        code, out, err = suite(*arguments, "--time-limit", "8m")
    assert code == 0
    assert steps == [1, 2]
    assert err.splitlines()[-2] == (
        "the time is up: 2 stages are left, in the midst of which is resnet20_crelu_bn on digits10; "
        "the same command goes on from there"
    )
    assert "train: stopped" in err
    assert "waiting for" not in err
    assert "failed" not in out + err
    assert not (tmp_path / "records").exists()
    assert list((tmp_path / "work").iterdir()) == list((tmp_path / "claims").iterdir()) == []
    monkeypatch.setattr("suite.grid.claims.Claims.say", lambda self, key, done, total, note: steps.append(done))
    code, _, err = suite(*arguments, "--time-limit", "8h")
    assert (code, steps) == (0, [1, 2, 3, 4, 5, 6])
    assert "the time is up" not in err


@pytest.mark.full
def test_workers_end_with_the_time_of_the_run(tmp_path: Path) -> None:
    rows = ("--table", "2", "--depth", "20", "--rows", "resnet20_*relu_bn@cifar10", "--epochs", "1000")
    command = [sys.executable, "-m", "suite", "run", *rows, "--compile", "never", "--workers", "2"]
    command += ["--stages", "train", "--time-limit", "15s", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "the time is up: 3 stages are left" in done.stderr
    assert "failed" not in done.stdout + done.stderr
    assert list((tmp_path / "claims").glob("*.json")) == list((tmp_path / "work").glob("*")) == []
    # A network that was begun has its checkpoint.
    assert done.stderr.count(" on digits10") == len(list(tmp_path.glob("checkpoints/*/*.safetensors")))


@pytest.mark.full
def test_a_run_killed_outright_twice_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    code = "import suite.training.fitting as t, suite.__main__ as m\nt.CHECKPOINT_SECONDS = 0.0\nm.main()\n"
    command = [sys.executable, "-c", code, "run", *ROW, "--steps", "8", "--stages", "train"]
    subprocess.run([*command, "--results", str(tmp_path / "whole")], capture_output=True, check=True)
    killed = [*command, "--results", str(tmp_path / "killed")]
    for wanted in (2, 5):
        process = subprocess.Popen(killed, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            # A checkpoint's number is that of the images seen; a step has 32.
            numbers = [int(path.stem) // 32 for path in (tmp_path / "killed").glob("checkpoints/*/*.safetensors")]
            if max(numbers, default=0) >= wanted:
                break
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    subprocess.run(killed, capture_output=True, check=True)
    whole, resumed = (
        json.loads(next((tmp_path / name / "records" / "train").iterdir()).read_text()) for name in ("whole", "killed")
    )
    for field in ("key", "inputs", "result", "artifacts"):
        assert resumed[field] == whole[field]


def test_table_1_shows_the_paper_and_each_reading_of_ours(tmp_path: Path, suite: Run) -> None:
    arguments = ("--table", "1", "--depth", "20", "--steps", "1", "--results", str(tmp_path))
    code, out, _ = suite("run", *arguments, "--rows", "*_relu_bn", "--columns", "all")
    assert code == 0
    (row,) = [line for line in out.splitlines() if "resnet20_relu_bn" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3] == "3.77"
    assert len(cells) == 3 + 4 + 4 + 2
    assert all(cells)
    result = json.loads(next((tmp_path / "records/analyze").iterdir()).read_text())["result"]
    assert cells[4].split()[0] == f"{result['activation']['over_nonzero']['mean']:.2f}"
    assert len(result["blocks"]["delta"]) == 9
    assert len(result["coherence"]["mu"]) == 19


def test_a_model_is_exported_and_checked_end_to_end(tmp_path: Path, suite: Run) -> None:
    out = tmp_path / "net.onnx"
    code, _, err = suite("export", "resnet20_crelu_bn", str(out))
    assert (code, err) == (0, "export resnet20_crelu_bn ...\n")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    code, text, _ = suite("parity", str(out), "--images", "20")
    assert code == 0
    assert "passed" in text
    code, _, err = suite("parity", str(out), "--images", "20", "--weights", "resnet20_relu_bn")
    assert code == 2
    assert f"{out}: was made from resnet20_crelu_bn, not from resnet20_relu_bn" in err


def test_a_file_is_checked_at_the_size_that_it_was_exported_for(tmp_path: Path, suite: Run) -> None:
    out = tmp_path / "net.onnx"
    assert suite("export", "resnet34_relu_bn", str(out), "--size", "96")[0] == 0
    assert suite("parity", str(out), "--images", "4")[0] == 0


def test_normprop_s_promise_and_the_propositions_are_printed(suite: Run) -> None:
    code, out, _ = suite("figure", "normprop")
    assert code == 0
    assert "| layer3.2.conv2 |" in out
    assert "- Proposition 2: the mean of ReLU(x) is 0.3989, 1/sqrt(2 pi); as printed" in out


def test_a_file_of_a_run_says_what_it_was_made_from(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, suite: Run
) -> None:
    (trained,) = (json.loads(path.read_text()) for path in (finished[0] / "records" / "train").iterdir())
    out = tmp_path / "net.onnx"
    assert suite("export", str(finished[0] / "artifacts" / trained["key"]), str(out))[0] == 0
    by_run = next((finished[0] / "artifacts").glob("*/model.onnx"))
    for file in (out, by_run):
        stated = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        assert {"mean", "std", "label_names", "versions"} <= set(stated)
        assert (stated["model"], stated["trained"], stated["run"]) == ("resnet20_crelu_bn", "true", trained["key"])
        assert json.loads(stated["recipe"]) == trained["inputs"]["recipe"]
        assert json.loads(stated["data"]) == trained["inputs"]["data"]
        assert stated["weights_sha256"] == trained["artifacts"]["model.safetensors"]["sha256"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "resnet20_relu_bn", "a.txt"), "a.txt: is to be an ONNX file, whose name ends in .onnx"),
        (("export", "resnet20", "a.onnx"), "resnet20: neither a file or folder that is there nor a model"),
        (("export", "resnet20_relu_bn", "none/a.onnx"), "none/a.onnx: its folder does not exist"),
        (("export", "tests", "a.onnx"), "tests: holds no config.json that can be read"),
        (("parity", "none.onnx"), "none.onnx: no such file"),
        (("parity", "README.md"), "README.md: not an ONNX file"),
        (("figure", "3", "--depth", "20"), "--depth is only for figure 2; figure 3 is of 34-layer networks"),
        (
            ("figure", "normprop", "--depth", "20"),
            "--depth and --data are only for figure 2; normprop is of initial weights",
        ),
        (("figure", "4"), "'4' is not valid; use 2, 3 or normprop"),
    ],
)
def test_bad_input_to_the_commands_on_one_network_is_one_line(
    arguments: tuple[str, ...], said: str, suite: Run
) -> None:
    code, out, err = suite(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


@pytest.mark.full
def test_tensorboard_gets_the_curves_that_the_record_holds(tmp_path: Path, suite: Run) -> None:
    pytest.importorskip("tensorboard", reason="an optional dependency")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = tmp_path / "curves"
    arguments = ("--steps", "2", "--batch-sizes", "1", "--results", str(tmp_path), "--tensorboard", str(curves))
    assert suite("run", *ROW, *arguments)[0] == 0
    (folder,) = curves.iterdir()
    events = EventAccumulator(str(folder)).Reload()
    (epoch,) = json.loads(next((tmp_path / "records/train").iterdir()).read_text())["result"]["epochs"]
    for name, value in (("train_loss", epoch["train_loss"]), ("test_error", epoch["top1"])):
        (event,) = events.Scalars(name)
        assert (event.step, event.value) == (1, pytest.approx(value))


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_run_keeps_a_checkpoint_and_nothing_half_done(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "suite", "run", *ROW, "--epochs", "50", "--compile", "never"]
    command += ["--results", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    # Until some steps are done, as its claim says, which is replaced every two seconds.
    while time.monotonic() < deadline and not any(
        re.search(rb'"done": ?[1-9]', read_if_file(path) or b"") for path in tmp_path.glob("claims/*.json")
    ):
        time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert list((tmp_path / "work").iterdir()) == []
    assert not (tmp_path / "records").exists()
    assert len(list(tmp_path.glob("checkpoints/*/*.safetensors"))) == 1


@pytest.mark.full
def test_ctrl_c_is_answered_at_once_and_interrupts_the_stage(
    tmp_path: Path, imagenet_folder: Callable[[Path], Path]
) -> None:
    """As in a terminal, where it reaches the processes that read images too."""
    data, results = imagenet_folder(tmp_path / "data"), tmp_path / "results"
    command = [sys.executable, "-m", "suite", "run", "--table", "4", "--rows", "resnet34_relu_plain"]
    command += ["--stages", "train", "--data", f"imagenet={data}", "--steps", "1000", "--results", str(results)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        said = [json.loads(path.read_text())["done"] for path in results.glob("claims/*.1.json")]
        if said and said[0] > 0:
            break
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    lines = err.splitlines()
    assert "interrupted: finishing the step, for a checkpoint; again to stop now" in lines
    assert any("resnet34_relu_plain on imagenet: train: interrupted, " in line for line in lines)
    assert not (results / "failures").exists()
    assert list(results.glob("checkpoints/*/*.safetensors"))
