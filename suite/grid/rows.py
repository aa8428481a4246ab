"""One line of key figures for each cell of a grid, told as it is done."""

import contextlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from suite.grid.plan import Cell, Stage
from suite.results import samples
from suite.results.record import Record
from suite.results.store import Store
from suite.tables.spec import METRICS, Table, within_an_epoch


def line(table: Table, cell: Cell, stages: Iterable[Stage], store: Store) -> str:
    """What came of a cell, as in "resnet50_relu_bn on imagenet: error 24.10 (paper 24.01), ONNX within 6e-07, cpu 20".

    Args:
        table: that the cell's row is from.
        cell: a row with a seed.
        stages: of the cell, as far as they are asked for.
        store: of the results; what is not there has failed.
    """
    parts, failed = [], []
    for stage in stages:
        record = store.standing(stage.kind, stage.inputs)
        if record is None:
            failed.append(stage.kind)
            continue
        with contextlib.suppress(KeyError, TypeError):  # a record that somebody else has written otherwise
            if stage.kind == "train":
                parts.append(_error(table, cell, record))
            elif stage.kind == "parity":
                parts.append(_parity(stage.detail.strip(), record.result))
            elif stage.kind == "latency":
                parts.append(_latency(record))
    parts += [f"failed: {', '.join(dict.fromkeys(failed))}"] if failed else []
    return f"{cell.name}: {', '.join(filter(None, parts))}"


def _error(table: Table, cell: Cell, record: Record) -> str:
    metric = next((name for name in table.metrics if name in record.result), None)
    error = record.result[metric] if metric else None
    recipe, images = cell.recipe, len(cell.dataset.train)
    if within_an_epoch(record.result["steps"], recipe.batch_size, images):
        shown = "quick"
    elif error is None:
        return "trained" if record.result["trained"] else "did not train"
    else:
        shown = f"{error:.2f}"
    stated = cell.row.paper.get(metric) if metric else None
    return f"{METRICS.get(metric or '', 'error')} {shown}" + (f" (paper {stated:.2f})" if stated is not None else "")


def _parity(form: str, result: Mapping[str, Any]) -> str:
    apart = result["max_logit_difference"] / result["scale"] if result["scale"] else 0.0
    outcome = f"within {apart:.0e}" if result["passed"] else "PARITY FAILED"
    return " ".join(filter(None, ["ONNX", form, outcome]))


def _latency(record: Record) -> str:
    """Of one image in ONNX Runtime; empty for others, which the table holds."""
    inputs = record.inputs
    if inputs["runtime"] != "onnxruntime" or inputs["batch_size"] != 1:
        return ""
    seconds = statistics.median(samples.unpacked(record.result)["samples"])
    form = "" if inputs["precision"] == "fp32" else f" {inputs['precision']}"
    return f"{inputs['provider']}{form} {1e3 * seconds:.3g} ms"
