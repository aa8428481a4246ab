"""The options of a run, as `suite run` takes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from suite.registry import ORT
from suite.tables import spec
from suite.tables.spec import Table


@dataclass(frozen=True)
class RunOptions:
    """What to run, as the command line takes it; `suite run --help` explains each. A
    `table` is one of the paper's by its number, or a user's own, whose models the
    modules `imports` register with timm. Of the cells `only` those of these names are
    run, or all, and nothing is begun after the moment `until`. With 0 `workers` there
    are as many as suit the work, and unless `keep` is set a finished quick run removes
    its weights and ONNX files."""

    table: int | Table
    results: Path
    profile: Literal["quick", "paper"] = "quick"
    rows: tuple[str, ...] = ()
    data: Mapping[str, Path] = field(default_factory=dict)
    seeds: int = 1
    epochs: int | None = None
    steps: int | None = None
    depth: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    providers: tuple[str, ...] = ("cpu",)
    batch_sizes: tuple[int, ...] = (1, 8)
    runtimes: tuple[str, ...] = (ORT, "torch")
    forms: tuple[Literal["fp32", "plain", "fp16", "int8"], ...] = ("fp32",)
    timings: Literal["auto", "quick", "thorough"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "always", "never"] = "auto"
    kernels: Literal["auto", "library"] = "auto"
    pack: int = 1
    workers: int = 1
    executor: Literal["local", "ray", "slurm"] = "local"
    address: str | None = None
    processes: int = 1
    latency_resource: str | None = None
    only: frozenset[str] | None = None
    stages: tuple[str, ...] = spec.STAGES
    until: datetime | None = None
    tensorboard: Path | None = None
    keep: bool = True
    imports: tuple[str, ...] = ()

    @property
    def is_quick(self) -> bool:
        """Whether quick runs are asked for: networks trained for a few steps, and all
        else done in full. A record knows what it became (`TrainRecord.is_quick`), since
        few steps may be an epoch of few images."""
        shortened = isinstance(self.table, int) or bool(self.table.quick)
        return shortened and self.profile == "quick" and self.epochs is None
