"""Kinds of latencies: only latencies of the same kind are compared or share a
column."""

from suite.files import printable
from suite.registry import RUNTIMES
from suite.results.record import TimedRecord
from suite.results.samples import BUSY, quantiles

# Spread of the samples, (p75 - p25) / p50, from which on a latency is marked as unstable.
UNSTABLE = 0.1

# The form of the default export, as the precision of a latency record.
PLAIN = "plain"

# Packages that run networks.
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch")

# Setup (machine and versions), runtime, execution provider, batch size and precision of a latency.
Kind = tuple[str, str, str, int, str]


def instability_notes(record: TimedRecord) -> list[str]:
    """What is to be said of a latency whose samples are far apart, or that was taken
    while a quota stopped it or others took its cores."""
    notes = []
    if stops := record.result.throttled:
        notes.append(f"throttled: a container's CPU quota stopped the runs {stops} times")
    if record.result.others >= BUSY:
        notes.append(f"busy: other processes took {record.result.others:.0%} of the cores meanwhile")
    p25, p50, p75 = quantiles(record.result.samples, (0.25, 0.5, 0.75))
    if (p75 - p25) / p50 > UNSTABLE:
        notes.append(f"unstable: quartiles more than {UNSTABLE:.0%} of the median apart")
    return notes


def kind_of(record: TimedRecord) -> Kind:
    """What a latency record timed: two of the same kind may be compared, others never
    share a column."""
    inputs = record.inputs
    runtime, provider, precision = map(printable, (inputs.runtime, inputs.provider, inputs.precision))
    # Of a runtime that not all have, the version stands with its name, so that the others' setup is the same without.
    if runtime in RUNTIMES and RUNTIMES[runtime].extra:
        runtime = f"{runtime} {printable(inputs.versions.get(RUNTIMES[runtime].library, ''))}".strip()
    return setup_of(record), runtime, provider, inputs.batch_size, precision or "fp32"


def setup_of(record: TimedRecord) -> str:
    """Machine and versions of the runtimes of a latency, as in "AMD EPYC (2 cores),
    torch 2.15.0"."""
    versions = record.inputs.versions
    runtimes = [f"{name} {versions[name]}" for name in RUNTIME_PACKAGES if name in versions]
    return printable(", ".join([record.inputs.machine, *runtimes]))


def words_of(kind: Kind) -> str:
    """A kind without its setup, as in "ORT cpu b8"."""
    _, runtime, provider, batch, precision = kind
    return " ".join([runtime_words(runtime), provider, *precision_in_words(precision), f"b{batch}"])


def runtime_words(runtime: str) -> str:
    """A runtime as headings name it, with its version if that stands behind it."""
    name, _, version = runtime.partition(" ")
    return f"{RUNTIMES[name].short if name in RUNTIMES else name} {version}".strip()


def brief_words(runtime: str) -> str:
    """A runtime as a terminal has room for it, without its version."""
    name = runtime.partition(" ")[0]
    return RUNTIMES[name].brief or runtime_words(name) if name in RUNTIMES else name


def precision_in_words(precision: str) -> list[str]:
    """A precision in words; none for float32, which is what is meant where nothing is
    said."""
    return {"fp32": [], PLAIN: ["default export"]}.get(precision, [precision])
