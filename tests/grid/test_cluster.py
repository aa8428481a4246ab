"""A grid on a Ray cluster of three nodes on this machine: the records of one process, whatever dies."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from suite.errors import InputError
from suite.grid import plan as grid
from suite.grid.plan import RunOptions

ray = pytest.importorskip("ray", reason="needs the extra [ray]")

from suite.grid import cluster as on_ray  # noqa: E402 - only where there is Ray

ROW = ("--table", "2", "--depth", "20", "--steps", "1", "--batch-sizes", "1", "--runtimes", "onnxruntime")
ROW += ("--rows", "resnet20_relu_bn@cifar10")
Start = Callable[[int, str], "subprocess.Popen[str]"]
# A driver of stages that take no time and tell where they were done. What is defined here goes to the nodes by value.
DRIVER = """
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path

import ray
import suite.grid.cluster, suite.grid.runner
from suite.grid.plan import TIMED, RunOptions, plan

root, address, head = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
options = RunOptions(2, root, rows=("resnet110_relu_bn@cifar10",), seeds=int(sys.argv[4]), address=address)
work_on = suite.grid.cluster.work_on

def stages_of(node, unhappy):
    import suite.grid.claims, suite.results.holder, suite.grid.perform
    # As if each node were a machine of its own, whose processes others cannot look up.
    suite.results.holder._boot = lambda: node
    suite.grid.claims.PATIENCE, suite.grid.claims.BEAT = 4.0, 0.5

    def one(self, stage, folder, step):
        training = stage.kind == "train"
        if unhappy and training and stage.inputs["seed"] == 3:
            return MemoryError("no room")
        if unhappy and training and stage.inputs["seed"] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if unhappy and node != head:
            try:
                with open(root / "victim", "x") as file:
                    file.write(f"{node} {stage.key}")
                time.sleep(100)  # until the node is killed
            except FileExistsError:
                pass
        if not unhappy:  # each side does some
            (root / ("local" if node == "local" else "ray")).touch()
            while not (root / "local").exists() or not (root / "ray").exists():
                time.sleep(0.05)
        time.sleep(0.05)
        for name in ("model.safetensors", "model.onnx"):
            (folder / name).write_text(stage.key)
        return {"trained": True, "node": node}

    P = suite.grid.perform.Performer
    P._one = one
    P._train = lambda self, begun, end: [end(w, one(self, w.stage, w.folder, w.step)) for w in begun]

def on_node(options, keys):
    stages_of(ray.get_runtime_context().get_node_id(), "unhappy" in sys.argv)
    work_on(options, keys)

def without_timings(options, processes):
    found = plan(options, processes)
    return replace(found, stages=tuple(stage for stage in found.stages if stage.kind not in TIMED))

if sys.argv[5] == "local":
    stages_of("local", False)
    suite.grid.runner.work(options)
else:
    suite.grid.cluster.work_on, suite.grid.cluster.plan = on_node, without_timings
    suite.grid.cluster.RETRIES = 2
    outcome = suite.grid.cluster.run(options)
    print(outcome.failed, len(outcome.trained))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Three nodes with two cores each, two of them to take timings; the first one is that of the drivers."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # a busy machine would hardly let it work at Ray's own 15
        cluster = Cluster()
        for resources in ({}, {"bench": 1}, {"bench": 1}):
            add(cluster, resources)
        yield cluster
        cluster.shutdown()


def add(cluster: Any, resources: dict[str, int]) -> None:
    cluster.add_node(num_cpus=2, resources=resources, object_store_memory=80 * 2**20, include_dashboard=False)


def records(folder: Path, kind: str = "*") -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in folder.glob(f"records/{kind}/*.json")}


def run(folder: Path, *arguments: str, row: tuple[str, ...] = ROW) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "suite", "run", *row, "--results", folder.name, *arguments]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def start(nodes: Any, tmp_path: Path) -> Iterator[Start]:
    """Start DRIVER on so many cells."""
    started = []

    def call(cells: int, how: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", DRIVER, str(tmp_path), nodes.address, nodes.head_node.node_id, str(cells), how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.full
def test_a_cluster_leaves_the_records_of_one_process(nodes: Any, tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    assert run(one).returncode == 0
    done = run(three, "--executor", "ray", "--address", nodes.address, "--latency-resource", "bench")
    assert done.returncode == 0, done.stderr
    assert "train: done by another process" in done.stderr
    assert "latency onnxruntime cpu batch 1: done by another process" in done.stderr
    found, expected = records(three), records(one)
    assert found.keys() == expected.keys()
    for name, record in found.items():
        assert record["environment"]["command"][:4] == ["python", "-m", "suite", "run"]
        assert record["inputs"] == expected[name]["inputs"]
        if record["stage"] not in grid.TIMED:
            assert record["result"] == expected[name]["result"]
    assert list((three / "claims").iterdir()) == []


@pytest.mark.full
def test_a_cluster_runs_a_table_and_models_of_one_s_own(nodes: Any, tmp_path: Path) -> None:
    """The nodes import the user's module and read the user's table, which the driver names."""
    example = Path(__file__).parents[2] / "examples"
    for name in ("my_table.toml", "my_models.py"):
        (tmp_path / name).write_text((example / name).read_text("utf-8"), "utf-8")
    own = ("--table", str(tmp_path / "my_table.toml"), "--rows", "resnet20_sqrelu_bn", "--steps", "1", "--keep")
    clustered = run(tmp_path / "ray", "--executor", "ray", "--address", nodes.address, row=own)
    assert clustered.returncode == 0, clustered.stderr
    (trained,) = records(tmp_path / "ray", "train").values()
    assert trained["inputs"]["model"] == "resnet20_sqrelu_bn"
    assert records(tmp_path / "ray", "parity")
    assert all(each["result"]["passed"] for each in records(tmp_path / "ray", "parity").values())
    assert records(tmp_path / "ray", "latency")


@pytest.mark.full
def test_a_killed_node_a_killed_process_and_a_failure_leave_the_rest_of_the_grid_complete(
    nodes: Any, start: Start, tmp_path: Path
) -> None:
    cells, victim = 12, tmp_path / "victim"
    driver = start(cells, "unhappy")
    while not (victim.exists() and victim.read_text()):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.1)
    node, key = victim.read_text().split()
    (killed,) = [each for each in nodes.worker_nodes if each.node_id == node]
    nodes.remove_node(killed, allow_graceful=False)
    try:
        out, err = driver.communicate(timeout=300)
        assert out == f"2 {cells - 2}\n", out + err
        for kind in ("train", "export", "parity"):
            found = list(records(tmp_path, kind).values())
            assert len({record["key"] for record in found}) == len(found) == cells - 2
            for record in found:
                assert (tmp_path / record["artifacts"]["model.onnx"]["path"]).read_text() == record["key"]
        (taken_over,) = [record for record in records(tmp_path).values() if record["key"] == key]
        assert taken_over["result"]["node"] != node
        reasons = [json.loads(path.read_text())["reason"] for path in tmp_path.glob("failures/train/*.json")]
        assert sorted(reason.split(":")[0] for reason in reasons) == ["MemoryError", "WorkerCrashedError"]
    finally:
        add(nodes, {"bench": 1})


@pytest.mark.full
def test_a_cluster_and_a_worker_of_another_machine_divide_a_grid(start: Start, tmp_path: Path) -> None:
    driver, other = start(12, "ray"), start(12, "local")
    out, err = driver.communicate(timeout=300)
    assert out == "0 12\n", err
    _, err = other.communicate(timeout=60)
    assert other.returncode == 0, err
    found = [record["result"]["node"] for record in records(tmp_path).values()]
    assert len(found) == 36
    assert 0 < found.count("local") < 36
    assert list((tmp_path / "claims").glob("*.json")) == []


@pytest.mark.full
def test_a_gang_of_processes_trains_in_one_task(nodes: Any, tmp_path: Path) -> None:
    script = """
import sys
from dataclasses import replace
from pathlib import Path
import suite.grid.cluster
from suite.grid.plan import RunOptions, plan

def trainings(options, processes):
    found = plan(options, processes)
    return replace(found, stages=tuple(stage for stage in found.stages if stage.kind == "train"))

suite.grid.cluster.plan = trainings
options = RunOptions(2, Path(sys.argv[1]), rows=("resnet20_relu_bn@cifar10",), depth=20, steps=1)
outcome = suite.grid.cluster.run(replace(options, address=sys.argv[2], processes=2))
print(outcome.failed, *outcome.trained)
"""
    command = [sys.executable, "-c", script, str(tmp_path), nodes.address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path).values()
    assert done.stdout == f"0 {record['key']}\n"
    assert (record["result"]["processes"], record["result"]["batch_per_process"]) == (2, 16)


@pytest.mark.full
def test_what_the_cluster_or_a_node_cannot_do_is_one_line(nodes: Any, tmp_path: Path) -> None:
    script = """
import sys
from dataclasses import replace
from pathlib import Path
import ray
import suite.grid.cluster
from suite.errors import InputError
from suite.grid.plan import RunOptions

def differing(options):
    return [{"machine": ray.get_runtime_context().get_node_id()}]

def refusing(options, keys):
    raise InputError("cannot")

suite.grid.cluster.work_on, suite.grid.cluster._timings = refusing, differing
options = RunOptions(2, Path(sys.argv[1]), rows=("resnet110_relu_bn@cifar10",), address=sys.argv[2])
for changed in ({"latency_resource": "absent"}, {"device": "cuda", "processes": 2}, {"latency_resource": "bench"}, {}):
    try:
        suite.grid.cluster.run(replace(options, **changed))
    except InputError as error:
        print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path), nodes.address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    absent, gpus, differing, refusing = done.stdout.splitlines()
    assert absent == "--latency-resource absent: no node of the Ray cluster has 1 absent"
    assert gpus == "--device cuda: no node of the Ray cluster has 2 GPU"
    assert differing.startswith("--latency-resource bench: its nodes differ in machine, cores or versions")
    assert all(node.node_id in differing for node in nodes.worker_nodes)
    assert refusing == f"{socket.gethostname()}: cannot"
    assert not list(tmp_path.glob("records/*"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nobody", "localhost:many"])
def test_an_address_that_does_not_answer_is_one_line(address: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(
        InputError, match=rf"^--address {address}: .*; use --address auto or the HOST:PORT of a Ray cluster$"
    ):
        on_ray.run(RunOptions(2, tmp_path, address=address))
    assert time.monotonic() - start < 10
    assert list(tmp_path.iterdir()) == []


def test_what_ray_prints_as_it_works_or_ends_stays_out_of_the_table_s_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", lambda: print("last words"))
    with on_ray._connection(None):
        print("a node died")
    print("| table |")
    assert capsys.readouterr() == ("| table |\n", "a node died\nlast words\n")


def test_a_stage_demands_what_it_needs_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def node(alive: bool = True, **resources: int) -> dict[str, Any]:
        return {"NodeID": "n", "Alive": alive, "Resources": resources}

    with_gpus = [node(CPU=16, GPU=4), node(CPU=8), node(memory=1), node(alive=False, CPU=1, GPU=9)]
    monkeypatch.setattr(on_ray, "_task", lambda function, demand: (function, demand))

    def demands(nodes: list[Any], **options: Any) -> tuple[Any, Any]:
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        cluster = on_ray._Cluster(RunOptions(2, tmp_path, **options))
        assert cluster._other[0] is on_ray.work_on
        return cluster._tasks["train"], cluster._other[1]

    work_on, together = on_ray.work_on, on_ray._train_in_processes
    assert demands(with_gpus) == ((work_on, {"GPU": 1}), {"CPU": 8})
    assert demands(with_gpus, workers=4) == ((work_on, {"GPU": 1}), {"CPU": 2})
    assert demands(with_gpus, workers=99) == ((work_on, {"GPU": 1}), {"CPU": 1})
    assert demands(with_gpus, processes=4) == ((together, {"GPU": 4}), {"CPU": 8})
    assert demands(with_gpus, device="cpu", processes=4) == ((together, {"CPU": 8}), {"CPU": 8})
    assert demands(with_gpus[1:]) == ((work_on, {"CPU": 8}), {"CPU": 8})
    with pytest.raises(InputError, match=r"^--device auto: no node of the Ray cluster has 5 GPU$"):
        demands(with_gpus, processes=5)
    with pytest.raises(InputError, match=r"^--device auto: no node of the Ray cluster has 1 CPU$"):
        demands([node(memory=1)])


def test_trainings_that_share_a_device_and_timings_in_turns_are_one_task(tmp_path: Path) -> None:
    rows = tuple(f"resnet110_{name}_bn@cifar10" for name in ("relu", "crelu"))
    stages = grid.plan(RunOptions(2, tmp_path, rows=rows, seeds=2)).stages
    groups = on_ray._groups(stages, pack=3)
    assert sorted(stage.key for group in groups for stage in group) == sorted(stage.key for stage in stages)
    sizes = [(group[0].kind, len(group)) for group in groups if len(group) > 1]
    assert sizes == [("train", 3), ("latency", 4), ("latency", 2)]
    assert all(
        len({grid.timing_group(stage) for stage in group}) == 1 for group in groups if group[0].kind == "latency"
    )
