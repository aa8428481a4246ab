"""The command line itself: what bad input is answered with, its help, its completion and its lists."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

import suite.__main__ as command_line
from suite.grid import runner
from suite.results.store import Store
from suite.tables import spec

Run = Callable[..., tuple[int, str, str]]
ROW = ("--table", "2", "--depth", "20", "--rows", "resnet20_crelu_bn@cifar10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--table", "7"],
            "--table 7: no such table; use 1, 2, 3, 4 or a TOML file, which `init FILE.toml` writes",
        ),
        (["show", "--table", "5"], "--table 5: no such table; use 1, 2, 3, 4 or a TOML file"),
        (["run"], "--table is missing: 1, 2, 3 or 4, as in the paper, or the TOML file of a table of your own"),
        (["run", "--table", "2", "--rows", "resnet9*"], "'resnet9*' matches no row of table 2"),
        (["run", "--table", "2", "--rows", ""], "an empty pattern matches no row"),
        (["run", "--table", "4", "--depth", "20"], "--depth is only for tables 1, 2 and 3; the rows of table 4 differ"),
        (["run", "--table", "2", "--depth", "21"], "'21' is not valid; use 20, 32, 44, 56 or 110"),
        (
            ["run", "--table", "2", "--data", "mnist=."],
            "must be NAME=PATH, where NAME is cifar10, cifar100, imagenet or svhn",
        ),
        (["run", "--table", "2", "--data", "cifar10"], "must be NAME=PATH"),
        (["run", "--table", "2", "--data", "cifar10=a", "--data", "cifar10=b"], "given twice"),
        (["run", "--table", "2", "--data", "cifar10=no/such/folder"], "no/such/folder"),
        (
            ["run", "--table", "2", "--data", "imagenet=."],
            "no row to run uses imagenet; the rows use cifar10 and cifar100",
        ),
        (["run", "--table", "2", "--profile", "paper"], "--data cifar10=PATH --data cifar100=PATH"),
        (["run", "--table", "2", "--seeds", "0"], "--seeds: '0' is not a whole number from 1 to 10000"),
        (["run", "--table", "2", "--epochs", "9" * 400], "is not a whole number from 1 to 10000"),
        (["run", "--table", "2", "--steps", "9" * 400], "is not a whole number from 1 to 1000000000"),
        (["run", "--table", "2", "--batch-sizes", "1,x"], "'x' is not a batch size; use whole numbers from 1 to"),
        (["run", "--table", "2", "--batch-sizes", "9" * 400], "is not a batch size"),
        (["run", "--table", "2", "--budget", "9" * 400 + "d"], "is not a time; write it as 90s"),
        (["run", "--table", "2", "--data", "cifar10=~nobody-of-this-name/x"], "~nobody-of-this-name/x: Could not"),
        (["run", "--table", "2", "--dry-run", "--address", "x"], "--address: belongs to --executor ray"),
        (["run", "--table", "2", "--results", ""], "the path is empty; give one"),
        (["show", "--table", "2", "--results", "none"], "--results none: no such folder"),
        (["figure", "2", "--results", "none"], "--results none: no such folder"),
        (["figure", "3", "--data", "cifar10=none"], "--data is only for figure 2; figure 3 is of weights"),
        (
            ["export", "resnet20_relu_bn", "net.onnx", "--size", "5000"],
            "--size: '5000' is not a whole number from 1 to 4096",
        ),
        (["export", "resnet20_relu_bn", "net.onnx", "--data", "cifar10=none"], "--data is only for --precision int8"),
        (["export", "resnet20_relu_bn", "."], ".: is a folder; give the name of a file, as in net.onnx"),
        (["export", "", "net.onnx"], "the name of a network is empty; give a model, a folder of weights or an ONNX"),
        (
            ["export", "..", "net.onnx"],
            "..: holds no config.json that can be read (No such file or directory); give a folder",
        ),
        (["explain", ""], "the name of a network is empty"),
        (
            ["run", *ROW, "--steps", "1", "--tensorboard", __file__],
            "test_commands.py: is no folder; give one for the learning curves",
        ),
        (
            ["parity", "resnet20_relu_bn", "--weights", "resnet32_relu_bn"],
            "--weights resnet32_relu_bn is only for ONNX files",
        ),
        (["list"], "{models|tables|data|weights} is missing; usage: suite list [OPTIONS] {models|tables|data|weights}"),
        (["run", "--table", "2", "--providers", "cpu,gpu"], "'gpu' is not valid; use cpu, cuda or tensorrt"),
        (["run", "--table", "2", "--profile", "slow"], "'slow' is not valid; use quick or paper"),
        (["show", "--table", "2", "--format", "xml"], "'xml' is not valid; use"),
        (
            ["run", "--table", "2", "--stages", "train,fly"],
            "'fly' is not valid; use train, export, parity, latency or analyze",
        ),
        (
            ["run", "--table", "2", "--stages", "analyze"],
            "table 2 has no such stage; use train, export, parity or latency",
        ),
        (
            ["run", "--table", "2", "--time-limit", "soon"],
            "'soon' is not a time; write it as 90s, 30m, 1h30m or 2d",
        ),
        (["run", "--tabel", "2"], "--tabel: no such option; did you mean --table"),
        (["train"], "train: no such command; suite --help lists them"),
        (["list", "colours"], "'colours' is not valid; use models, tables, data or weights"),
    ],
)
def test_bad_input_gets_one_clear_line_and_exit_code_2(
    arguments: list[str], message: str, suite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = suite(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_printed(suite: Run) -> None:
    code, out, err = suite("--version")
    assert (code, err) == (0, "")
    assert out.startswith("crelu-norm-suite ")


def test_a_usual_folder_that_is_not_there_is_an_empty_one(
    suite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert suite("status") == (0, "nothing was begun in results/local\n", "")
    assert suite("verify")[1] == "read no records and no files: no problems\n"
    assert suite("show", "--table", "2")[0] == suite("clean")[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_results_folders_is_refused_with_their_names(suite: Run) -> None:
    for command in (("status",), ("show", "--table", "2"), ("verify",), ("clean",), ("report",)):
        code, out, err = suite(*command, "--results", "results/published")
        assert (code, out) == (2, ""), command
        assert "holds no records, but folders that do; give results/published/amd-epyc-2-cores" in err


READERS = (("status",), ("show", "--table", "2"), ("verify",), ("clean",), ("report",), ("figure", "2"))


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_a_folder_of_other_things_is_no_empty_results_folder(
    suite: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "notes.md").write_text("")
    expected = f"error: --results {tmp_path}: holds no records; is it a results folder?\n"
    assert suite(*command, "--results", str(tmp_path)) == (2, "", expected)
    (tmp_path / "records").write_text("")
    code, out, err = suite(*command, "--results", str(tmp_path))
    assert (code, out) == (2, "")
    assert "records is to be a folder, and is a file; is it a results folder?" in err


@pytest.mark.parametrize("inside", [(), ("plans", "other"), ("report",), (".hidden",)], ids=" ".join)
def test_a_folder_in_which_nothing_is_done_yet_is_a_results_folder(
    suite: Run, tmp_path: Path, inside: tuple[str, ...]
) -> None:
    for name in inside:
        (tmp_path / name).mkdir()
    assert suite("verify", "--results", str(tmp_path))[:2] == (0, "read no records and no files: no problems\n")
    assert suite("show", "--table", "2", "--results", str(tmp_path))[0] == 0


def test_a_column_that_is_none_is_refused_before_anything_runs(suite: Run, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    code, out, err = suite("run", "--table", "2", "--columns", "foo", "--results", str(folder))
    assert (code, out, folder.exists()) == (2, "", False)
    parts = "all, model, paper, ours, parity, size, latency, speed or peak"
    assert err == (
        f"error: --columns: 'foo' is not a column of this table; use {parts}, or single columns "
        "by their names in CSV, which docs/tables.md lists\n"
    )
    for latency in ("onnxruntime_cpu_b1_p50_ms", "latency"):
        arguments = ("--depth", "20", "--rows", "resnet20_relu_bn@cifar10", "--stages", "latency", "--dry-run")
        assert suite("run", "--table", "2", *arguments, "--columns", latency, "--results", str(folder))[0] == 0


@pytest.mark.parametrize("table", ["1", "2", "3", "4"])
def test_the_documents_list_each_column_of_the_published_tables(suite: Run, table: str) -> None:
    listed = set(re.findall(r"`(\w+)`", Path("docs/tables.md").read_text().partition("## More columns")[2]))
    _, text, _ = suite(
        *("show", "--table", table, "--columns", "all", "--format", "csv"),
        *("--results", "results/published/amd-epyc-2-cores"),
    )
    for key in text.partition("\n")[0].split(","):
        if key == "notes" or key.startswith("heading_"):
            continue
        name = re.sub(r"^(difference|spread)_", "", key)
        name = re.sub(r"_(over_nonzero|over_all|pooled)$", "", name)
        name = re.sub(r"^parity_.+_(top1|agreement)$", r"parity_NAME_\1", name)
        name = re.sub(r"^[a-z]+_cpu(_int8|_plain)?_b\d_", "", name)
        assert name in listed, key


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (["run", "--table", "4", "--rows", "resnet50_crelu_b"], {"resnet50_crelu_bn", "resnet50_crelu_bn@imagenet"}),
        (["show", "--table", "2", "--depth", "20", "--rows", "a*,resnet20_w"], {"a*,resnet20_w32_relu_bn"}),
        (["export", "resnet44_w32"], {"resnet44_w32_relu_bn"}),
    ],
)
def test_the_shell_completes_rows_and_models(typed: list[str], found: set[str]) -> None:
    *before, incomplete = typed
    completing = ShellComplete(command_line.suite, {}, "suite", "_SUITE_COMPLETE")
    assert found <= {each.value for each in completing.get_completions(before, incomplete)}


def test_without_a_command_the_help_is_printed_as_it_is(suite: Run) -> None:
    code, out, err = suite()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: ")
    assert "\n  compare " in err


def test_the_help_names_valid_values_as_they_are_to_be_typed(suite: Run) -> None:
    _, out, _ = suite("run", "--help")
    assert "cpu,cuda,tensorrt" in out
    assert "onnxruntime,torch,torch.compile" in out
    assert "fp32,plain,fp16,int8" in out


def test_a_results_folder_that_is_a_file_is_named_by_every_command(suite: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for command in (["show", "--table", "2"], ["figure", "2"], ["status"], ["verify"], ["report"], ["run", *ROW]):
        assert suite(*command, "--results", str(file)) == (2, "", f"error: --results {file}: is no folder\n")
    inside = str(file / "results")
    assert suite("run", *ROW, "--results", inside) == (2, "", f"error: --results {inside}: {file} is no folder\n")


def test_a_folder_of_records_that_is_a_file_is_named_before_anything_is_printed(suite: Run, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "train").touch()
    expected = f"error: {tmp_path}/records/train: cannot be read: Not a directory\n"
    for command in (["show", "--table", "2"], ["report"]):
        assert suite(*command, "--results", str(tmp_path)) == (2, "", expected)
    assert not (tmp_path / "report").exists()


def test_show_takes_several_folders_and_commands_on_one_refuse_a_second(
    suite: Run, store: Store, add_run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    made = add_run("resnet110_relu_bn", top1=6.5)["train"]
    empty = tmp_path / "empty"
    empty.mkdir()
    both = ["--results", str(store.root), "--results", str(empty)]
    row = ["--table", "2", "--rows", "resnet110_relu_bn@cifar10"]
    code, out, err = suite("show", *row, *both)
    assert (code, err) == (0, "")
    assert "6.50" in out
    Store(empty).put("train", made.inputs, made.result | {"top1": 7.5}, {}, {})
    code, out, err = suite("show", *row, *both)
    said = (
        "rainings that stand in several folders with different figures: 1; shown are those of the folder that was named"
    )
    assert "6.50" in out
    assert f"t{said} first\n" in err
    page = suite("report", *both, "--out", str(tmp_path / "page"))[1].strip()
    assert f". T{said} first." in " ".join(Path(page).read_text("utf-8").split())
    expected = "error: --results is given twice, and this command takes one folder; show and report take several\n"
    for command in (["figure", "2"], ["status"], ["verify"], ["clean"], ["run", *ROW], ["list", "weights"]):
        assert suite(*command, *both) == (2, "", expected)


def test_a_truncated_data_file_is_named(suite: Run, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]:
        (folder / name).write_bytes(bytes(3073 * 2))
    (folder / "data_batch_3.bin").write_bytes(bytes(3073 * 2 - 1))
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    code, _, err = suite("run", *ROW, "--data", f"cifar10={tmp_path}", "--results", str(tmp_path / "results"))
    assert code == 2
    assert "data_batch_3.bin" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_damaged_record_is_named(suite: Run, tmp_path: Path) -> None:
    folder = tmp_path / "records" / "train"
    folder.mkdir(parents=True)
    (folder / "resnet110_relu_bn-0.json").write_text("{")
    code, _, err = suite("show", "--table", "2", "--results", str(tmp_path))
    assert code == 2
    assert "resnet110_relu_bn-0.json: not a record" in err


def test_cuda_is_refused_where_there_is_none(suite: Run, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    for option in (("--device", "cuda"), ("--providers", "cuda")):
        code, _, err = suite("run", *ROW, *option, "--results", str(tmp_path / "results"))
        assert code == 2
        assert "cuda" in err
        assert err.count("\n") == 1
        assert "fallback" not in err, "which is what ONNX Runtime says of a provider that is not there"


@pytest.mark.parametrize("command", [("explain",), ("parity",)])
def test_a_provider_that_is_not_there_is_one_line_from_every_command(command: tuple[str, ...], suite: Run) -> None:
    from suite.inference.latency import why_unavailable

    if why_unavailable("cuda") is None:
        pytest.skip("this machine has CUDA")
    code, out, err = suite(*command, "resnet20_relu_bn", "--provider", "cuda")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: --provider cuda: not available here: ")


def test_list_prints_models_tables_and_data(suite: Run) -> None:
    _, out, _ = suite("list", "models")
    assert {"resnet110_relu_bn", "resnet50_crelu_np3", "resnet110_w24_crelu_bn"} <= set(out.split())
    _, out, _ = suite("list", "tables")
    assert [line[0] for line in out.splitlines()] == ["1", "2", "3", "4"]
    _, out, _ = suite("list", "data")
    assert "digits1000" in out
    assert "--data imagenet=PATH" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--address", "host:6379"), "error: --address: belongs to --executor ray"),
        (("--latency-resource", "bench"), "error: --latency-resource: belongs to --executor ray"),
        (("--processes", "2"), "error: --processes: belongs to --executor ray; here start torchrun"),
        (
            ("--executor", "ray"),
            "error: --executor ray: needs the package ray, which is not installed here: uv pip install ray",
        ),
        (("--executor", "slurm"), "error: --executor slurm: needs the package submitit, which is not installed here"),
    ],
)
def test_an_executor_that_is_not_there_or_not_meant_is_one_line(
    arguments: tuple[str, ...], message: str, suite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = suite("run", *ROW, *arguments, "--results", str(tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("arguments", "closed"),
    [("show --table 4", ">&-"), ("report", ">&-"), ("verify", "2>&-"), ("verify", "<&- >&- 2>&-")],
)
def test_a_stream_that_was_closed_beforehand_is_done_without(
    arguments: str, closed: str, tmp_path: Path, add_run: Callable[..., object], store: Store
) -> None:
    if not Path("/bin/sh").exists():
        pytest.skip("this system has no shell that closes streams")
    add_run("resnet50_relu_bn", "imagenet")
    words = arguments.split() + ["--results", str(store.root)]
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "suite", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_a_letter_that_the_encoding_of_a_stream_lacks_is_printed_as_python_writes_it(
    encoding: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "suite", "init", str(tmp_path / "ein netz ü 网.toml")]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    # click writes UTF-8 where a stream says ASCII, which is what a system without a locale has.
    used, name = ("utf-8", "网.toml") if encoding == "ascii" else (encoding, r"\u7f51.toml")
    assert f"ein netz ü {name}: written" in done.stdout.decode(used)


@pytest.mark.parametrize(("failed", "said"), [(1, "1 stage failed"), (2, "2 stages failed")])
def test_stages_that_failed_are_counted_as_people_count(
    failed: int, said: str, suite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = runner.RunSummary(spec.load_table(2), frozenset(), failed)
    monkeypatch.setattr(runner, "run", lambda options: summary)
    code, _, err = suite("run", *ROW, "--results", str(tmp_path / "results"))
    assert code == 1
    assert err.endswith(f"{said}; the footnotes say why\n")
