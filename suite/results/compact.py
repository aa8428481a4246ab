"""Records of latencies in their earlier layouts, written anew in today's: each run
once, as whole nanoseconds.

Nothing is lost but what lies below a nanosecond, which no clock has counted: each new
text is read back and compared with the old one before it takes its place.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec
from msgspec.structs import replace

from suite.errors import InputError
from suite.files import read_if_file
from suite.results import samples
from suite.results.record import FORMAT, AnyRecord, decode, to_json
from suite.results.store import Store
from suite.results.verify import read_verified, record_paths
from suite.schema.outcomes import LatencyResult

# What a timing holds of its runs, in all layouts.
_TIMES = {"samples", "rounds", "host_samples", "samples_ns", "rounds_ns", "host_samples_ns"}
# Greatest rounding in seconds.
HALF = 0.5e-9


@dataclass
class RewriteSummary:
    """What was written anew: how many `records`, their bytes `before` and `after`, how
    many `runs` they hold, and the greatest difference in seconds, `furthest`, of one
    that was read before from the same one read afterwards."""

    records: int = 0
    before: int = 0
    after: int = 0
    runs: int = 0
    furthest: float = 0.0

    def __str__(self) -> str:
        size = f"{self.records} records written anew, {self.before:,} bytes before and {self.after:,} after"
        same = f"{self.runs:,} runs within half a nanosecond of what they were (at most {1e9 * self.furthest:.2g} ns)"
        return f"{size}: {same}, all else equal" if self.records else "no record of an earlier layout to write anew"


def rewrite(store: Store, progress: Callable[[int, int, str], None] = lambda done, total, note: None) -> RewriteSummary:
    """Write records of earlier layouts anew.

    A record is replaced by a single rename, so that after a kill each has one of its
    layouts, and the same command goes on. Left alone is all that `verify` has something
    against, and every timing whose samples are not those of its rounds.

    Args:
        store: the results folder.
        progress: called with files looked at, files in all, and a note.

    Raises:
        InputError: the folder cannot be read or written to.
    """
    found, paths = RewriteSummary(), record_paths(store.root)
    for done, path in enumerate(paths, start=1):
        if path.parent.name == "latency" and (text := _read_earlier(store.root, path)) and (new := _renew(text)):
            after, differences = new
            if store.replace(path, text, after):
                found.records += 1
                found.before += len(text)
                found.after += len(after)
                found.runs += len(differences)
                found.furthest = max(found.furthest, *differences)
        progress(done, len(paths), "files")
    return found


def _read_earlier(root: Path, path: Path) -> bytes | None:
    """The text of a sound record in an earlier layout; None of everything else."""
    try:
        text = read_if_file(path)
        read_verified(root, path)
    except (InputError, OSError):
        return None
    return text if text and "samples" in decode(text, AnyRecord).result else None


def _renew(text: bytes) -> tuple[bytes, list[float]] | None:
    """A record's text in today's layout, and what `differences` says of the two; None
    if they are not equal."""
    content: dict[str, object] = msgspec.json.decode(text)  # as it is, and not as it may be printed
    result = msgspec.json.decode(text, type=_Result).result
    try:
        after = to_json({"digest": "", **content, "result": samples.to_record(result), "format": FORMAT})
        found = differences(decode(text, AnyRecord), decode(after, AnyRecord))
    except (ValueError, OverflowError):  # a run of less than a nanosecond, or of centuries
        return None
    return None if found is None else (after, found)


class _Result(msgspec.Struct):
    result: dict[str, object]


def differences(old: AnyRecord, new: AnyRecord) -> list[float] | None:
    """Hold a latency's record against the same in another layout, both as readers are
    given them.

    Returns:
        Of each run, from host memory too, the difference in seconds, none above half a
        nanosecond; None if anything else differs, the rounds among it, or where the old
        samples are not those of the old rounds.

    Raises:
        ValueError: one of them is no latency's.
    """
    if replace(old, result={}, format=FORMAT, digest="") != replace(new, result={}, format=FORMAT, digest=""):
        return None
    rest, same = ({name: value for name, value in each.result.items() if name not in _TIMES} for each in (old, new))
    kept = msgspec.convert(old.result, LatencyResult)
    before, after = samples.to_seconds(kept), samples.to_seconds(msgspec.convert(new.result, LatencyResult))
    if rest != same or (before.rounds, len(before.host_samples)) != (after.rounds, len(after.host_samples)):
        return None
    if kept.rounds and list(chain(*kept.rounds)) != kept.samples:
        return None
    if ("rounds" in old.result) != ("rounds_ns" in new.result) or len(before.samples) != len(after.samples):
        return None
    runs = [*zip(before.samples, after.samples, strict=True)]
    runs += zip(before.host_samples, after.host_samples, strict=True)
    # Beside the rounding a number of seconds has that of floating point, which grows with it.
    if any(abs(a - b) > HALF + math.ulp(a) for a, b in runs):
        return None
    return [abs(a - b) for a, b in runs]
