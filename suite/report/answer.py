"""What the records answer, in words: which choice errs least, what it costs, and how
sure that is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from suite.registry import label_of
from suite.report import choices, findings, look
from suite.report.entries import Entry, Metric, are_alike, errors, why_none_counts
from suite.report.kinds import Kind, instability_notes
from suite.report.plots import runs_in_words
from suite.results.derived import latency_ratio

CHECKED = ("cpu", "int8")


@dataclass(frozen=True)
class Answer:
    """One answer: what it is about, the answer itself, what else is to be said, and how
    sure it is."""

    where: str
    main: str
    rest: str = ""
    sure: str = ""


def answers(entries: Sequence[Entry], metric: Metric = "last") -> list[Answer]:
    """An answer for each data set and depth with nets that were trained on the paper's
    data, one for all of which there are no runs that count, and one for the exported
    files; none where there are no records."""
    found = []
    rest = {}
    for place, nets in choices.groups(entries).items():
        trained = [net for net in nets if net.counts and errors(net.runs, "top1", metric)]
        if trained:
            found.append(_trained(f"On {_in_words(place)}", trained, metric))
        else:
            rest[place] = nets
    return [*found, *_others(rest), *_files(entries)]


def _in_words(place: choices.Place) -> str:
    data, depth, recipe = place
    return " with ".join(filter(None, [label_of(data), depth.replace("resnet", "ResNet-"), recipe]))


def _trained(where: str, nets: Sequence[Entry], metric: Metric) -> Answer:
    """Of the longest runs, since only those of one length may be compared."""
    longest = max(nets, key=lambda net: net.epochs)
    ranked = sorted(
        (net for net in nets if are_alike(net, longest)), key=lambda net: findings.top1_error(net, metric)[0]
    )
    best, error = ranked[0], findings.top1_error(ranked[0], metric)[0]
    name = look.net(best.row.title).title
    if len(ranked) == 1:
        return Answer(
            where, f"{name} errs on {error:.1f} %", "nothing is there to compare it with", runs_in_words(ranked)
        )
    usual = [net for net in ranked[1:] if net.row.model.partition("_")[2] == choices.USUAL]
    other = (usual or ranked[1:])[0]
    part = findings.compare_errors(best, other, metric)
    points = findings.top1_error(other, metric)[0] - error
    rest = f"{points:.1f} points less than {look.net(other.row.title).title}{_cost(best, other)}"
    unlike = findings.trained_unlike([best, other], lambda net: look.net(net.row.title).title)
    sure = ", ".join(filter(None, [*unlike, runs_in_words([best, other])]))
    if part.holds is None:
        sure = f"Too close to tell: {part.margin}" + (f" ({sure})" if sure else "")
    else:
        sure = f"More than chance: {part.margin}" + (f"; but {sure}" if sure else "")
    return Answer(where, f"{name} has the lowest error, {error:.1f} %", rest, sure)


def _cost(net: Entry, other: Entry) -> str:
    kinds = _common(net, other)
    if not kinds:
        return ""
    setup, _, provider, batch, _ = kinds[0]
    ratio = _ratio(net, other, kinds[0])
    doubts = _in_brackets([(net, kinds[0]), (other, kinds[0])])
    where = f", on {setup}" if len({kind[0] for kind in kinds}) > 1 else ""
    return f", at {ratio:.1f} times its latency ({provider}, batch {batch}{where}){doubts}"


def _in_brackets(timed: Iterable[tuple[Entry, Kind]]) -> str:
    """How some latencies are marked, such as " (unstable timing)", with "in part" where
    others of several ratios are not; empty if none is."""
    notes = [instability_notes(net.runs.timed[kind]) for net, kind in timed]
    marks = dict.fromkeys(note.partition(":")[0] for each in notes for note in each)
    of_some = len(notes) > 2 and not all(notes)
    return f" ({' and '.join(marks)} timing{' in part' if of_some else ''})" if marks else ""


def _common(*nets: Entry) -> list[Kind]:
    """Latencies in ONNX Runtime in float32 that all have, the smallest batch first, and
    of each those on the CPU."""
    kinds = set.intersection(*(set(net.runs.timed) for net in nets))
    found = (kind for kind in kinds if kind[1] == "onnxruntime" and kind[4] == "fp32")
    return sorted(found, key=lambda kind: (kind[3], kind[2] != "cpu", kind))


def _ratio(net: Entry, other: Entry, kind: Kind) -> float:
    return latency_ratio(net.runs.timed[kind].result, other.runs.timed[kind].result)


def _others(groups: dict[choices.Place, list[Entry]]) -> Iterator[Answer]:
    """One answer for all data sets and depths of which nothing but latency is known; of
    several machines and providers that of most of them."""
    if not groups:
        return
    pairs: dict[Kind, dict[choices.Place, tuple[Entry, Entry]]] = {}
    for group, nets in groups.items():
        named = {look.net(net.row.model).title: net for net in nets}
        net, other = named.get("CReLU + BatchNorm"), named.get("ReLU + BatchNorm")
        if net and other:
            for kind in _common(net, other):
                pairs.setdefault(kind, {})[group] = net, other
    most = max(pairs, key=lambda kind: (len(pairs[kind]), -kind[3])) if pairs else None
    compared = pairs[most] if most else {}
    ratios = [_ratio(*both, most) for both in compared.values() if most]
    timed = [(net, most) for both in compared.values() for net in both if most]
    places: dict[str, list[str]] = {}
    for data, depth, _ in compared or groups:
        places.setdefault(label_of(data), []).append(depth.removeprefix("resnet"))
    where = "; ".join(
        data + (f" with ResNet-{', '.join(depths)}" if any(depths) else "") for data, depths in places.items()
    )
    if ratios:
        low, high = f"{min(ratios):.1f}", f"{max(ratios):.1f}"
        times = low if low == high else f"{low} to {high}"
        main = f"CReLU + BatchNorm takes {times} times the latency of ReLU + BatchNorm{_in_brackets(timed)}"
    else:
        main = "no errors are known"
    words = why_none_counts(net for nets in groups.values() for net in nets).capitalize()
    yield Answer(f"On {where}", main, "", f"{words}, whose errors mean nothing and are not shown")


def _files(entries: Sequence[Entry]) -> Iterator[Answer]:
    """Whether the exported files compute their networks, and what int8 costs and
    brings."""
    nets = [net for group in choices.groups(entries).values() for net in group if net.runs.parity]
    if not nets:
        return
    failed = [net for net in nets if not all(record.result.passed for record in net.runs.parity)]
    images = sorted(record.result.images for net in nets for record in net.runs.parity)
    on = f"{images[0]:,}" if images[0] == images[-1] else f"{images[0]:,} to {images[-1]:,}"
    right = f"{len(nets) - len(failed)} of {len(nets)} exported networks"
    main = f"{right} answer in ONNX Runtime as they do in PyTorch, on {on} images each"
    pairs = [
        (net, kind, form)
        for net in nets
        for kind in _common(net)[:1]
        if (form := (*kind[:4], CHECKED[1])) in net.runs.timed
    ]
    ratios = [latency_ratio(net.runs.timed[form].result, net.runs.timed[kind].result) for net, kind, form in pairs]
    lost = [r.result.difference for net in nets if net.counts for r in net.runs.checks.get(CHECKED, [])]
    rest = ""
    if ratios:
        batches = " and ".join(map(str, sorted({kind[3] for _, kind, _ in pairs})))
        rest = f"int8 takes {min(ratios):.2f} to {max(ratios):.2f} of the time at batch {batches}"
        rest += _in_brackets((net, each) for net, *both in pairs for each in both)
        rest += f" and adds at most {max(lost):.2f} points of error" if lost else ""
    yield Answer("Exported", main, rest)
