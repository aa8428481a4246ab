"""README and docs keep their promises: each command runs, the example of a new variant does what it says, and each
figure is that of a record."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from suite.results.store import Store
from suite.results.verify import verify
from suite.tables.spec import load_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DOCS = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = [README, *DOCS.values()]
Run = Callable[..., tuple[int, str, str]]

# One row and few steps of what a command does in hours.
ROW = "--rows *_relu_bn@cifar10 --depth 20 --steps 1 --batch-sizes 1 --runtimes onnxruntime"
# How each command is run here: with what is put in place of a word, and what is added.
COMMANDS: dict[str, tuple[dict[str, str], str]] = {
    "uv run -m suite run --table 2 --profile paper --data cifar10=PATH --data cifar100=PATH --seeds 5": (
        {"cifar10=PATH": "cifar10={cifar10}", "--data cifar100=PATH": "", "--seeds 5": "--seeds 2"},
        ROW,
    ),
    "uv run -m suite run --table 4 --profile paper --data imagenet=PATH": (
        {"imagenet=PATH": "imagenet={imagenet}"},
        "--rows resnet34_relu_plain --steps 1 --batch-sizes 1 --dry-run",
    ),
    "uv run -m suite run --table 1": ({}, "--rows *_relu_bn --depth 20 --steps 1"),
    "uv run -m suite show --table 2": ({}, "--depth 20"),
    "uv run -m suite status": ({}, ""),
    "uv run -m suite verify": ({}, ""),
    "uv run -m suite clean --dry-run": ({}, ""),
    "uv run -m suite run --table 4 --rows 'resnet50_*_bn'": (
        {"resnet50_*_bn": "resnet34_relu_plain"},
        "--steps 1 --batch-sizes 1 --runtimes onnxruntime --stages train",
    ),
    "uv run -m suite run --table 4": ({}, "--rows resnet34_relu_plain --steps 1 --batch-sizes 1 --stages train"),
    "uv run -m suite run --table N --profile paper --data NAME=PATH --forms fp32,plain,int8 --results "
    "results/local/MACHINE": (
        {"N --": "2 --", "NAME=PATH": "cifar10={cifar10}"},
        "--rows *_relu_bn@cifar10 --depth 20 --steps 1 --stages train,export",
    ),
    "uv run -m suite verify --results results/local/MACHINE": ({}, ""),
    "uv run -m suite verify --results DIR": ({"DIR": "results/local"}, ""),
    "uv run -m suite report --results results/published/MACHINE --out report": ({"published": "local"}, ""),
    "uv run -m suite show --table 2 --results results/published/amd-epyc-2-cores": (
        {"results/published": str(ROOT / "results" / "published")},
        "",
    ),
    "uv run -m suite report": ({}, ""),
    "uv run -m suite list models": ({}, ""),
    "uv run -m suite list weights": ({}, f"--results {ROOT / 'results' / 'published'}"),
    "uv run -m suite list weights --format json": ({}, f"--results {ROOT / 'results' / 'published'}"),
    "uv run -m suite init my_table.toml": ({}, ""),
    "uv run -m suite run --table my_table.toml": ({}, "--rows test_resnet --steps 1 --stages train"),
    "uv run -m suite show --table my_table.toml": ({}, ""),
    "uv run -m suite report --table my_table.toml": ({}, ""),
    "uv run -m suite export resnet50_crelu_bn net.onnx": ({"resnet50": "resnet20"}, ""),
    "uv run -m suite parity net.onnx": ({}, "--images 20"),
    "uv run -m suite time net.onnx resnet18": ({"resnet18": "net.onnx"}, "--quick"),
    "uv run -m suite parity a.onnx --against b.onnx": ({"a.onnx": "net.onnx", "b.onnx": "net.onnx"}, "--images 8"),
    "uv run -m suite explain net.onnx": ({}, ""),
    "uv run -m suite compare A B --fail-above 5%": ({"A B": "results/local results/local"}, ""),
    "uv run -m suite figure 2": ({}, "--depth 20 --images 20"),
    "uv run -m suite figure normprop": ({}, ""),
}
# What runs everything, as `.ci/run` does with the tests; benchmarks, clusters and completion, whose parts have
# tests of their own.
ELSEWHERE = ("uv run tox", "RAY_worker_niceness=0 ray start", "source .venv/bin/activate && eval")
# On a cluster (`test_cluster`), and with the lines of a new variant, below.
LEFT_OUT = ("--latency-resource bench", "'*_inner_*'")
# What installs uv, before the commands of the README that a stranger types first.
INSTALL = "pip install uv && "
# What a reader types before each command.
TYPED = "uv run -m suite "


def commands() -> list[str]:
    """Those of blocks, and those within a sentence."""
    text = "\n".join(PAGES)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("  #")[0].strip().removeprefix(INSTALL) for block in blocks for line in block.splitlines()]
    lines += [" ".join(found.split()) for found in re.findall(rf"`({TYPED}[^`]+)`", text)]
    lines = [line for line in lines if line and not line.startswith(ELSEWHERE)]
    return [line for line in lines if not any(part in line for part in LEFT_OUT)]


def test_every_command_of_the_pages_is_in_the_list_that_is_run() -> None:
    assert set(commands()) == set(COMMANDS)


def test_every_command_is_typed_in_one_way() -> None:
    assert all(command.startswith(TYPED) for command in commands())
    for page in (*PAGES, (ROOT / "CONTRIBUTING.md").read_text("utf-8")):
        others = (
            " ".join(page.split())
            .replace("write `python -m suite` in that shell", "")
            .replace("torchrun --nproc-per-node=4 -m suite", "")
        )
        assert "python -m suite" not in others
        assert others.count("-m suite ") == others.count(TYPED)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_models_alone_are_had_as_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(import models, timm\n.*?)```", README, re.DOTALL)
    *lines, last = code.strip().splitlines()
    found: dict[str, Any] = {}
    exec("\n".join(lines), found)
    assert "resnet50_crelu_np2" in eval(last, found)


@pytest.mark.full
def test_the_instruments_are_called_from_python_as_the_docs_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(from suite import api\n.*?)```", DOCS["deploying"], re.DOTALL)
    shape = "shape=(3, 224, 224))  # shape"
    assert code.count(shape) == 1
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    *lines, last = code.replace(shape, f"quick=True, {shape}").strip().splitlines()
    found: dict[str, Any] = {"net": net}
    exec("\n".join(lines), found)
    assert 0.3 < found["second"].ratio[0] < 3
    assert eval(last, found)


@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv")
def test_a_command_works_in_a_plain_shell_as_it_is_typed() -> None:
    command = f"{TYPED}show --table 2"
    assert command in commands()
    plain = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(command, shell=True, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| BatchNorm          | CReLU " in done.stdout


@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv")
def test_python_is_that_of_the_environment_after_the_line_that_installs_without_cuda(tmp_path: Path) -> None:
    (line,) = re.findall(r"`(uv venv [^`]+)`", README)
    before, install, rest = line.partition("uv pip install ")
    assert (install, rest) == ("uv pip install ", "--torch-backend cpu -e ."), "which takes minutes and is not tried"
    plain = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        f"{before}command -v python", shell=True, cwd=tmp_path, env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / ".venv" / "bin" / "python")


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name
)
def test_every_link_leads_to_a_file_or_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if not target.startswith("https://"):
            name, _, heading = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), target
            if heading:
                titles = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert heading in slugs, target


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data sets of a few images, in the layouts of the real ones."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def batch(count: int) -> bytes:
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        return np.concatenate([(np.arange(count, dtype=np.uint8) % 10)[:, None], pixels], axis=1).tobytes()

    cifar = root / "cifar-10-batches-bin"
    cifar.mkdir()
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        (cifar / name).write_bytes(batch(20))
    (cifar / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = root / "imagenet" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 256, (300, 280, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return {"cifar10": str(cifar), "imagenet": str(root / "imagenet")}


@pytest.mark.full
def test_the_commands_of_the_readme_run_one_after_the_other(
    data: dict[str, str], suite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        replaced, added = COMMANDS[command]
        given = command
        for word, other in replaced.items():
            assert word in given, command
            given = given.replace(word, other.format(**data))
        code, out, err = suite(*shlex.split(f"{given} {added}")[len(TYPED.split()) :])
        assert code == 0, (command, out, err)
        assert out, command


@pytest.mark.full
def test_the_example_of_a_new_variant_gets_its_line_of_the_table(tmp_path: Path) -> None:
    """The lines are put where the README says, in a copy."""
    model, row, command = (
        re.search(rf"```{language}\n((?:(?!```).)*inner.*?)```", DOCS["models"], re.DOTALL)
        for language in ("python", "toml", "bash")
    )
    assert model is not None
    assert row is not None
    assert command is not None
    assert sum(match.group(1).count("\n") for match in (model, row, command)) <= 20
    for package in ("models", "suite"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    networks = tmp_path / "models" / "crelu_resnet.py"
    before, after = '} | {\n    f"resnet{depth}_w{width}', model.group(1)
    text = networks.read_text("utf-8")
    assert text.count(before) == 1
    networks.write_text(text.replace(before, "} | {\n" + after + before))
    table = tmp_path / "suite" / "tables" / "table2.toml"
    table.write_text(table.read_text("utf-8") + "\n" + row.group(1))
    words = shlex.split(command.group(1))[len(TYPED.split()) :]
    few = ["--depth", "20", "--steps", "1", "--batch-sizes", "1", "--columns", "all"]
    given = [sys.executable, "-m", "suite", *words, *few]
    done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "resnet20_inner_crelu_bn" in line]
    assert "failed" not in done.stdout
    assert line.count("|") > 10


def test_the_table_of_the_readme_is_what_its_command_prints(suite: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```text\n\$ (.*?)```", README, re.DOTALL)
    command, *lines = block.splitlines()
    out = suite(*shlex.split(command)[len(TYPED.split()) :])[1]
    assert len(lines) == 4
    assert lines == [line for line in out.splitlines() if line.startswith("|")]


PUBLISHED = sorted((ROOT / "results" / "published").glob("*/"))
RESULTS = "results/published/amd-epyc-2-cores"
# What the headings of the README's tables are in the JSON of `show`, and in which unit of it.
FIGURES = {
    "test error %": ("top1", 1.0),
    "paper, ResNet-110": ("paper_top1", 1.0),
    "int8: points lost": ("parity_int8_top1", 1.0),
    "MACs G": ("macs", 1e9),
    "ms": ("onnxruntime_cpu_b1_p50_ms", 1.0),
    "int8 ms": ("onnxruntime_cpu_int8_b1_p50_ms", 1.0),
    "default export ms": ("onnxruntime_cpu_plain_b1_p50_ms", 1.0),
    "eager PyTorch ms": ("torch_cpu_b1_p50_ms", 1.0),
    "images/s, batch 8": ("onnxruntime_cpu_b8_images_per_s", 1.0),
}


def tables(page: str, section: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a section of a page, as rows by heading."""
    text = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heads, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append([dict(zip(heads, row, strict=True)) for row in rows])
    return found


def is_rounded(value: float, figure: str) -> bool:
    return figure in (f"{value:.{len(figure.partition('.')[2])}f}", f"{value:.0e}")


def test_the_figures_of_the_readme_are_those_of_the_published_records(
    suite: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)

    def shown(*arguments: str) -> dict[str, Any]:
        out = suite("show", *arguments, "--results", RESULTS, "--columns", "all", "--format", "json")[1]
        rows = [row for row in json.loads(out)["rows"] if row["top1"] is not None]
        return {row["model"]: row for row in reversed(rows)}  # of two data sets the first is meant

    (trained,) = tables(README, "Measured so far")
    (deployed,) = tables(DOCS["latency"], "The paper's networks")
    of_trained = shown("--table", "2", "--depth", "20")
    of_deployed = {model: row for number in "432" for model, row in shown("--table", number).items()}
    assert (len(trained), len(deployed)) == (10, 9)
    for rows, found in ((trained, of_trained), (deployed, of_deployed)):
        for row in rows:
            for heading, figure in row.items():
                if heading != "network":
                    key, unit = FIGURES[heading]
                    assert is_rounded(found[row["network"]][key] / unit, figure), (row["network"], heading)


def test_the_error_by_the_whole_recipe_is_that_of_its_record(suite: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    said = re.search(
        r"`(resnet110_\w+)` on CIFAR-100, ([\d.]+) % .* the paper has (\d+\.\d+)", " ".join(README.split())
    )
    assert said is not None
    where = "--rows", f"{said[1]}@cifar100", "--results", "results/published/nvidia-h200"
    (row,) = json.loads(suite("show", "--table", "2", *where, "--columns", "all", "--format", "json")[1])["rows"]
    assert (f"{row['top1']:.2f}", f"{row['paper_top1']:.2f}") == (said[2], said[3])


def test_the_images_a_second_on_a_gpu_are_those_that_were_kept() -> None:
    steps = json.loads((ROOT / "results" / "published" / "nvidia-h200" / "steps.json").read_text("utf-8"))
    (rows,) = tables(DOCS["training"], "On a GPU")
    assert len(rows) == len(steps["before"])
    for row, (heading, when) in itertools.product(rows, (("before the rewrite", "before"), ("after it", "now"))):
        rate = steps[when].get(row["networks"].replace("`", ""))
        assert row[heading] in (("not measured",) if rate is None else (f"{round(rate, -2):,}", f"{round(rate, -1):,}"))


def test_a_quick_table_4_takes_the_room_that_the_readme_says() -> None:
    # A network without BatchNorm has files of nearly the size of its twin's with it, and no published record as yet.
    rows = [f"{row.model.rpartition('_')[0]}_bn" for row in load_table(4).rows]
    records = [r for stage in ("train", "export") for r in Store(ROOT / RESULTS).each(stage, set(rows))]
    size = sum(
        file.bytes * rows.count(r.inputs["model"])
        for r in records
        if not r.inputs.get("plain")
        for file in r.artifacts.values()
    )
    said = re.search(r"(\d+) GB of disk: (\d+) for the installation, .* about (\d+) for the weights", README, re.DOTALL)
    assert said is not None
    whole, installed, files = map(int, said.groups())
    assert (files, whole) == (round(size / 1e9), installed + files)
    assert re.findall(r"(\d+) GB", README) == [str(whole)]


def test_the_ratios_of_the_readme_are_those_of_the_published_benchmarks() -> None:
    bars = json.loads((ROOT / RESULTS / "benchmarks.json").read_text("utf-8"))["bars"]
    (rows,) = tables(DOCS["latency"], "Benchmarks")
    assert {row["ratio"] for row in rows} == {each["name"] for each in bars}
    for row, each in itertools.product(rows, bars):
        if row["ratio"] == each["name"]:
            measured = [each["ratio"]] if "ratio" in each else [min(each["ratios"]), max(each["ratios"])]
            for value, figure in zip(measured, row["measured"].split(" to "), strict=True):
                assert is_rounded(value, figure), row
            assert row["bar"].endswith("missed") == (not each["met"])
            assert row["bar"].removesuffix(", missed") == each["words"].partition("bar: ")[2]


@pytest.mark.parametrize("table", sorted((ROOT / RESULTS).glob("table*.md")), ids=lambda path: path.stem)
def test_published_tables_are_what_their_records_print(table: Path, suite: Run) -> None:
    number, _, depth = table.stem.removeprefix("table").partition("-resnet")
    more = ("--depth", depth) if depth else ()
    code, out, _ = suite("show", "--table", number, *more, "--results", str(ROOT / RESULTS), "--columns", "all")
    assert code == 0
    assert out == table.read_text("utf-8")


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_results_are_whole(folder: Path) -> None:
    """Networks that were trained for a few steps are published without their weights and files. So are further seeds,
    what was trained on a GPU, and two networks of which 40 MB leave no room."""
    found = verify(folder)
    assert found.problems == []
    assert found.records > 0
    assert sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file()) <= 40_000_000
    assert all("samples" not in record.result for record in Store(folder).each("latency")), "each run is kept once"
    for record in Store(folder).each("train"):
        whole = all((folder / file.path).is_file() for file in record.artifacts.values())
        left_out = record.inputs["seed"] > 0 or folder.name == "nvidia-h200"
        left_out |= record.inputs["model"].endswith("nobias") and record.inputs["data"]["name"] == "cifar100"
        assert whole == (record.inputs["recipe"]["max_steps"] is None and not left_out)
