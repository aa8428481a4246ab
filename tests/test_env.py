"""What is written down beside a figure."""

import ctypes
import os
import pwd
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from suite import env


def test_a_command_is_kept_without_the_place_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/suite/__main__.py", "run", "--table", "2"])
    assert env.environment()["command"] == ["python", "-m", "suite", "run", "--table", "2"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/suite", "show"])
    assert env.environment()["command"] == ["suite", "show"]


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.user() == pwd.getpwuid(os.getuid()).pw_name

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert env.user() == str(os.getuid())


CPUS = {
    "milan": {"cpu family": "25", "model": "1", "stepping": "1", "flags": "fpu avx avx2"},
    "genoa": {"cpu family": "25", "model": "17", "stepping": "1", "flags": "avx2 avx512f avx512_vnni avx512_bf16"},
    "masked": {"cpu family": "25", "model": "1", "stepping": "1", "flags": "fpu avx"},
}


def machine_id(monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]) -> str:
    monkeypatch.setattr(env, "_cpu_line", lambda name: fields.get(name, ""))
    monkeypatch.setattr(env, "_gpu", lambda: None)
    monkeypatch.setattr(env, "usable_cores", lambda: [0, 1])
    return str(env.machine.__wrapped__()["id"])


def test_processors_whose_name_is_hidden_have_ids_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "cpu_quota", lambda: None)
    ids = {name: machine_id(monkeypatch, {"model name": "AMD EPYC", **fields}) for name, fields in CPUS.items()}
    assert ids["milan"] == "AMD EPYC, family 25 model 1 stepping 1, avx2 (2 cores)"
    assert ids["genoa"] == "AMD EPYC, family 25 model 17 stepping 1, avx512_bf16 (2 cores)"
    assert len({*ids.values(), "AMD EPYC (2 cores)"}) == 4  # as published records call all of them


@pytest.mark.parametrize(
    ("name", "generic"),
    [
        ("AMD EPYC 7763 64-Core Processor", False),
        ("AMD EPYC 9J14 96-Core Processor", False),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", False),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", False),
        ("Intel(R) Xeon(R) Processor @ 2.600GHz", True),
        ("AMD EPYC-Rome Processor", True),
        ("QEMU Virtual CPU version 2.5+", True),
    ],
)
def test_a_processor_s_name_stays_as_it_is_if_it_names_the_model(
    monkeypatch: pytest.MonkeyPatch, name: str, generic: bool
) -> None:
    monkeypatch.setattr(env, "cpu_quota", lambda: None)
    found = machine_id(monkeypatch, {"model name": name, **CPUS["milan"]})
    assert (found != f"{name} (2 cores)") == generic


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of control groups in the place of Linux's; `own` beside it says which the process is in."""
    monkeypatch.setattr(env, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(env, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(env, "usable_cores", lambda: [0, 1])
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "cores", "words"),
    [
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1, "0.1 of 2 cores"),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1, "1.5 of 2 cores"),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 2, "2 cores"),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 2, "2 cores"),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 1, "0.5 of 2 cores"),
        ("0::/of/the/host\n", {"cpu.max": "10000 100000\n"}, 1, "0.1 of 2 cores"),
        (
            "4:cpu,cpuacct:/docker/x\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "10000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            1,
            "0.1 of 2 cores",
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2, "2 cores"),
        ("0::/../..\n", {"cpu.max": "1\n"}, 2, "2 cores"),
        ("", {}, 2, "2 cores"),
    ],
)
def test_the_quota_of_a_container_decides_threads_and_id(
    group: Path, own: str, files: dict[str, str], cores: int, words: str
) -> None:
    write(group.parent / "own", own)
    for name, text in files.items():
        write(group / name, text)
    assert env.available_cores() == cores
    assert str(env.machine.__wrapped__()["id"]).partition(" + ")[0].endswith(f"({words})")


def test_how_often_a_quota_stopped_this_process_is_counted(group: Path) -> None:
    write(group.parent / "own", "0::/a\n")
    assert env.throttled() == 0
    write(group / "a" / "cpu.stat", "usage_usec 5\nnr_throttled 3\nthrottled_usec 9\n")
    write(group / "cpu.stat", "nr_throttled 4\n")
    assert env.throttled() == 7


A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"
MIXED = [("GPU-1111-aa", T4), ("GPU-2222-bb", A100), ("GPU-2333-cc", A100)]
ALIKE = [("GPU-1111-aa", A100), ("GPU-2222-bb", A100)]


def gpu_of(
    monkeypatch: pytest.MonkeyPatch,
    cards: list[tuple[str, str]],
    chosen: str | None,
    order: str | None = "PCI_BUS_ID",
    of_cuda: str | None = None,
) -> str | None:
    """The name of the GPU that figures are filed under, on a host with these cards by UUID and name; `of_cuda` is what
    the driver calls its first, None where it does not answer."""

    def output(*command: str) -> str | None:
        if command[0] == sys.executable:
            return of_cuda
        assert (command[0], command[2:]) == ("nvidia-smi", ("--format=csv,noheader",))
        fields = command[1].removeprefix("--query-gpu=").split(",")
        known = [{"uuid": uuid, "driver_version": "570.86.10", "name": name} for uuid, name in cards]
        return "\n".join(", ".join(card[field] for field in fields) for card in known) or None

    monkeypatch.setattr(env, "_output", output)
    for variable, value in (("CUDA_VISIBLE_DEVICES", chosen), ("CUDA_DEVICE_ORDER", order)):
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
    found = env._gpu()
    assert found is None or found["driver"] == "570.86.10"
    return found and found["name"]


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        (None, T4),
        ("0", T4),
        ("1", A100),
        ("1,0", A100),
        (" 1 , 0", A100),
        ("GPU-2222-bb", A100),
        ("GPU-2222,GPU-1111", A100),  # CUDA takes the beginning of a UUID
        ("MIG-GPU-2333-cc/1/0", A100),
        ("", None),
        ("-1", None),
        ("-1,0", None),  # CUDA ends at the first that is none
        ("NoDevFiles", None),
        ("3", None),
        ("GPU-9999", None),
    ],
)
def test_figures_are_filed_under_the_gpu_that_the_environment_chooses(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, name: str | None
) -> None:
    assert gpu_of(monkeypatch, MIXED, chosen) == name


def test_where_cuda_numbers_different_gpus_in_an_order_of_its_own_it_is_asked_which_is_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gpu_of(monkeypatch, MIXED, None, order=None, of_cuda=A100) == A100
    assert gpu_of(monkeypatch, MIXED, "2", order="FASTEST_FIRST", of_cuda=T4) == T4
    assert gpu_of(monkeypatch, MIXED, "MIG-5c2b0f1d", of_cuda=A100) == A100  # whose card nvidia-smi does not say
    assert gpu_of(monkeypatch, MIXED, "GPU-1111", order=None, of_cuda=A100) == T4  # a UUID says it all
    # Of what does not answer nothing is known but the numbers of nvidia-smi.
    assert gpu_of(monkeypatch, MIXED, "1", order=None) == A100


def test_gpus_of_one_name_are_not_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen in (None, "0", "1", "GPU-2222", "MIG-5c2b0f1d"):
        assert gpu_of(monkeypatch, ALIKE, chosen, order=None, of_cuda="asked in vain") == A100
    assert gpu_of(monkeypatch, ALIKE, "2", order=None) is None
    assert gpu_of(monkeypatch, [], None) is None
    assert gpu_of(monkeypatch, [], "0") is None


@pytest.mark.parametrize("chosen", [None, "0", "MIG-5c2b0f1d"])
def test_that_no_gpu_was_found_is_no_gpu_s_name(monkeypatch: pytest.MonkeyPatch, chosen: str | None) -> None:
    assert gpu_of(monkeypatch, [], chosen) is None
    monkeypatch.setattr(env, "_output", lambda *command: "No devices were found")
    assert env._gpu() is None


@pytest.mark.parametrize(("code", "said"), [(0, f"{A100}\n"), (100, "")])
def test_the_driver_is_asked_for_the_name_of_the_first_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, said: str
) -> None:
    def get(device: Any, ordinal: int) -> int:
        device._obj.value = 7 + ordinal
        return 0

    def get_name(name: Any, length: int, device: Any) -> int:
        assert (length, device.value) == (len(name), 7)
        name.value = A100.encode()
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: code, cuDeviceGet=get, cuDeviceGetName=get_name)
    monkeypatch.setattr(ctypes, "CDLL", {"libcuda.so.1": driver}.__getitem__)
    exec(env._FIRST_OF_CUDA, {})
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("chosen", "names"), [("", []), ("-1", []), ("0, 2", ["0", "2"]), ("1,,0", ["1"]), ("GPU-1,-1,GPU-2", ["GPU-1"])]
)
def test_workers_share_the_gpus_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, chosen: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert env.gpus() == names
