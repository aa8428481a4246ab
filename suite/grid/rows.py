"""Print one line of key figures for each row of a table as soon as it is done."""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import ValidationError, convert

from suite.grid.plan import Cell, Stage
from suite.results.record import TrainRecord
from suite.results.samples import to_seconds
from suite.results.store import Store
from suite.schema.outcomes import LatencyResult, ParityResult
from suite.tables.spec import Table


def format_row(table: Table, cell: Cell, stages: Iterable[Stage], store: Store) -> str:
    """What came of a cell, as in "resnet50_relu_bn on imagenet: error 24.10 (paper
    24.01), ONNX within 6e-07, cpu 20".

    Args:
        table: that the cell's row is from.
        cell: a row with a seed.
        stages: of the cell, as far as they are asked for.
        store: of the results; what is not there has failed.
    """
    parts: list[str] = []
    failed: list[str] = []
    for stage in stages:
        record = store.get_even_without_files(stage.kind, stage.inputs)
        if record is None:
            failed.append(stage.kind)
            continue
        with contextlib.suppress(ValidationError):  # a record that somebody else has written otherwise
            if stage.kind == "train":
                parts.append(_error(table, cell, convert(record, TrainRecord, from_attributes=True)))
            elif stage.kind == "parity":
                parts.append(_parity(stage.detail.strip(), convert(record.result, ParityResult)))
            elif stage.kind == "latency":
                parts.append(_latency(stage.inputs, convert(record.result, LatencyResult)))
    parts += [f"failed: {', '.join(dict.fromkeys(failed))}"] if failed else []
    return f"{cell.name}: {', '.join(filter(None, parts)) or 'done'}"


def _error(table: Table, cell: Cell, record: TrainRecord) -> str:
    metric = table.metrics[0]
    error, stated = record.result.figure(metric), cell.row.paper.get(metric)
    if record.is_quick:
        shown = "quick"
    elif error is None:
        return "trained" if record.result.trained else "did not train"
    else:
        shown = f"{error:.2f}"
    return f"error {shown}" + (f" (paper {stated:.2f})" if stated is not None and metric == "top1" else "")


def _parity(form: str, result: ParityResult) -> str:
    outcome = f"within {result.max_logit_difference / result.scale:.0e}" if result.passed else "PARITY FAILED"
    return " ".join(filter(None, ["ONNX", form, outcome]))


def _latency(inputs: Mapping[str, Any], result: LatencyResult) -> str:
    """Of one image in ONNX Runtime; empty for others, which the table holds."""
    if inputs["runtime"] != "onnxruntime" or inputs["batch_size"] != 1:
        return ""
    form = "" if inputs["precision"] == "fp32" else f" {inputs['precision']}"
    return f"{inputs['provider']}{form} {1e3 * to_seconds(result).median:.3g} ms"
