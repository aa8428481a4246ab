"""Do two networks compute the same? Any two files or models on the same inputs, which
need not have the same names."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suite import env
from suite.errors import InputError
from suite.export import graphs
from suite.inference.feeds import Arrays, Input, Values
from suite.inference.loaded import Loaded, Request, load
from suite.inference.shared_inputs import in_order
from suite.registry import ORT
from suite.tables.spec import TOLERANCE as TOLERANCE

# How long inputs are compared where nobody says how many, and how many at most are drawn.
SECONDS, DRAWN = 60.0, 256
# Disagreements that are kept, those with the widest margins.
SHOWN = 10


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two: what it takes, the names of its outputs, and how it is run; with
    `fixed` in batches of one size alone."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    run: Callable[[Arrays], Arrays]
    file: Path | None = None
    fixed: bool = False


@dataclass
class Comparison:
    """What a comparison found; differences are of all outputs, and of answers where an
    output is a row of classes.

    Attributes:
        count: inputs that were compared, `of` so many; `by_time` if that was for want
            of time, and more than were `asked` for if batches have one size alone.
        words: what they were.
        scale: the greatest magnitude of each output of the first.
        greatest, total: the greatest difference of each output, and the sum of all.
        compared: of how many values of each output, which are finite in both.
        not_finite: values of each output that are the same in both, and no numbers:
            NaN, or infinite.
        rows, same: inputs that have a row of classes, and those of them of which the
            first class is the same.
        apart: of the others the number and the margin between the first one's two first
            classes.
        broken: outputs with values that are not finite in one and finite, or not finite
            in another way, in the other.
        departure: the first node that departs, where that was looked for.
        notes: what is to be said besides.
    """

    words: str
    outputs: tuple[str, ...] = ()
    count: int = 0
    of: int | None = None
    by_time: bool = False
    asked: int | None = None
    scale: list[float] = field(default_factory=list)
    greatest: list[float] = field(default_factory=list)
    total: float = 0.0
    compared: list[int] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)
    rows: int = 0
    same: int = 0
    apart: list[tuple[int, float]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    departure: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def values(self) -> int:
        """How many values were compared."""
        return sum(self.compared)

    @property
    def relative(self) -> float:
        """The greatest difference of any output over that output's scale."""
        shares = (
            great / scale if scale else (math.inf if great else 0.0)
            for great, scale in zip(self.greatest, self.scale, strict=True)
        )
        return max(shares, default=0.0)

    @property
    def mean(self) -> float:
        """Mean difference of all values over the greatest scale."""
        return self.total / self.values / (max(self.scale) or 1) if self.values else 0.0

    def passed(self, tolerance: float) -> bool:
        """Whether values were compared, none differs by more than this share of its
        output's scale, and none is finite in one alone."""
        return self.values > 0 and not self.differs(tolerance)

    def differs(self, tolerance: float) -> bool:
        """Whether a value differs by more than this share of its output's scale, or is
        finite in one alone."""
        return self.relative > tolerance or bool(self.broken)


def from_file(graph: graphs.Graph, taken: tuple[Input, ...], provider: str, runtime: str = ORT) -> Side:
    """A file in a runtime, without TF32.

    Raises:
        RuntimeError: it cannot be run there.
    """
    path = str(graph.path)
    deployed = load(Request(runtime, path, provider, 1, 0, env.available_cores(), inputs=taken), checked=True)
    fixed = any(not slot.dimensions or isinstance(slot.dimensions[0], int) for slot in graph.inputs)
    return Side(path, taken, deployed.outputs, _by_place(deployed, taken), graph.path, fixed)


def from_model(name: str, model: Any, taken: tuple[Input, ...]) -> Side:
    """A network in torch in float32 on the CPU, in evaluation mode."""
    from suite.inference.in_torch import InTorch

    return Side(name, taken, (), _by_place(InTorch(model), taken))


def _by_place(deployed: Loaded, taken: tuple[Input, ...]) -> Callable[[Arrays], Arrays]:
    def run(values: Arrays) -> Arrays:
        return deployed.compute(dict(zip((each.name for each in taken), values, strict=True)))

    return run


def compare(
    a: Side,
    b: Side,
    batches: Iterator[Values],
    found: Comparison,
    count: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Comparison:
    """Run both on the same inputs, and add what is found to `found`.

    Args:
        a: the one that differences are measured against.
        b: the other one.
        batches: values by the names of a's inputs.
        found: with `words` and `of`.
        count: how many inputs; None for as many as take `SECONDS`, all of `found.of` at
            most. Where batches have one size alone, the last one is compared whole.
        progress: called with inputs done, inputs in all (0 if that is not known), and a
            note.

    Raises:
        InputError: the two have other outputs.
    """
    most, cut = count or found.of or DRAWN, not (a.fixed or b.fixed)
    order = in_order(b.inputs, a.inputs)
    places = [order.index(each) for each in b.inputs]
    begin = monotonic()
    with _exact():
        for values in batches:
            arrays = [values[each.name] for each in a.inputs]
            if cut:
                arrays = _first(arrays, most - found.count)
            ours, theirs = a.run(arrays), b.run([_as(arrays[place], b.inputs[i]) for i, place in enumerate(places)])
            rows = len(arrays[0]) if arrays and arrays[0].ndim else 1
            _add(found, a, b, *_pair_outputs(a, b, ours, theirs))
            found.count += rows
            progress(min(found.count, most), most, "inputs")
            if found.count >= most:
                break
            if count is None and monotonic() - begin > SECONDS:
                found.by_time = True
                break
    found.asked = count
    found.apart = sorted(found.apart, key=lambda each: -each[1])
    return found


def _first(arrays: Arrays, most: int) -> Arrays:
    """The first inputs of a batch, `most` at most; all where it is no batch, since
    arrays are of different lengths."""
    same = len({array.shape[:1] for array in arrays}) == 1
    return [array[:most] if array.ndim else array for array in arrays] if same else arrays


def _exact() -> AbstractContextManager[None]:
    """Float32 as float32, if torch takes part."""
    import sys

    if "torch" not in sys.modules:
        return nullcontext()
    from suite.tf32 import without_tf32

    return without_tf32()


def _as(array: NDArray[Any], taken: Input) -> NDArray[Any]:
    return array if array.dtype.name == taken.type else array.astype(taken.type)


def _pair_outputs(a: Side, b: Side, ours: Arrays, theirs: Arrays) -> tuple[list[str], Arrays, Arrays]:
    """Outputs of both in one order: by name if they have the same ones, else by
    place."""
    names = list(a.outputs or b.outputs) or [f"output {number + 1}" for number in range(len(ours))]
    if a.outputs and b.outputs and set(a.outputs) == set(b.outputs):
        by_name = dict(zip(b.outputs, theirs, strict=True))
        theirs = [by_name[name] for name in a.outputs]
    if len(ours) != len(theirs):
        raise InputError(f"{a.name} gives {len(ours)} outputs, and {b.name} {len(theirs)}: nothing can be compared")
    for name, one, other in zip(names, ours, theirs, strict=False):
        if one.shape != other.shape:
            shapes = " and of the other ".join("x".join(map(str, each.shape)) or "one number" for each in (one, other))
            raise InputError(f"{a.name} and {b.name}: {name} of the one is {shapes}: nothing can be compared")
    return names, ours, theirs


def _add(found: Comparison, a: Side, b: Side, names: list[str], ours: Arrays, theirs: Arrays) -> None:
    if not found.outputs:
        found.outputs = tuple(names[: len(ours)])
        found.scale, found.greatest = ([0.0] * len(ours) for _ in range(2))
        found.compared, found.not_finite = ([0] * len(ours) for _ in range(2))
    classes = next((place for place, each in enumerate(ours) if each.ndim == 2 and each.shape[1] > 1), None)
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one.dtype.kind not in "fiub" or not one.size:
            continue
        first, second = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(first) & np.isfinite(second)
        # What is not finite in both, and of the same kind, is no difference: a mask of minus infinity.
        alike = (first == second) | (np.isnan(first) & np.isnan(second))
        if not (finite | alike).all():
            found.broken.add(names[place])
        apart = np.abs(first[finite] - second[finite])
        if apart.size:
            found.scale[place] = max(found.scale[place], float(np.abs(first[finite]).max()))
            found.greatest[place] = max(found.greatest[place], float(apart.max()))
            found.total += float(apart.sum())
            found.compared[place] += apart.size
        found.not_finite[place] += int((alike & ~finite).sum())
        if place == classes and one.dtype.kind == "f":
            ranked = ~(np.isnan(first) | np.isnan(second)).any(1)  # what is no number has no place among others
            best, answers = first.argmax(1), second.argmax(1)
            ordered = np.sort(first, axis=1)
            found.rows += int(ranked.sum())
            found.same += int((ranked & (best == answers)).sum())
            for row in np.flatnonzero(ranked & (best != answers)):
                found.apart.append((found.count + int(row), float(ordered[row, -1] - ordered[row, -2])))


def render(found: Comparison, a: str, b: str, tolerance: float) -> str:
    """What was found as text for a terminal, ending in a newline."""
    of = f" of {found.of}" if found.of and found.of > found.count else ""
    why = f", as many as take {SECONDS:.0f} s" if found.by_time else ""
    if found.asked and found.count > found.asked:
        why = f", not {found.asked}, since a file has batches of one size alone"
    lines = [f"{b} against {a}: {found.count}{of} {found.words}{why}"]
    for place, name in enumerate(found.outputs):
        scale, greatest = found.scale[place], found.greatest[place]
        if not found.compared[place]:
            lines.append(f"{name:14} nothing compared: no value is a finite number in both")
        elif not scale:
            lines.append(
                f"{name:14} greatest difference {greatest:.3g}, all values are zero, so that this shows nothing"
            )
        else:
            share = f"{greatest / scale:.1e} of the greatest value, {scale:.3g}"
            lines.append(f"{name:14} greatest difference {greatest:.3g}, which is {share}")
        if alike := found.not_finite[place]:
            lines.append(f"{name:14} {alike} of {alike + found.compared[place]} values are not finite in both")
    lines.append(f"mean           {found.mean:.1e} of the greatest value, over {found.values} values")
    if found.rows:
        lines.append(
            f"agreement      {100 * found.same / found.rows:.6g} % of {found.rows} rows have the same first class"
        )
        shown = ", ".join(f"number {number} by {margin:.3g}" for number, margin in found.apart[:SHOWN])
        if shown:
            lines.append(f"disagreements  {len(found.apart)}, margins of {a}: {shown}")
    if found.broken:
        lines.append(f"not finite     in one of the two, or not in the same way: {', '.join(sorted(found.broken))}")
    if found.departure:
        departs = found.departure
        node, operator = departs["node"] or departs["tensor"], departs["operator"]
        quantised = ", where it is quantised behind DequantizeLinear" if departs["quantised"] else ""
        lines.append(f"departs first  at node {node} ({operator}{quantised}): {_values(departs)}")
    if found.values or found.broken:
        allowed = f"at most {tolerance:.3g} of the greatest value is allowed"
        verdict = f"{'yes' if found.passed(tolerance) else 'NO'}, {allowed}"
    else:
        verdict = "NO, since no value was compared"
    lines.append(f"passed         {verdict}")
    return "\n".join(lines) + "\n"


def _values(departs: dict[str, Any]) -> str:
    if departs["position"] is None:
        return "its result has another shape"
    both = (departs["expected"], departs["actual"])
    expected, got = ("no number" if each is None else f"{each:.6g}" for each in both)
    return f"expected {expected}, got {got} at {departs['position']}"
