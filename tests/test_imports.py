"""The arrows between modules: who may import whom. What a module may import stands in `ALLOWED` and nowhere else."""

import ast
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

ROOT = Path(__file__).parent.parent
STAGES = {"train", "export", "parity", "latency", "analyze"}
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "files": set(),
    "env": set(),
    "augment": set(),
    "progress": {"files"},
    "interrupt": set(),
    "memory": set(),
    "checkpoint": {"files"},
    "distributed": set(),
    "spec": {"errors"},
    "record": {"errors", "files"},
    "store": {"errors", "files", "holder", "record"},
    "cifar": {"errors"},
    "digits": {"cifar"},
    "folders": {"cifar", "errors", "files"},
    "data": {"cifar", "digits", "errors", "folders", "spec"},
    "batches": {"augment", "data", "distributed", "errors", "folders", "spec"},
    "triton_kernels": set(),
    "grouped": {"models"},
    "kernels": {"errors", "grouped", "models", "triton_kernels"},
    "step": {"distributed", "env", "errors", "kernels", "memory", "models", "spec"},
    "feasible": {"models"},
    "stacked": {"batches", "grouped", "step"},
    "pack": {"errors", "interrupt", "stacked", "step"},
    "train": {"batches", "checkpoint", "data", "distributed", "feasible", "grouped", "interrupt", "kernels", "memory"}
    | {"models", "pack", "stacked", "step", "tf32"},
    "nodes": set(),
    "absorb": {"nodes"},
    "blocks": {"nodes"},
    "rewrite": {"absorb", "blocks", "nodes", "session"},
    "precision": {"session"},
    "weights": {"errors", "models"},
    "export": {"models", "nodes", "rewrite", "weights"},
    "session": {"errors"},
    "samples": set(),
    "tf32": set(),
    "parity": {"batches", "session", "tf32"},
    "departure": {"export", "nodes", "rewrite", "session"},
    "explain": {"session"},
    "shape": {"errors", "record", "spec"},
    "verify": {"checkpoint", "errors", "files", "record", "shape", "store"},
    "compare": {"errors", "record", "shape", "store"},
    "timing": {"errors", "session", "weights"},
    "latency": {"env", "samples", "session", "timing"},
    "analyze": {"batches", "models"},
    "theory": {"analyze", "models"},
    "onnxfile": {"errors", "export", "models", "spec"},
    "deploy": {"batches", "data", "departure", "env", "errors", "explain", "export", "latency", "models", "onnxfile"}
    | {"parity", "precision", "shape", "spec", "store", "weights"},
    "figures": {
        "analyze",
        "deploy",
        "errors",
        "export",
        "files",
        "plots",
        "record",
        "render",
        "shape",
        "spec",
        "store",
        "theory",
    },
    "render": {"files"},
    "runs": {"files", "record", "samples", "shape", "spec", "store"},
    "report": {"files", "record", "render", "runs", "samples", "spec", "store"},
    "drawing": set(),
    "plots": {"drawing", "record", "runs", "samples", "spec"},
    "svg": {"drawing"},
    "choices": {"render", "report", "runs", "samples", "spec"},
    "findings": {"runs", "spec"},
    "provenance": {"record", "render", "runs", "spec"},
    "page": {
        "choices",
        "drawing",
        "files",
        "findings",
        "plots",
        "provenance",
        "render",
        "report",
        "runs",
        "spec",
        "store",
    }
    | {"svg"},
    "grid": {"data", "deploy", "env", "errors", "latency", "record", "spec"},
    "holder": set(),
    "claims": {"errors", "files", "grid", "holder"},
    "machine": {"env", "files", "holder", "interrupt"},
    "perform": STAGES
    | {"batches", "deploy", "distributed", "env", "errors", "grid", "interrupt", "progress", "step"}
    | {"record", "store"},
    "workers": {"env", "errors"},
    "duration": set(),
    "status": {"claims", "duration", "grid", "store"},
    "probe": {"batches", "data", "env", "errors", "export", "latency", "spec", "step", "train"},
    "estimate": {"duration", "env", "errors", "grid", "perform", "probe", "spec", "store"},
    "runner": {
        "claims",
        "machine",
        "distributed",
        "env",
        "errors",
        "status",
        "grid",
        "interrupt",
        "latency",
        "perform",
        "progress",
        "spec",
        "store",
        "workers",
    },
    "cluster": {"distributed", "errors", "grid", "perform", "runner"},
    "slurm": {"distributed", "errors", "grid", "runner"},
    "options": {"duration", "errors", "render", "spec"},
    "__main__": {
        "cluster",
        "options",
        "estimate",
        "compare",
        "deploy",
        "errors",
        "explain",
        "figures",
        "grid",
        "page",
        "parity",
        "render",
        "report",
        "runner",
        "slurm",
        "spec",
        "status",
        "store",
        "models",
        "files",
        "progress",
        "verify",
    },
}


def imports(path: Path) -> set[str]:
    """Names of this project's modules that a file imports, at any depth and for types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "suite"
                else [node.module or ""]
            )
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head == "models":
                found.add("models")
            elif head == "suite":
                found.add(rest.partition(".")[0] or "__init__")
    return found


def test_every_module_of_the_suite_has_its_arrows_listed() -> None:
    assert {path.stem for path in (ROOT / "suite").glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_a_module_imports_only_what_it_may(module: str) -> None:
    assert imports(ROOT / "suite" / f"{module}.py") <= ALLOWED[module]


def test_stages_know_neither_each_other_nor_the_store() -> None:
    for stage in STAGES:
        assert not ALLOWED[stage] & (STAGES | {"store", "runner", "report"})


def test_models_know_nothing_of_the_suite() -> None:
    for path in (ROOT / "models").glob("*.py"):
        assert not any(name != "models" for name in imports(path)), path


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--table", "4"], ["run", "--help"]])
def test_answers_that_need_no_torch_do_not_load_it(arguments: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['suite', *{arguments!r}]; import suite.__main__ as m\ntry: m.main()\n"
    code += (
        "except SystemExit as e: assert not e.code, e.code\nassert not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    )
    start = perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    # 0.3 s on an idle core; the bound leaves room for a busy machine and none for an import of torch.
    assert perf_counter() - start < 3
