"""Do a grid on a Ray cluster: its stages as tasks that demand cores or GPUs, retried
when a process or a node dies.

Results and claims go through the results folder, which all nodes must share. So a task
says no more than that a node is to do some stages now, and local workers and other
machines may be at the same folder.
"""

import logging
import os
import signal
import socket
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

from suite.distributed import ALONE
from suite.errors import InputError, describe_error
from suite.grid.effort import longest_first
from suite.grid.plan import TIMED, Grid, RunOptions, Stage, plan, timing_group
from suite.grid.runner import LOOK, RunSummary, Worker, check_timing, lead, work_on

# Ray reads these as it is imported. Under `uv run` it would copy the current folder to all nodes, and it would report
# its use to its makers.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# How often a stage is begun anew after a death; one that dies more often is itself the cause.
RETRIES = 4

# How much of what a task needs, by Ray's names: CPU, GPU, or a custom resource.
Demand = dict[str, float]


def run(options: RunOptions) -> RunSummary:
    """Run a table as `runner.run` does, on a cluster; timings are taken here unless
    nodes are named for them.

    Raises:
        InputError: no cluster answers, it lacks what the options ask for, or one of its
            nodes cannot use them.
    """
    options = _with_absolute_paths(options)
    with _connection(options.address):
        cluster = _Cluster(options)
        grid = plan(options, options.processes)
        if options.latency_resource:
            grid = cluster.plan_timings(grid)
        else:
            check_timing(options)
        return lead(options, grid, ALONE, cluster.do_stages)


class _Cluster:
    """The cluster that this process is connected to.

    A training on GPUs demands no cores, since it needs few, and other stages may use
    those of its node meanwhile. All else demands a worker's share of the cores of the
    smallest node, and a timing those of a whole node.

    Raises:
        InputError: no node can train as the options ask.
    """

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self._nodes = [node for node in ray.nodes() if node["Alive"]]
        share = max(1, _fewest_cores(self._nodes) // options.workers)
        demand: Demand = {"CPU": share}
        if options.device == "cuda" or (options.device == "auto" and any("GPU" in n["Resources"] for n in self._nodes)):
            demand = {"GPU": options.processes}
        self._nodes_that_meet(f"--device {options.device}", demand)
        self._other = _task(work_on, {"CPU": share})
        self._tasks = {"train": _task(_train_in_processes if options.processes > 1 else work_on, demand)}

    def plan_timings(self, grid: Grid) -> Grid:
        """The grid with its timings as the nodes plan them that are to take them,
        instead of this machine.

        Raises:
            InputError: no node has the resource, its nodes are not of one kind, or one
                of them cannot do it.
        """
        assert self.options.latency_resource
        option = f"--latency-resource {self.options.latency_resource}"
        demand: Demand = {self.options.latency_resource: 1}
        if set(self.options.providers) - {"cpu"}:
            demand["GPU"] = 1
        nodes = self._nodes_that_meet(option, demand)
        self._tasks |= dict.fromkeys(TIMED, _task(work_on, demand | {"CPU": _fewest_cores(nodes)}))
        ask = _task(_timings, {"GPU": demand.get("GPU", 0)})
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        try:
            answers = ray.get([ask.options(scheduling_strategy=p).remote(sys.argv, self.options) for p in places])
        except RayError as error:
            raise InputError(f"{option}: {_reason(error)}") from None
        for answer in answers:
            if isinstance(answer, InputError):
                raise answer
        if any(answer != answers[0] for answer in answers):
            machines = sorted({str(inputs["machine"]) for answer in answers for inputs in answer})
            raise InputError(
                f"{option}: its nodes differ in machine, cores or versions, and a column shows one kind of machine: "
                + ", ".join(machines)
            )
        inputs = iter(answers[0])
        stages = (replace(stage, inputs=next(inputs)) if stage.kind in TIMED else stage for stage in grid.stages)
        return replace(grid, stages=tuple(stages))

    def do_stages(self, worker: Worker) -> None:
        """Have the nodes do all stages of a worker's grid, timings last."""
        self._do_on_nodes(worker, (stage for stage in worker.grid.stages if stage.kind not in TIMED))
        if self.options.latency_resource:
            self._do_on_nodes(worker, (stage for stage in worker.grid.stages if stage.kind in TIMED))
        else:
            worker.drain()

    def _do_on_nodes(self, worker: Worker, stages: Iterable[Stage]) -> None:
        pending = dict.fromkeys(stages)
        tasks: dict[Future[Any], list[Stage]] = {}
        while pending or tasks:
            elsewhere = worker.look(pending)
            begun = {stage for each in tasks.values() for stage in each}
            free = [each for each in pending if each not in begun and each.key not in elsewhere]
            if worker.deadline.passed:
                if not any(stage.key in elsewhere for stage in begun):
                    return  # what still waits for a node is not begun
                free = []
            for together in _groups(filter(worker.is_ready, free), self.options.pack):
                remote = self._tasks.get(together[0].kind, self._other)
                task = remote.remote(sys.argv, self.options, [stage.key for stage in together])
                tasks[task.future()] = together
            if not tasks:
                sleep(LOOK)
                continue
            # In ray.wait a SIGTERM would lose its exit code.
            ended, _ = wait(tasks, timeout=LOOK, return_when=FIRST_COMPLETED)
            for future in ended:
                asked, reason = tasks.pop(future), _failure(future)
                if not reason:
                    continue
                worker.look(pending)  # some of them may be done all the same
                for stage in (each for each in asked if each in pending):
                    worker.store.fail(stage.kind, stage.inputs, reason)
                    worker.give_up(stage, reason)

    def _nodes_that_meet(self, option: str, demand: Demand) -> list[Any]:
        """The nodes that can meet a demand when nothing else runs there.

        Raises:
            InputError: there are none.
        """
        able = [node for node in self._nodes if all(node["Resources"].get(name, 0) >= demand[name] for name in demand)]
        if not able:
            lacking = " and ".join(f"{count:g} {name}" for name, count in demand.items())
            raise InputError(f"{option}: no node of the Ray cluster has {lacking}")
        return able


def _task(function: Callable[..., Any], demand: Demand) -> Any:
    """A function as a Ray task with demands by Ray's names of them.

    Ray puts an exception in words of its own, so that an InputError is returned
    instead.
    """

    def on_node(argv: list[str], *arguments: Any) -> Any:
        sys.argv = argv  # a record tells the command
        try:
            return function(*arguments)
        except InputError as error:
            return InputError(f"{socket.gethostname()}: {error}")

    named = {name: count for name, count in demand.items() if name not in ("CPU", "GPU")}
    cores, gpus = demand.get("CPU", 0), demand.get("GPU", 0)
    return ray.remote(num_cpus=cores, num_gpus=gpus, resources=named, max_retries=RETRIES)(on_node)


def _timings(options: RunOptions) -> list[Any]:
    """Inputs of the timings of a grid as this machine plans them."""
    check_timing(options)
    return [dict(stage.inputs) for stage in plan(options, options.processes).stages if stage.kind in TIMED]


def _train_in_processes(options: RunOptions, keys: Sequence[str]) -> None:
    """Do trainings by several processes of this machine, as under `torchrun`."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=options.processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RETRIES,
    )
    outcomes = elastic_launch(config, _member)(sys.argv, options, keys)
    for error in outcomes.values():
        if error:
            raise error


def _member(argv: list[str], options: RunOptions, keys: Sequence[str]) -> Exception | None:
    import torch

    sys.argv = argv
    torch.set_num_threads(max(1, torch.get_num_threads() // options.processes))
    try:
        work_on(options, keys)
    except Exception as error:  # any: raised here, it would restart the processes, which is for those that were killed
        return error
    return None


def _failure(task: Future[Any]) -> str:
    """Why a task that has ended could not do its stages; empty if it could, and what
    came of them is in the folder.

    Raises:
        InputError: what the user gave is not usable on its node.
    """
    try:
        answer = task.result()
    except RayError as error:
        return _reason(error)
    if isinstance(answer, InputError):
        raise answer
    return ""


def _reason(error: RayError) -> str:
    told = error.cause if isinstance(error, RayTaskError) else error
    return describe_error(told)


def _groups(stages: Iterable[Stage], pack: int) -> list[list[Stage]]:
    """What one task does: trainings that share a device, timings in turns, of all else
    one stage."""
    groups: dict[Any, list[Stage]] = defaultdict(list)
    trainings = 0
    stages = list(stages)
    if pack > 1:
        trained = longest_first(stage for stage in stages if stage.kind == "train")
        stages = [*trained, *(stage for stage in stages if stage.kind != "train")]
    for stage in stages:
        if stage.kind == "train":
            groups[trainings // pack].append(stage)
            trainings += 1
        else:
            groups[timing_group(stage) if stage.kind == "latency" else stage.key].append(stage)
    return list(groups.values())


def _fewest_cores(nodes: Iterable[Any]) -> int:
    """Cores of the node that has the fewest, of those that have any."""
    cores = (int(node["Resources"].get("CPU", 0)) for node in nodes)
    return min((count for count in cores if count), default=1)


def _with_absolute_paths(options: RunOptions) -> RunOptions:
    """The options with paths that mean the same on every node, whatever folder its
    processes are in."""

    def absolute(path: Path) -> Path:
        return path.expanduser().absolute()

    return replace(
        options,
        results=absolute(options.results),
        data={name: absolute(path) for name, path in options.data.items()},
        imports=tuple(str(absolute(Path(name))) if name.endswith(".py") else name for name in options.imports),
        tensorboard=options.tensorboard and absolute(options.tensorboard),
    )


@contextmanager
def _connection(address: str | None) -> Iterator[None]:
    """Connect to a cluster: that at the address, else one of this machine, which is
    started if there is none.

    Raises:
        InputError: none answers there, or it is of another version.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    host, _, port = (address or "auto").rpartition(":")
    try:
        if host:
            # Ray itself would try for two minutes and then end the process.
            socket.create_connection((host, int(port)), timeout=10).close()
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        given = f"--address {address}" if address else "--executor ray"
        reason = str(error).partition("\n")[0]
        raise InputError(f"{given}: {reason}; use --address auto or the HOST:PORT of a Ray cluster") from None
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there
    # Ray prints the last words of what died, some of them as it shuts down, where the table is to stand.
    with redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            ray.shutdown()
