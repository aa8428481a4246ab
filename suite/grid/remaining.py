"""How long the work that is left will take, from what has been done: one estimate for a
run's bar and for `status`."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from suite.grid.claims import Claim
from suite.grid.plan import TIMED
from suite.progress import duration

# Seconds of a timing before any has ended, as in a quick run.
GUESS = 5.0
# Networks whose sizes differ by this factor tell how the time grows with the size.
APART = 1.3


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: its kind, key, model, and its name for people."""

    kind: str
    key: str
    model: str
    name: str

    @property
    def sort(self) -> str:
        """What it does, whatever the network, as in "latency torch cpu batch 1"."""
        return self.name.rpartition(": ")[2]


@dataclass(frozen=True)
class TimeLeft:
    """Seconds of work that is left for those who are at it, and the kinds of stages
    that these leave out, since none of them has ended."""

    seconds: float
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'at least' if self.left_out else 'about'} {duration.format_duration(self.seconds)}"


def time_left(
    stages: Sequence[Planned], settled: Collection[str], claims: Sequence[Claim], took: Mapping[str, float]
) -> TimeLeft | None:
    """How long the stages of a plan will take that are not settled.

    Stages of one sort take a time that grows with the network, so that the larger ones
    at a table's end do not come as a surprise. While none of a sort has ended, those
    under way tell by their own pace. Timings are taken by one process, whoever else is
    at work.

    Args:
        stages: of the plan.
        settled: keys of those that are done or will not be done.
        claims: of those under way.
        took: seconds of those that are done, by key.

    Returns:
        None if nothing is known of trainings that are left, which take most of a run,
        or of all that is left.
    """
    held = {claim.key: claim for claim in claims}
    shares = {claim.key: claim.left / _together(claim, claims) for claim in claims}
    known = _known(stages, took)
    whole = {key: share * held[key].total / max(1, held[key].total - held[key].done) for key, share in shares.items()}
    by_pace = _known(stages, {key: seconds for key, seconds in whole.items() if seconds})
    left, left_out = {True: 0.0, False: 0.0}, dict[str, None]()
    for stage in stages:
        if stage.key in settled:
            continue
        timed, claim = stage.kind in TIMED, held.get(stage.key)
        if shares.get(stage.key):
            left[timed] += shares[stage.key]
            continue
        found = (each.get(name) for each in (known, by_pace) for name in (stage.sort, stage.kind))
        sizes_and_seconds = next(filter(None, found), None)
        if not sizes_and_seconds and not timed:
            left_out[stage.kind] = None
            continue
        size = relative_size(stage.model)
        expected = _extrapolate(sizes_and_seconds, size) if sizes_and_seconds else GUESS
        share = claim.done / claim.total if claim and claim.total else 0.0
        left[timed] += max(0.0, 1 - share) * expected
    if "train" in left_out or (left_out and not any(left.values())):
        return None
    workers = {(claim.holder.host, claim.holder.pid) for claim in claims if claim.kind not in TIMED}
    return TimeLeft(left[False] / max(1, len(workers)) + left[True], tuple(left_out))


def _known(stages: Sequence[Planned], seconds: Mapping[str, float]) -> Mapping[str, list[tuple[float, float]]]:
    """Sizes of networks and seconds of their stages, by the sort and by the kind of
    these."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for stage in stages:
        if stage.key in seconds:
            for name in (stage.sort, stage.kind):
                found[name].append((relative_size(stage.model), seconds[stage.key]))
    return found


def _together(claim: Claim, claims: Sequence[Claim]) -> int:
    """How many stages a process does at the same time, timings in turns or a pack of
    trainings: the time left beside each is that of all."""
    return sum((other.kind, other.holder) == (claim.kind, claim.holder) for other in claims)


def _extrapolate(known: Sequence[tuple[float, float]], wanted: float) -> float:
    """The seconds of a network of a size, from the sizes and seconds of others: on the
    straight line through them, and while they are of one size as if half of the time
    grew with it."""
    sizes, values = zip(*known, strict=True)
    mean_size, mean = sum(sizes) / len(sizes), sum(values) / len(values)
    slope: float = 0.5 * mean / mean_size
    if max(sizes) > APART * min(sizes):
        spread = sum((size - mean_size) ** 2 for size in sizes)
        slope = sum((size - mean_size) * value for size, value in known) / spread
        slope = min(max(0.0, slope), mean / mean_size)  # neither less for more work, nor less than nothing for none
    return float(mean + slope * (wanted - mean_size))


def relative_size(model: str) -> float:
    """About how much work a network is beside others of its layout, by its name: its
    depth, doubled by CReLU, and by the square of its width; 1 for another name."""
    found = re.fullmatch(r"resnet(\d+)_(?:w(\d+)_)?(\w+)_\w+", model)
    if not found:
        return 1.0
    depth, width, activation = found.groups()
    return float(depth) * (int(width or 16) / 16) ** 2 * (2 if "crelu" in activation else 1)
