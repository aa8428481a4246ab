"""What ONNX Runtime makes of an exported file: which nodes run where, what was not
fused, and where the time goes."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from suite.export import graphs
from suite.inference import subjects
from suite.inference.feeds import NOTHING_GIVEN, GivenInputs, require_known, values_for
from suite.results.samples import median
from suite.session import open_session

# Operators that are parts of convolutions, or of their weights, in a graph that suits the runtime.
FUSABLE = ("BatchNormalization", "Neg", "Slice", "Pad", "Add", "Relu", "Sub", "Div", "Mul")
# Why there are some left.
WHY_UNFUSED = "fused is what stands right behind a convolution whose result nothing else takes"
WARM_UP, RUNS = 3, 20
MOST_EXPENSIVE = 5


@dataclass(frozen=True)
class _Node:
    """One node of the optimised graph: what the profile says of it, and its
    microseconds in each run."""

    name: str
    operator: str
    provider: str
    inputs: Sequence[Sequence[int]]
    output: Sequence[int]
    microseconds: list[float]

    @property
    def typical(self) -> float:
        return median(self.microseconds) if self.microseconds else 0.0


def explain(
    path: Path,
    provider: str = "cpu",
    threads: int = 1,
    batch_size: int | None = None,
    given: GivenInputs = NOTHING_GIVEN,
) -> dict[str, Any]:
    """Run a file on random inputs with ONNX Runtime's profile, and without it for
    comparison, one after the other.

    Args:
        path: an ONNX file of any maker, in any precision.
        provider: "cpu", "cuda" or "tensorrt".
        threads: of ONNX Runtime.
        batch_size: of its inputs; None for the file's own, or 1.
        given: what the user says of its inputs.

    Returns:
        `file`, `provider` as ONNX Runtime names it, `threads`, `inputs` (shapes by
        name), `runs`; `nodes` of the optimised graph by provider; its `operators`; of
        these `unfused` (`FUSABLE` ones that are left), and of those `behind`: by
        operator how many stand behind which operator of the file; `reorders` (between
        the blocked layout and the plain one) and `copies` (between devices);
        `expensive`: the nodes that take longest, each with `name`, `operator`,
        `microseconds`, `share` of all kernels' time, and `gflops` (billions of
        multiplications and additions a second; None where it is neither convolution nor
        Gemm); and medians over the runs in microseconds: `kernel_us`, all kernels of a
        run; `run_us`, the run with the profile on, in which the difference is dispatch
        and the profile's own; `wall_us`, a run without it. On a GPU the profile sees
        how long a kernel takes to launch, not to run.

    Raises:
        InputError: it is no ONNX file, a dimension of its inputs is not known, or
            `given` names an input that it has not.
        RuntimeError: the provider cannot be used here, or cannot run the file.
    """
    graph = graphs.read(path)
    require_known(given, (slot.name for slot in graph.inputs))
    taken = subjects.resolve_inputs(graph, given, batch_size)
    values = values_for(taken, given.path, 0)
    session = open_session(str(path), provider, threads, tf32=True)  # as latencies are measured
    wall = []
    for _ in range(WARM_UP + RUNS):
        start = perf_counter()
        session.run(None, values)
        wall.append(1e6 * (perf_counter() - start))
    del session  # two thread pools would be in each other's way

    with tempfile.TemporaryDirectory() as folder:

        def profile(session_options: Any) -> None:
            session_options.enable_profiling = True
            session_options.profile_file_prefix = f"{folder}/profile"

        session = open_session(str(path), provider, threads, tf32=True, configure=profile)
        for _ in range(WARM_UP + RUNS):
            session.run(None, values)
        name = session.get_providers()[0]
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))

    nodes, run_us = _read(events)
    shapes = {constant.name: tuple(constant.dims) for constant in graph.model.graph.initializer}
    convolutions = [node for node in graph.model.graph.node if node.op_type == "Conv" and node.input[1] in shapes]
    weights = {node.name: shapes[node.input[1]] for node in convolutions}
    total = sum(node.typical for node in nodes)
    operators = Counter(node.operator for node in nodes)
    return {
        "file": path.name,
        "provider": name,
        "threads": threads,
        "inputs": {each.name: list(each.shape) for each in taken},
        "runs": RUNS,
        "nodes": dict(Counter(node.provider for node in nodes)),
        "operators": dict(sorted(operators.items())),
        "unfused": {name: operators[name] for name in FUSABLE if operators[name]},
        "behind": _behind(graph.model.graph, nodes),
        "reorders": {name: count for name, count in sorted(operators.items()) if name.startswith("Reorder")},
        "copies": {name: count for name, count in sorted(operators.items()) if name.startswith("Memcpy")},
        "expensive": [
            {
                "name": node.name,
                "operator": node.operator,
                "microseconds": node.typical,
                "share": node.typical / total if total else 0.0,
                "gflops": _gflops(node, weights),
            }
            for node in sorted(nodes, key=lambda node: -node.typical)[:MOST_EXPENSIVE]
        ],
        "kernel_us": _of_a_run([node.microseconds for node in nodes]),
        "run_us": median(run_us),
        "wall_us": median(wall[WARM_UP:]),
    }


def _behind(graph: Any, nodes: Sequence[_Node]) -> dict[str, dict[str, int]]:
    """Of each operator that was not fused, how many have their first input from which
    operator of the file; without those that the file has not, or that take its
    input."""
    named = {node.name: node for node in graph.node}
    makers = {output: node.op_type for node in graph.node for output in node.output}
    found: dict[str, Counter[str]] = {}
    for node in nodes:
        of_file = named.get(node.name)
        if node.operator in FUSABLE and of_file is not None and of_file.input and of_file.input[0] in makers:
            found.setdefault(node.operator, Counter())[makers[of_file.input[0]]] += 1
    return {operator: dict(counts.most_common()) for operator, counts in found.items()}


def _of_a_run(microseconds: Sequence[Sequence[float]]) -> float:
    """What all nodes take in a run: the median, or the mean where some run more or less
    often than the others, as in loops and branches."""
    if all(len(each) == RUNS for each in microseconds):
        return median([sum(run) for run in zip(*microseconds, strict=True)]) if microseconds else 0.0
    return sum(map(sum, microseconds)) / RUNS


def _read(events: Sequence[Mapping[str, Any]]) -> tuple[list[_Node], list[float]]:
    """The nodes, and the microseconds of each run, of a profile; without the first
    runs."""
    nodes: dict[tuple[str, str], _Node] = {}
    runs: list[float] = []
    for event in events:
        if event["name"] == "model_run":
            runs.append(event["dur"])
        elif event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            details = event["args"]
            key = details["node_index"], event["name"]
            if key not in nodes:
                name = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
                inputs, outputs = (
                    [next(iter(entry.values())) for entry in details.get(f"{which}_type_shape", [])]
                    for which in ("input", "output")
                )
                shape = outputs[0] if outputs else ()
                nodes[key] = _Node(name, details["op_name"], details["provider"], inputs, shape, [])
            if len(runs) >= WARM_UP:
                nodes[key].microseconds.append(event["dur"])
    return list(nodes.values()), runs[WARM_UP:]


def _gflops(node: _Node, weights: Mapping[str, Sequence[int]]) -> float | None:
    if node.operator.endswith("Gemm"):
        each = node.inputs[0][-1]
    elif node.operator.endswith("Conv"):
        # The runtime may have packed the weights and not say their shape, or have named the node after its rectifier.
        weight = weights.get(node.name) or next((shape for shape in node.inputs[1:] if len(shape) == 4), None)
        if weight is None or len(weight) != 4:
            return None
        each = math.prod(weight[1:])
    else:
        return None
    return 2 * math.prod(node.output) * each / node.typical / 1e3 if node.typical else None


def render(explanation: Mapping[str, Any]) -> str:
    """What `explain` found as text for a terminal, ending in a newline."""
    from tabulate import tabulate

    def counts(found: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"

    def unfused() -> str:
        said = []
        for name, count in explanation["unfused"].items():
            behind = counts(explanation["behind"][name]) if explanation["behind"].get(name) else ""
            said.append(f"{count} {name}" + (f" (behind {behind})" if behind else ""))
        return "; ".join(said) or "none"

    of = explanation
    kernels, run = of["kernel_us"], of["run_us"]
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'one number'}" for name, shape in of["inputs"].items())
    lines = [
        f"{of['file']}: {shapes or 'no inputs'}, threads {of['threads']}, runs {of['runs']}",
        f"nodes         {counts(of['nodes'])}",
        f"operators     {counts(of['operators'])}",
        f"not fused     {unfused()}",
        *([f"              {WHY_UNFUSED}"] if of["unfused"] else []),
        f"reorders      {counts(of['reorders'])}",
        f"copies        {counts(of['copies'])}",
        f"time          {kernels:.0f} us in kernels of {run:.0f} us a run, {max(0.0, 1 - kernels / run):.0%} dispatch; "
        f"{of['wall_us']:.0f} us without the profile",
    ]
    if set(of["nodes"]) - {"CPUExecutionProvider"}:
        lines.append("              on a GPU these are times of launching kernels, not of running them")
    rows = [
        [
            node["name"],
            node["operator"],
            f"{node['share']:.1%}",
            f"{node['microseconds']:.0f}",
            "" if node["gflops"] is None else f"{node['gflops']:.1f}",
        ]
        for node in of["expensive"]
    ]
    headings = ["node", "operator", "share", "us", "GFLOP/s"]
    table = tabulate(rows, headings, disable_numparse=True, colalign=("left", "left", "right", "right", "right"))
    return "\n".join([*lines, "", table]) + "\n"
