"""Several processes on one grid: everything is done, each stage's result is there once, whoever dies."""

import dataclasses
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from suite import distributed, progress
from suite.errors import InputError
from suite.grid import calls, estimate, perform, runner, status
from suite.grid import plan as grid
from suite.grid.claims import Claims
from suite.grid.plan import Grid, RunOptions, Stage
from suite.grid.reach import describe_unsupported_forms, within_reach
from suite.results import store
from suite.results.record import key_of
from suite.tables import spec

# Stages that take no time, so that what is tried is the division of work; each notes that it was done.
QUICK_STAGES = """
import os, sys, pathlib, random, time
import suite.grid.perform, suite.grid.runner, suite.progress, suite.distributed
from suite.grid.claims import Claims
from suite.grid.plan import RunOptions, plan

root, cells = pathlib.Path(sys.argv[1]), int(sys.argv[2])

def work(self, stage, folder, step):
    time.sleep(random.random() * 0.15)
    (folder / "model.safetensors").write_bytes(stage.key.encode())
    (folder / "model.onnx").write_bytes(stage.key.encode())
    if stage.inputs.get("seed") == 13 and stage.kind == "train":
        raise MemoryError("no room")
    return {"trained": True}

P = suite.grid.perform.Performer
P._train = lambda self, begun, end: [end(each, P._one(self, each.stage, each.folder, each.step)) for each in begun]
original = P.__init__
def init(self, *a, **k):
    original(self, *a, **k)
    self._single = dict.fromkeys(("train", "export", "parity"), lambda *a: work(self, *a))
P.__init__ = init

options = RunOptions(2, root, rows=("resnet110_relu_bn@cifar10",), seeds=cells)
planned = plan(options)
with Claims(root) as claims:
    worker = suite.grid.runner.Worker(options, planned, suite.distributed.ALONE, suite.progress.Silent(0), claims)
    worker.drain(timings=False)
print(len(worker.done), worker.failures)
"""


@pytest.mark.full
def test_four_workers_that_are_killed_at_random_complete_a_grid_with_each_result_once(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    cells, wanted = (1000, 40) if pytestconfig.getoption("--nightly") else (60, 6)

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", QUICK_STAGES, str(tmp_path), str(cells)], stdout=subprocess.PIPE, text=True
        )

    draw = random.Random(0)
    workers = [start() for _ in range(4)]
    kills = 0
    deadline = time.monotonic() + 900
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(draw.uniform(0.5, 1.0))
        victim = draw.randrange(4)
        if kills < wanted and workers[victim].poll() is None:
            workers[victim].kill()
            workers[victim].communicate()
            workers[victim] = start()
            kills += 1
    said = {worker.communicate()[0] for worker in workers}
    # One cell fails in training, once; what it would have needed is not tried.
    assert kills == wanted
    assert all(line.split()[0] == str(3 * (cells - 1)) for line in said), said
    for stage in ("train", "export", "parity"):
        # A worker that was killed while it wrote may leave its file aside, `.NAME.tmp`, which nobody reads.
        records = [json.loads(path.read_text()) for path in (tmp_path / "records" / stage).glob("*.json")]
        assert len({record["key"] for record in records}) == len(records) == cells - 1
        for record in records:
            assert record["key"] == key_of(stage, record["inputs"])
            for artifact in record["artifacts"].values():
                assert (tmp_path / artifact["path"]).read_text() == record["key"]
    assert [note.reason for note in store.Store(tmp_path).failures()] == ["MemoryError: no room"]
    assert not list((tmp_path / "claims").glob("*.json"))


@pytest.mark.full
def test_two_local_workers_leave_all_that_was_planned(tmp_path: Path) -> None:
    rows = ("resnet20_relu_bn@cifar10", "resnet20_crelu_bn@cifar10")
    stages = ("train", "export", "latency")
    row = ["--table", "2", "--depth", "20", "--steps", "2", "--batch-sizes", "1", "--rows", ",".join(rows)]
    command = [sys.executable, "-m", "suite", "run", *row, "--stages", ",".join(stages), "--workers", "2"]
    command += ["--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "claims").iterdir()) == []
    options = RunOptions(
        2,
        tmp_path,
        rows=rows,
        depth=20,
        steps=2,
        batch_sizes=(1,),
        runtimes=("onnxruntime",),
        timings="quick",
        stages=stages,
    )
    planned = {stage.key for stage in grid.plan(options).stages if stage.kind in (*stages, "peak")}
    assert {path.stem.split("-")[-1] for path in tmp_path.glob("records/*/*.json")} == planned
    assert len(planned) == 7, "for each row three, and the peak of the machine"
    assert "train: done by another process" in done.stderr
    assert "latency onnxruntime cpu batch 1: done, " in done.stderr


def test_a_run_is_known_to_be_there_before_its_first_stage_until_its_end(tmp_path: Path) -> None:
    options = RunOptions(2, tmp_path, rows=("resnet110_relu_bn@cifar10",))
    results, said = store.Store(tmp_path), []
    runner.lead(
        options,
        grid.plan(options),
        distributed.ALONE,
        lambda worker: said.append(status.render(status.read(results))),
    )
    assert "time left: not known yet\n" in said[0]
    assert "nobody is at it" in status.render(status.read(results))


def test_all_keys_are_known_before_anything_runs(tmp_path: Path) -> None:
    options = RunOptions(4, tmp_path, rows=("resnet50_crelu_bn",), forms=("fp32", "plain", "int8"), batch_sizes=(1, 8))
    planned = grid.plan(options)
    kinds = [stage.kind for stage in planned.stages]
    assert kinds[:7] == ["train", "export", "export", "convert", "parity", "parity", "parity"]
    assert kinds[7:] == ["peak"] * 2 + ["latency"] * 7
    assert len({stage.key for stage in planned.stages}) == len(planned.stages)
    assert [stage.key for stage in grid.plan(options).stages] == [stage.key for stage in planned.stages]


def test_gpus_run_the_default_export_and_cuda_runs_no_int8(tmp_path: Path) -> None:
    row = ("resnet20_relu_bn@cifar10",)
    options = grid.RunOptions(
        2, tmp_path, depth=20, rows=row, forms=("fp32", "fp16", "int8"), runtimes=("onnxruntime",)
    )
    alone = grid.plan(options).stages
    stages = grid.plan(dataclasses.replace(options, providers=("cpu", "cuda", "tensorrt"))).stages
    assert {stage.key for stage in alone} < {stage.key for stage in stages}  # a GPU beside it changes nothing
    kinds = [stage.kind for stage in stages]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "train": 1,
        "export": 2,  # rewritten for the CPU, and the default export for GPUs
        "convert": 4,  # float16 and int8 of each
        "parity": 8,
        "peak": 8,
        "latency": 16,  # at two batch sizes
    }
    files = {stage.key: stage for stage in stages if stage.kind in ("export", "convert")}
    assert len(files) == 6
    for stage in stages:
        if stage.kind in ("parity", "latency"):
            made, on_cpu = files[stage.inputs["file"]], stage.inputs["provider"] == "cpu"
            assert bool(files[stage.inputs["export"]].inputs.get("plain")) == (not on_cpu)
            if stage.inputs["precision"] == "int8":
                assert stage.inputs["provider"] != "cuda"
                assert (made.inputs.get("activations") == "symmetric") == (not on_cpu)
    told = list(describe_unsupported_forms(dataclasses.replace(options, providers=("cpu", "cuda", "tensorrt"))))
    assert len(told) == 1
    assert told[0].startswith("left out: int8 on cuda: ")


def test_int8_on_the_cpu_keeps_its_keys_and_float16_has_new_ones(tmp_path: Path) -> None:
    row = ("resnet20_relu_bn@cifar10",)
    options = grid.RunOptions(2, tmp_path, depth=20, rows=row, forms=("fp32", "fp16", "int8"))
    converted = {stage.inputs["form"]: stage.inputs for stage in grid.plan(options).stages if stage.kind == "convert"}
    assert {form: inputs["version"] for form, inputs in converted.items()} == {"fp16": 3, "int8": 2}


@pytest.mark.parametrize(("asked", "rounds"), [({}, 5), ({"timings": "thorough"}, 24), ({"timings": "quick"}, 5)])
def test_a_quick_run_may_have_thorough_timings(tmp_path: Path, asked: dict[str, Any], rounds: int) -> None:
    planned = grid.plan(grid.RunOptions(2, tmp_path, depth=20, rows=("resnet20_relu_bn@cifar10",), **asked))
    timed = [stage for stage in planned.stages if stage.kind == "latency"]
    assert {stage.inputs["protocol"]["rounds"] for stage in timed} == {rounds}
    before: set[str] = set()
    for stage in planned.stages:
        assert {need.key for need in stage.needs} <= before
        before.add(stage.key)
    assert list(tmp_path.iterdir()) == []


def test_all_forms_of_a_network_are_timed_in_turns_with_its_neighbours_as_many_as_fit(tmp_path: Path) -> None:
    rows = tuple(f"resnet20_{name}_bn@cifar10" for name in ("relu", "w32_relu", "crelu"))
    options = RunOptions(2, tmp_path, depth=20, rows=rows, forms=("fp32", "plain", "int8"), batch_sizes=(1, 8))
    timed = of_kind(grid.plan(options), "latency")
    singly = [stage for stage in timed if stage.inputs["batch_size"] == 1]
    assert [stage.inputs["model"] for stage in singly] == [row.split("@")[0] for row in rows for _ in range(4)]
    assert {(s.inputs["runtime"], s.inputs["precision"]) for s in singly[:4]} == {
        ("onnxruntime", "fp32"),
        ("onnxruntime", "plain"),
        ("onnxruntime", "int8"),
        ("torch", "fp32"),
    }
    for most, taken in ((12, 12), (11, 8), (8, 8), (4, 4), (3, 3)):
        assert grid.to_time_with(timed[0], timed, lambda stages, most=most: most) == singly[:taken]
    # The first form of the first is done.
    assert grid.to_time_with(singly[2], singly[2:], lambda stages: 6) == singly[2:8]
    assert grid.to_time_with(singly[2], singly[2:], lambda stages: 5) == singly[2:4]
    eights = [stage for stage in timed if stage.inputs["batch_size"] == 8]
    assert grid.to_time_with(eights[0], timed, len) == eights, "asked of those that may be timed with it"
    assert len(eights) == 9, "torch is timed at one batch size"


def test_files_that_are_gone_do_not_end_the_choice_of_timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RunOptions(2, tmp_path, rows=("resnet20_relu_bn@cifar10",), depth=20)
    timed = of_kind(grid.plan(options), "latency")
    stages = calls.Stages(store.Store(tmp_path), progress.Silent(0))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    assert stages.most_in_turns(timed) == 6, "as many as processes without a network fit"


ROWS = ("resnet20_*_bn@cifar10",)


def keep(folder: Path, *stages: Stage) -> None:
    for stage in stages:
        store.Store(folder).put(stage.kind, stage.inputs, {"trained": True}, {}, {"seconds": 1.0})


def of_kind(planned: Grid, *kinds: str) -> list[Stage]:
    return [stage for stage in planned.stages if stage.kind in kinds]


def test_stages_that_are_asked_for_have_the_keys_that_they_have_among_all(tmp_path: Path) -> None:
    options = RunOptions(2, tmp_path, depth=20, rows=ROWS, forms=("fp32", "int8"))
    whole = grid.plan(options)
    parts = {name: grid.plan(dataclasses.replace(options, stages=(name,))) for name in spec.STAGES[:4]}
    kinds = {name: sorted({stage.kind for stage in part.stages}) for name, part in parts.items()}
    assert kinds == {
        "train": ["train"],
        "export": ["convert", "export"],
        "parity": ["parity"],
        "latency": ["latency", "peak"],
    }
    found = [stage.key for part in parts.values() for stage in part.stages]
    assert sorted(found) == sorted(stage.key for stage in whole.stages)
    assert [len(part.trainings) for part in parts.values()] == [3] * 4
    with pytest.raises(
        InputError, match=r"^--stages analyze: table 2 has no such stage; use train, export, parity or lat"
    ):
        grid.plan(dataclasses.replace(options, stages=("analyze",)))


def test_what_needs_a_stage_that_is_neither_asked_for_nor_stored_is_left_out_in_one_line(tmp_path: Path) -> None:
    options = RunOptions(2, tmp_path, depth=20, rows=ROWS, batch_sizes=(1,), stages=("parity", "latency"))
    whole = grid.plan(dataclasses.replace(options, stages=spec.STAGES))
    keep(tmp_path, *of_kind(whole, "train")[:2], *of_kind(whole, "export")[:1])

    def is_stored(stage: Stage) -> bool:
        return store.Store(tmp_path).get(stage.kind, stage.inputs) is not None

    found, said = within_reach(grid.plan(options), is_stored)
    # Of the first network everything, of the second what torch alone does.
    assert sorted(stage.kind for stage in found.stages) == ["latency", "latency", "latency", "parity", "peak"]
    assert said == [
        "left out: 2 parity, 3 latency; what they need (export, train) is neither among --stages nor stored"
    ]
    # What is asked for is reached through what is asked for.
    exported, said = within_reach(
        grid.plan(dataclasses.replace(options, stages=("export", "parity", "latency"))), is_stored
    )
    assert len(of_kind(exported, "export")) == len(of_kind(exported, "parity")) == 2
    assert said == [
        "left out: 1 export, 1 parity, 2 latency; what they need (train) is neither among --stages nor stored"
    ]
    nothing, _ = within_reach(grid.plan(dataclasses.replace(options, results=tmp_path / "x")), lambda _: False)
    assert nothing.stages == ()  # nor the machine's peak, which nothing would stand beside
    assert within_reach(whole, lambda _: False) == (whole, [])


def test_a_dry_run_counts_only_what_is_asked_for_and_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RunOptions(2, tmp_path, depth=20, rows=ROWS, stages=("export",))
    keep(tmp_path, grid.plan(options).trainings[0])
    monkeypatch.setattr(estimate, "probe", lambda *_: estimate.Probe(*[1.0] * 9))
    said: list[str] = []
    expected = estimate.estimate_run(options, None, said.append)
    assert [(cost.stages, cost.stored) for cost in expected.costs.values()] == [(1, 0), (0, 0), (0, 0)]
    assert expected.render().count("left out") == 2
    assert [line for line in said if line.startswith("left out: 2 export; what they need (train)")]
    limited = estimate.estimate_run(options, 3600.0, said.append)
    assert [cell.row.model for cell in limited.chosen] == [expected.chosen[0].row.model]


def worker(options: RunOptions, claims: Claims, planned: Grid | None = None) -> runner.Worker:
    return runner.Worker(options, planned or grid.plan(options), distributed.ALONE, progress.Silent(0), claims)


def test_a_pack_begins_with_the_longest_and_stores_each_as_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RunOptions(2, tmp_path, depth=20, rows=ROWS, steps=2, pack=2, stages=("train",))
    happened: list[tuple[str, int]] = []

    def stored() -> int:
        return len(list(tmp_path.glob("records/train/*")))

    def train(self: Any, begun: Any, end: Callable[..., Any]) -> None:
        under_way = list(begun)
        while under_way:
            each = under_way.pop(0)
            happened.append((each.stage.cell.row.model, stored()))
            following = end(each, {"trained": True})
            under_way += [following] if following else []

    monkeypatch.setattr(perform.Performer, "_train", train)
    with Claims(tmp_path) as claims:
        mine = worker(options, claims)
        mine.drain()
        assert list((tmp_path / "claims").glob("*.json")) == []
    # Twice the width is four times the work, CReLU twice; the third begins when one of two has ended.
    assert happened == [("resnet20_w32_relu_bn", 0), ("resnet20_crelu_bn", 1), ("resnet20_relu_bn", 2)]
    assert stored() == 3
    assert mine.failures == 0


def test_after_the_time_nothing_is_begun_and_what_is_left_is_said(tmp_path: Path) -> None:
    options = RunOptions(2, tmp_path, depth=20, rows=ROWS, batch_sizes=(1,), until=datetime.now(UTC))
    planned = grid.plan(options)
    keep(tmp_path, *of_kind(planned, "train")[:1])
    midst = of_kind(planned, "train")[1]
    saved = store.Store(tmp_path).checkpoints("train", midst.inputs)
    saved.mkdir(parents=True)
    (saved / "32.safetensors").touch()
    with Claims(tmp_path) as claims:
        mine = worker(options, claims)
        mine.drain()
        (said,) = mine.left()
        assert said == (
            f"the time is up: {len(planned.stages) - 1} stages are left, in the midst of which is "
            "resnet20_w32_relu_bn on digits10; the same command goes on from there"
        )
        assert mine.failures == 0
        assert len(mine.done) == 1
