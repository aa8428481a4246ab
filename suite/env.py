"""What a figure was measured with: hardware, versions, commit; and whether `models` is
this project's. Nothing here loads torch, but what asks it for a GPU."""

import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from itertools import takewhile
from pathlib import Path, PurePosixPath

import psutil

from suite.errors import InputError

PACKAGES = (
    *("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "openvino", "numpy"),
)


@cache
def machine() -> dict[str, object]:
    """The hardware. `id` names it in tables: machines with the same id are comparable,
    others never share a column."""
    cpu, cores, gpu = _cpu_name(), available_cores(), _gpu()
    parts = [f"{_name_with_details(cpu)} ({_cores_in_words()})"]
    if gpu:
        parts.append(gpu["name"])
    return {
        "id": " + ".join(parts),
        "cpu": cpu,
        "cores": cores,
        "memory_bytes": psutil.virtual_memory().total,
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


def require_package(package: str, what: str) -> None:
    """See whether a package is installed that is only needed by what the user asked
    for, which is `what`.

    Raises:
        InputError: it is not; it says how to install it, where there is no pip by uv.
    """
    if importlib.util.find_spec(package) is None:
        pip = "pip" if importlib.util.find_spec("pip") else "uv pip"
        raise InputError(f"{what}: needs the package {package}, which is not installed here: {pip} install {package}")


def environment() -> dict[str, object]:
    """Everything that goes beside a result."""
    return {"machine": machine(), "versions": versions(), "source": _source(), "command": command()}


def available_cores() -> int:
    """Cores that this process may keep busy: those it may run on, and no more than the
    CPU time that a container gives it; 1 at least."""
    cores, quota = len(usable_cores()), cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on; on macOS, which keeps no
    process to some, of all cores."""
    process = psutil.Process()
    return sorted(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else list(range(os.cpu_count() or 1))


def _cores_in_words() -> str:
    cores, quota = len(usable_cores()), cpu_quota()
    limit = f"{quota:.3g} of " if quota is not None and quota < cores else ""
    return f"{limit}{cores} core{'s' if cores > 1 else ''}"


# Where Linux shows control groups, and which of them this process is in.
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def _cpu_cgroups() -> list[Path]:
    """Folders of the groups that share out CPU time to this process, from its own to
    the root, of versions 1 and 2."""
    found = []
    for line in _text(_OWN_CGROUPS).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if "cpu" in controllers.split(","):
            mounts = [_CGROUPS / controllers, _CGROUPS / "cpu"]
        elif controllers == "":
            mounts = [_CGROUPS]
        else:
            continue
        mount = next((each for each in mounts if each.is_dir()), None)
        if mount:
            # In a container the path may be the host's, of which there is only the root.
            inside = PurePosixPath(path.lstrip("/"))
            found += [mount / part for part in (inside, *inside.parents) if ".." not in part.parts]
    return list(dict.fromkeys(found))


def cpu_quota() -> float | None:
    """Seconds of CPU time a second that the strictest of this process's control groups
    gives it; None if none does."""
    quotas = []
    for folder in _cpu_cgroups():
        limit = _text(folder / "cpu.max").split()
        if not limit:
            limit = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        # "max" or -1 is no limit.
        if len(limit) == 2 and all(part.isdecimal() and int(part) for part in limit):
            quotas.append(int(limit[0]) / int(limit[1]))
    return min(quotas, default=None)


def throttled() -> int:
    """How often this process's control groups have been stopped so far because their
    CPU time was used up."""
    lines = [line.split() for folder in _cpu_cgroups() for line in _text(folder / "cpu.stat").splitlines()]
    return sum(int(line[1]) for line in lines if len(line) == 2 and line[0] == "nr_throttled" and line[1].isdecimal())


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def user() -> str:
    """The name of the user, or the number of one who has none here, as in a container
    started with --user."""
    return str(psutil.Process().username())


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has matrix or vector instructions for bfloat16, with which it is
    faster than in float32."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_line("flags").split())


AS_MODULE = ["python", "-m", "suite"]


def command() -> list[str]:
    """The command line without the place where this machine keeps the program."""
    program = Path(sys.argv[0])
    named = AS_MODULE if program.name == "__main__.py" else [program.name]
    return [*named, *sys.argv[1:]]


def typed(words: Sequence[str] = ()) -> str:
    """A command of the suite as it is typed in the shell in which this process was
    started: by its own name, by uv, or as a module."""
    if Path(sys.argv[0]).name == "suite":
        program = ["suite"]
    else:
        program = ["uv", "run", "-m", "suite"] if "UV" in os.environ else AS_MODULE
    return shlex.join([*program, *words])


def _cpu_name() -> str:
    of_mac = _output("sysctl", "-n", "machdep.cpu.brand_string") if sys.platform == "darwin" else None
    return _cpu_line("model name") or of_mac or platform.processor() or platform.machine()


# What a processor's name has if it names the model, as in "EPYC 7763", "EPYC 9J14" or "Ultra 9 185H".
_MODEL = re.compile(r"\d\w?\d\d")
# Vector and matrix instructions that decide speed, the widest first.
_WIDEST = ("amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "avx", "sve", "asimd")


def _name_with_details(name: str) -> str:
    """The processor's name; with what else tells it from others if it names no model,
    as behind a hypervisor."""
    if _MODEL.search(name.partition("@")[0]):
        return name
    fields = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    fields |= {"implementer": "CPU implementer", "part": "CPU part", "revision": "CPU revision"}
    known = [f"{word} {value}" for word, field in fields.items() if (value := _cpu_line(field))]
    flags = {*_cpu_line("flags").split(), *_cpu_line("Features").split()}
    widest = [flag for flag in _WIDEST if flag in flags][:1]
    return ", ".join([name, *([" ".join(known)] if known else []), *widest])


@cache
def _cpu_line(name: str) -> str:
    """What Linux says of the first core under this name; empty where it says
    nothing."""
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
        used = psutil.Process().memory_info()
        if hasattr(used, "peak_wset"):  # Windows
            return int(used.peak_wset)
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gpus() -> list[str]:
    """What CUDA calls each NVIDIA GPU that this process may use; empty without one."""
    chosen = _chosen_gpus()
    if chosen is not None:
        return chosen
    text = _output("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")
    return text.split() if text else []


def _chosen_gpus() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES names, up to the first that is none, where CUDA ends
    too; None where it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    return list(takewhile(lambda name: name and not name.startswith("-"), map(str.strip, text.split(","))))


# Print the name of CUDA's first GPU. This is for a process of its own: whoever has asked the driver can use no GPU in
# the processes that it forks later.
_FIRST_OF_CUDA = """
import ctypes
cuda, device, name = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.create_string_buffer(256)
if not (cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, 256, device)):
    print(name.value.decode())
"""


def _gpu() -> dict[str, str] | None:
    """The NVIDIA GPU that CUDA gives this process first, and its driver; None without
    one."""
    chosen = _chosen_gpus()
    text = _output("nvidia-smi", "--query-gpu=uuid,driver_version,name", "--format=csv,noheader")
    if not text or chosen == []:
        return None
    # Some versions say in a line that there is none.
    cards = [[part.strip() for part in line.split(",", 2)] for line in text.splitlines() if line.count(",") >= 2]
    first = chosen[0] if chosen else "0"
    if first.isdecimal():
        found = cards[int(first) :][:1]
        is_sure = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    else:
        # CUDA takes the beginning of a UUID. The older name of a part of a GPU has it too, as in MIG-GPU-UUID/1/0; the
        # newer, MIG-UUID, does not tell the GPU that it belongs to.
        found = [card for card in cards if card[0].startswith(first.removeprefix("MIG-").partition("/")[0])]
        is_sure = bool(found)
        if first.startswith("MIG-"):
            found = found or cards
    if not found:
        return None
    _, driver, name = found[0]
    if not is_sure and len({card[2] for card in cards}) > 1:
        # CUDA's first is the fastest, and how it orders the others is not written down. torch is not asked, which is
        # loaded now and then: this name is in keys of timings. Without an answer the number is taken for nvidia-smi's.
        name = _output(sys.executable, "-c", _FIRST_OF_CUDA) or name
    return {"name": name, "driver": driver}


@cache
def _source() -> dict[str, object]:
    """Commit of this checkout and whether files differ from it; empty for an installed
    copy."""
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


def require_own_models() -> None:
    """See to it that `models` is this project's package, without importing it.

    Raises:
        InputError: another one is found first.
    """
    found = importlib.util.find_spec("models")
    ours = Path(__file__).parent.parent / "models"
    if found and found.origin and Path(found.origin).resolve() != ours.resolve() / "__init__.py":
        raise InputError(
            f"{found.origin}: this package or module called models hides this project's in {ours}; run the command in "
            "another folder, or take it off PYTHONPATH"
        )


def device_of(wanted: str) -> str:
    """The device to train on; "auto" is a GPU where there is one.

    Raises:
        InputError: "cuda" where there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and machine()["gpu"] is None):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise InputError("--device cuda: torch finds no CUDA GPU here; use auto or cpu")
    return "cpu"
