"""Load a network in any runtime, to time it or to compare its outputs."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from suite import env
from suite.errors import join_with_or
from suite.inference.feeds import Arrays, Input, Values
from suite.registry import PROVIDERS, RUNTIMES

DISTINCT_INPUTS = 4


@dataclass(frozen=True)
class Protocol:
    """How often to run: `warmup` runs, then `rounds` bursts, each of at least
    `min_runs` runs and `min_seconds`, and at most `max_runs` runs, after one run that
    is not counted since others had the machine before it."""

    rounds: int
    min_seconds: float
    min_runs: int
    max_runs: int
    warmup: int


ONCE = Protocol(rounds=1, min_seconds=0.0, min_runs=1, max_runs=1, warmup=0)


@dataclass(frozen=True)
class Request:
    """One figure to measure.

    Attributes:
        runtime: a key of `suite.registry.RUNTIMES`.
        path: the ONNX file, or for torch the folder of weights in timm's local layout.
        provider: a key of `suite.registry.PROVIDERS`; for others than ONNX Runtime the
            device.
        batch_size: images a run.
        size: side of an image in pixels.
        threads: of the runtime's thread pool.
        protocol: how often to run.
        inputs: what the network takes, which may be nothing; None for `input` as this
            project's own files have it, float32 (batch_size, channels, size, size).
        values: an .npz file with values for these inputs; those that it lacks are
            drawn.
        modules: to import before a network is loaded in torch, which they register with
            timm.
    """

    runtime: str
    path: str
    provider: str
    batch_size: int
    size: int
    threads: int
    protocol: Protocol = ONCE
    inputs: tuple[Input, ...] | None = None
    values: str | None = None
    modules: tuple[str, ...] = ()

    @classmethod
    def from_plain(cls, raw: dict[str, Any]) -> "Request":
        """What `dataclasses.asdict` made of a request, and JSON of that."""
        inputs = raw["inputs"]
        if inputs is not None:
            inputs = tuple(Input(**each | {"shape": tuple(each["shape"])}) for each in inputs)
        nested = {"protocol": Protocol(**raw["protocol"]), "inputs": inputs, "modules": tuple(raw["modules"])}
        return cls(**raw | nested)

    def taken(self, channels: int) -> tuple[Input, ...]:
        """What each run is given, of a network of so many channels."""
        if self.inputs is not None:
            return self.inputs
        return (Input("input", "float32", (self.batch_size, channels, self.size, self.size)),)


class Loaded(ABC):
    """A network ready to run in one runtime, on one device.

    Attributes:
        load_seconds: that it took to get here, without the import of libraries.
        provider: that it runs on, as the runtime names it.
        settings: of the runtime, by their names there.
        nodes: of the graph by provider, as given out; empty where the runtime does not
            say.
        outputs: names of what it computes; empty for torch, which has none.
        channels: of its images; 0 if it takes something else.
        computes: what it computes float32 in: "fp32", "tf32", or as the runtime names
            it, such as "bf16".
        graphs: CUDA graphs that its first runs record, one for each input that is
            held.
    """

    load_seconds: float
    provider: str
    settings: dict[str, Any]
    nodes: dict[str, int]
    outputs: tuple[str, ...] = ()
    channels: int = 0
    computes: str = "fp32"
    graphs: int = 0

    @abstractmethod
    def hold(self, feeds: Sequence[Values]) -> None:
        """Put inputs where runs find them, on the device."""

    @abstractmethod
    def run(self, index: int) -> None:
        """Compute the held input `index`, and wait for the result, which stays on the
        device."""

    @abstractmethod
    def results(self, index: int) -> Arrays:
        """What the last run of this input gave, in host memory; empty if that is
        something else than arrays."""

    @abstractmethod
    def compute(self, values: Values) -> Arrays:
        """From host memory to host memory: what the network gives for these inputs, in
        the order of `outputs`."""

    def description(self) -> dict[str, Any]:
        """What a record says of it."""
        said = {"provider": self.provider, "settings": self.settings}
        return said | ({"nodes": self.nodes} if self.nodes else {})


def load(request: Request, checked: bool = False) -> Loaded:
    """Load a network as it is deployed, for the shapes that the request has.

    Args:
        request: what to load, and where.
        checked: load it to be compared, not timed: its inputs may have any shapes, and
            float32 is computed in float32 where the runtime can be told so.

    Raises:
        RuntimeError: it cannot be loaded there; one line.
    """
    runtime = RUNTIMES[request.runtime]
    if request.provider not in runtime.providers:
        legal = join_with_or(runtime.providers)
        raise RuntimeError(f"{runtime.label} does not run on {PROVIDERS[request.provider].name}; use {legal}")
    loader = importlib.import_module(f"suite.inference.in_{runtime.library}")
    loaded: Loaded = loader.load(request, checked)
    return loaded


def import_library(runtime: str) -> None:
    """Import what a runtime needs, so that it does not count as loading a network."""
    importlib.import_module(f"suite.inference.in_{RUNTIMES[runtime].library}").import_library()


def require(runtimes: Iterable[str]) -> None:
    """See whether runtimes are installed.

    Raises:
        InputError: one is not.
    """
    for name in runtimes:
        runtime = RUNTIMES[name]
        if runtime.extra:
            env.require_package(runtime.library, name)
