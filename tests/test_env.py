"""What is written down beside a figure."""

import os
import pwd
import sys
from pathlib import Path

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
