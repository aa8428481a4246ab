"""Records to tables: the paper's figures, ours and the inference speed side by side.

Nothing is measured here. A value that is missing is an empty cell with a footnote,
never 0, and figures of different machines never share a column.
"""

from collections.abc import Callable, Collection, Sequence
from math import floor
from operator import attrgetter

from suite.files import printable
from suite.report import own_claims
from suite.report.entries import Entry, Metric, errors, shortfalls, why_untrained
from suite.report.kinds import precision_in_words
from suite.report.latency import latency_columns
from suite.report.render import FAILED, Column, Line, Report
from suite.report.runs import Records, Runs
from suite.results.derived import allowed_loss, median_over_seeds
from suite.results.store import Store
from suite.schema.insides import Activation
from suite.schema.outcomes import ParityResult, none_if_unset
from suite.tables.spec import LOSS, METRICS, TOLERANCE, VERSIONS, Table

# The table whose figures are not errors but what `suite.analysis.analyze` finds in trained networks.
ANALYSED = 1
NZR = "NZR: non-zero ratio, the share of the activations that are not zero"
# What stands in the place of the error of a run shorter than an epoch, which is that of chance; the record holds it.
QUICK = "quick"


def build(
    table: Table,
    source: Store | Records,
    metric: Metric = "last",
    trained: frozenset[str] | None = None,
    detail: bool = False,
    failed: Collection[str] | None = None,
    forms: Collection[str] = (),
    imports: Sequence[str] = (),
) -> Report:
    """Put a table together.

    Args:
        table: the rows wanted.
        source: a results folder, or what was read of one or several.
        metric: print the errors of the last epoch, or the least over all epochs.
        trained: keys of the training records to show, if `source` is a folder; None for
            the best of each row.
        detail: give differences from the paper, numbers of seeds and spreads columns of
            their own, and latencies the percentiles for which there are samples enough,
            the time to load and that of the first run.
        failed: of which kinds of stages failures are told, if `source` is a folder;
            None for all.
        forms: that were asked for; where a provider cannot run one of them, or one that
            others have, the table says so.
        imports: modules that define models of a user's own table, if `source` is a
            folder.

    Raises:
        InputError: a record cannot be read.
    """
    if isinstance(source, Store):
        index = Records([source], {row.model for row in table.rows}, trained, failed, imports)
    else:
        index = source
    found = [index.runs(table, row) for row in table.rows]
    headings = [Column(f"heading_{i}", name, brief=name) for i, name in enumerate(table.headings)]
    model = Column("model", "Model", part="model")
    lines = [Line() for _ in table.rows]
    for line, row in zip(lines, table.rows, strict=True):
        arguments = (f"{name}={printable(str(value))}" for name, value in row.arguments.items())
        for column, text in zip([*headings, model], [*row.heading, " ".join([row.model, *arguments])], strict=True):
            line.put(column, text)
    columns = [*headings, model]
    if table.number == ANALYSED:
        return Report(table.title, columns + _activation(table, found, lines, index), lines, [NZR])
    columns += _errors(table, found, lines, index, metric, detail)
    columns += _parity(table, found, lines, index)
    columns += _cost(found, lines)
    latency, remarks = latency_columns(table, found, lines, index, detail, forms)
    entries = [Entry(table, row, runs) for row, runs in zip(table.rows, found, strict=True)]
    remarks += own_claims.remarks(entries, metric)
    return Report(
        table.title, columns + latency, lines, [*remarks, *_failures_without_cell(table, found, lines, index)]
    )


def _failures_without_cell(table: Table, found: list[Runs], lines: list[Line], index: Records) -> list[str]:
    """What failed and has no cell to say so: an int8 file, a latency of no network."""
    told = {note for line in lines for notes in line.notes.values() for note in notes}
    rows = zip(table.rows, found, strict=True)
    failed = [(row, index.reason(row, stage, runs)) for row, runs in rows for stage in VERSIONS]
    return [f"{row.title} on {row.data}: {why}" for row, why in failed if why and printable(why) not in told]


def _readable(value: float) -> str:
    """Two decimals, but of what has exploded the size alone."""
    return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.3g}"


def _decimals(count: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{count}f}"


def _errors(
    table: Table, found: list[Runs], lines: list[Line], index: Records, metric: Metric, detail: bool
) -> list[Column]:
    columns = []
    seeds = Column("seeds", "seeds", part="ours")
    for name in table.metrics:
        words, first = METRICS[name], name == table.metrics[0]
        known = any(name in row.paper for row in table.rows)
        what = "" if name == "top1" else f" {words}"  # of errors the title speaks
        brief = (f"paper{what}", f"ours{what}" if known else words) if first else ("", "")
        paper = Column(f"paper_{name}", f"paper {words}", _decimals(2), "paper", brief[0])
        ours = Column(name, f"ours {words}", _decimals(2), "ours", brief[1])
        difference = Column(f"difference_{name}", f"ours - paper {words}", lambda value: f"{value:+.2f}", "ours")
        spread = Column(f"spread_{name}", f"max - min {words}", _decimals(2), "ours")
        shown = [paper, ours, difference, spread] if detail else [paper, ours]
        columns += [column for column in shown if known or column not in (paper, difference)]
        for row, runs, line in zip(table.rows, found, lines, strict=True):
            theirs = row.paper.get(name)
            line.put(paper, theirs, *([] if theirs is not None else ["not in the paper"]))
            if detail:
                line.put(seeds, len(runs.train))
            if not runs.train:
                for column in (ours, difference, spread) if detail else (ours,):
                    line.put(column, None, index.missing(row))
                continue
            values = errors(runs, name, metric)
            note = shortfalls(table, row, runs.train)
            if runs.train[0].is_quick:
                for column in (ours, difference, spread) if detail else (ours,):
                    line.put(column, QUICK, *note)
            elif (median := median_over_seeds(values)) is not None:
                line.put(ours, median, *note)
                if detail:
                    line.put(difference, median - theirs if theirs is not None else None, *note)
                    line.put(spread, max(values) - min(values) if len(values) > 1 else None)
            elif all(not record.result.trained for record in runs.train):
                line.put(ours, None, why_untrained(runs.train[0]), *note)
            else:
                line.put(ours, None, "not measured by this recipe")
    return [*columns, seeds] if detail else columns


def _activation(table: Table, found: list[Runs], lines: list[Line], index: Records) -> list[Column]:
    """Table 1 in three readings: the paper does not say which entries it averages."""
    readings = {"over_nonzero": "non-zero entries", "over_all": "all entries", "pooled": "pooled"}
    brief = {"mean": "mean", "nonzero": "NZR"}  # a line has no room for the deviation too
    columns = []
    for name in table.metrics:
        words, short = METRICS[name], brief.get(name, "")
        paper = Column(f"paper_{name}", f"paper {words}", _decimals(2), "paper", short and f"paper {short}")
        ours: dict[tuple[str, ...], Column]
        if name == "nonzero":
            ours = {(name,): Column(name, f"ours {words}", _decimals(2), "ours", short)}
        else:
            ours = {
                (reading, name): Column(
                    f"{name}_{reading}",
                    f"ours {words}, {of}",
                    _readable,
                    "ours",
                    short if reading == next(iter(readings)) else "",
                )
                for reading, of in readings.items()
            }
        columns += [paper, *ours.values()]
        for row, runs, line in zip(table.rows, found, lines, strict=True):
            line.put(paper, row.paper.get(name))
            for path, column in ours.items():
                if runs.train and not any(run.result.trained for run in runs.train):
                    line.put(column, None, why_untrained(runs.train[0]), *shortfalls(table, row, runs.train))
                    continue
                if not runs.analyze:
                    why = index.reason(row, "analyze", runs) or index.missing(row)
                    line.put(column, None, why)
                    continue
                figures = [_at(record.result.activation, path) for record in runs.analyze]
                values = [value for value in figures if value is not None]
                line.put(column, median_over_seeds(values), *shortfalls(table, row, runs.train))
    return columns


def _at(found: Activation, path: Sequence[str]) -> float | None:
    figure: float | None = attrgetter(".".join(path))(found)
    return figure


def _parity(table: Table, found: list[Runs], lines: list[Line], index: Records) -> list[Column]:
    error = Column("parity_top1", "ONNX - torch error", lambda value: f"{value:+.2f}", "parity", "ONNX diff")
    logits = Column("parity_logits", "max logit diff / scale", lambda value: f"{value:.1e}", "parity")
    agreement = Column("parity_agreement", "top-1 agreement %", lambda value: f"{value:.4g}", "parity")
    for row, runs, line in zip(table.rows, found, lines, strict=True):
        if not runs.parity:
            why = index.reason(row, "parity", runs) or index.reason(row, "export", runs) or "not run"
            for column in (error, logits, agreement):
                line.put(column, None, why)
            continue
        results = [record.result for record in runs.parity]
        _put_parity(line, error, agreement, results)
        line.put(logits, max(result.max_logit_difference / result.scale for result in results))
    columns = [error, logits, agreement]
    for check in sorted({check for runs in found for check in runs.checks}):
        provider, precision = map(printable, check)
        name = " ".join([provider] * (provider != "cpu") + precision_in_words(precision))
        key = "_".join(name.split())
        error = Column(f"parity_{key}_top1", f"{name} - torch error", error.show, "parity")
        agreement = Column(f"parity_{key}_agreement", f"{name} top-1 agreement %", agreement.show, "parity")
        columns += [error, agreement]
        for runs, line in zip(found, lines, strict=True):
            if check in runs.checks:
                results = [record.result for record in runs.checks[check]]
                _put_parity(line, error, agreement, results, runs.train[0].is_quick)
            else:
                line.put(error, None, "not run")
                line.put(agreement, None, "not run")
    return columns


def _put_parity(
    line: Line, error: Column, agreement: Column, results: Sequence[ParityResult], quick: bool = False
) -> None:
    """The worst of these, and what is to be said of them; of those that are judged by
    their right answers, how few a quick run's network has."""
    notes = [f"parity on {sum(result.images for result in results)} images"]
    by_answers = [result for result in results if result.precision != "fp32" or result.tf32]
    torch = [top1 for result in by_answers if (top1 := none_if_unset(result.torch_top1)) is not None]
    if quick and torch:
        notes[0] += f", on {max(torch):.0f} % of which a quick run's network errs"
    failed = [result for result in results if not result.passed]
    if failed:
        layers = [result.departure.layer for result in failed if result.departure]
        why = [*filter(None, map(_why, failed)), *(f"first at {layer}" for layer in layers)]
        notes.append(FAILED + (f": {', '.join(dict.fromkeys(why))}" if why else ""))
    # In reduced precision nearly every disagreement is within the logit difference.
    ties = sum(result.ties for result in results if result.precision == "fp32")
    if ties:
        notes.append(f"{ties} ties within the logit difference")
    line.put(error, max((result.difference for result in results), key=abs), *notes)
    line.put(agreement, min(result.agreement for result in results))


def _why(result: ParityResult) -> str:
    """Which limit of `suite.inference.parity` failed; empty if the record has none."""
    if result.precision == "fp32" and not result.tf32:
        apart = result.max_logit_difference / result.scale
        if apart > TOLERANCE:
            return f"logits differ by {apart:.1e} of the greatest, {TOLERANCE:.0e} allowed"
        return "another first class than rounding explains"
    lost, won, error = none_if_unset(result.lost), none_if_unset(result.won), none_if_unset(result.torch_top1)
    if lost is None or won is None or error is None:
        return ""
    right = round(result.images * (1 - error / 100))
    allowed = allowed_loss(right, lost, won)
    said = f"{lost - won} of {right} right answers lost on balance"
    return f"{said}, {floor(allowed)} allowed ({LOSS:.0%}, or what chance explains)"


def _cost(found: list[Runs], lines: list[Line]) -> list[Column]:
    parameters = Column("parameters", "params M", lambda value: f"{value / 1e6:.3f}", "size")
    macs = Column("macs", "MACs G", lambda value: f"{value / 1e9:.3f}", "size")
    for runs, line in zip(found, lines, strict=True):
        cost = runs.export.result if runs.export else None
        why = [] if cost else ["not exported"]
        line.put(parameters, cost.parameters if cost else None, *why)
        line.put(macs, cost.macs if cost else None, *(why or ["cannot be counted"] * (not cost or cost.macs is None)))
    return [parameters, macs]
