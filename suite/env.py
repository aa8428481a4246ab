"""What a figure was measured with: hardware, versions, commit. Nothing here loads torch."""

import os
import platform
import pwd
import resource
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy")


@cache
def machine() -> dict[str, object]:
    """The hardware. `id` names it in tables: machines with the same id are comparable, others never share a column."""
    cpu, cores, gpu = _cpu_name(), available_cores(), _gpu()
    parts = [f"{cpu} ({cores} core{'s' if cores > 1 else ''})"]
    if gpu:
        parts.append(gpu["name"])
    return {
        "id": " + ".join(parts),
        "cpu": cpu,
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu,
        "system": platform.platform(),
    }


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, object]:
    """Everything that goes beside a result."""
    return {"machine": machine(), "versions": versions(), "source": _source(), "command": command()}


def available_cores() -> int:
    """Cores that this process may run on, which a container can make fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def user() -> str:
    """The name of the user, or the number of one who has none here, as in a container started with --user."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has matrix or vector instructions for bfloat16, with which it is faster than in float32."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_line("flags").split())


def command() -> list[str]:
    """The command line without the place where this machine keeps the program."""
    program = Path(sys.argv[0])
    named = ["python", "-m", "suite"] if program.name == "__main__.py" else [program.name]
    return [*named, *sys.argv[1:]]


def _cpu_name() -> str:
    return _cpu_line("model name") or platform.processor() or platform.machine()


@cache
def _cpu_line(name: str) -> str:
    """What Linux says of the first core under this name; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.partition("\t")[0].strip() == name), "")


def peak_memory() -> int:
    """The most bytes of memory that this process has had so far."""
    try:
        # Not `ru_maxrss`, which a process takes over from the one that started it.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gpus() -> list[str]:
    """What CUDA calls each NVIDIA GPU that this process may use; empty without one."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    text = _output("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")
    return text.split() if text else []


def _gpu() -> dict[str, str] | None:
    """The first NVIDIA GPU and its driver, or None."""
    text = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if not text:
        return None
    name, _, driver = text.splitlines()[0].partition(",")
    return {"name": name.strip(), "driver": driver.strip()}


@cache
def _source() -> dict[str, object]:
    """Commit of this checkout and whether files differ from it; empty for an installed copy."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return {}
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)} if commit else {}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
