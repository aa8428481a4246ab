"""What each stage is asked for, as types: the inputs that records hold.

What a later version has added is passed over, and what an earlier one did not have yet
has a default that says so.
"""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, ValidationError, convert, field

# A whole number of 64 bits, which every reader of JSON takes for the same.
Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Inputs(Struct, frozen=True, kw_only=True, gc=False):
    """What every stage is asked for: a `model`, made with further `arguments` by a
    table of a user's own, and by which `version` of the stage; 0 from before
    versions."""

    model: str
    version: Int = 0
    arguments: dict[str, object] = field(default_factory=dict)


class Data(Struct, frozen=True, kw_only=True, gc=False):
    """A data set as it was found: its `name`, how many images there are to `train` and
    to `test` on, and how many `classes`; and the `sha256` that tells it from others
    (`hash_of` says of what). One that is a user's own has the `mean` and `std` of each
    channel that its images were normalised by, on the 0-255 scale."""

    name: str
    train: Int
    test: Int
    classes: Int | UnsetType = UNSET
    sha256: str | UnsetType = UNSET
    hash_of: str | UnsetType = UNSET
    mean: list[float] | UnsetType = UNSET
    std: list[float] | UnsetType = UNSET


class Schedule(Struct, frozen=True, kw_only=True, gc=False):
    """What readers rely on in a recipe (see `suite.tables.spec.Recipe`): for how many
    `epochs`, and for `max_steps` at most if that is not None; the initial
    `learning_rate`; and images a step, None where an old record does not say."""

    epochs: Int
    learning_rate: float
    max_steps: Int | None
    batch_size: Int | None = None


class OnData(Inputs, frozen=True, kw_only=True, gc=False):
    """What a stage is asked for that runs a network on images: on what `data`, by which
    `recipe` (all of it)."""

    data: Data | UnsetType = UNSET
    recipe: dict[str, object] | UnsetType = UNSET


class TrainInputs(OnData, frozen=True, kw_only=True, gc=False):
    """A training with a `seed`; `schedule` is what readers rely on in its recipe.

    `precision` and `processes` are those that were asked for; None from before they
    were. `source` is the SHA-256 of the text of the module that defines the model, if
    that is a user's own (`suite.tables.modules.digest`).
    """

    data: Data
    recipe: dict[str, object]
    seed: Int
    precision: str | None = None
    processes: Int | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        try:
            convert(self.recipe, Schedule)
        except ValidationError as error:
            raise ValueError(f"{error} - at `$.recipe`") from None

    @property
    def schedule(self) -> Schedule:
        """The recipe's length and learning rate."""
        return convert(self.recipe, Schedule)

    @property
    def planned_images(self) -> int:
        """How many images it is to see, each as often as it is seen."""
        schedule = self.schedule
        images = schedule.epochs * self.data.train
        if schedule.max_steps is None or schedule.batch_size is None:
            return images
        return min(images, schedule.max_steps * schedule.batch_size)


class ExportInputs(Inputs, frozen=True, kw_only=True, gc=False):
    """An export of the network of a training, whose key is `train`; `plain` is the
    default export."""

    train: str
    plain: bool = False


class ConvertInputs(Inputs, frozen=True, kw_only=True, gc=False):
    """A conversion of the file of an `export` (its key) to a `form`, "fp16" or
    "int8"."""

    export: str
    form: str


class ParityInputs(OnData, frozen=True, kw_only=True, gc=False):
    """A check of a file made from an `export` (its key) on an execution `provider` in a
    `precision`, by a `runtime`."""

    export: str
    provider: str = "cpu"
    precision: str = "fp32"
    runtime: str = "onnxruntime"


class Protocol(Struct, frozen=True, kw_only=True, gc=False):
    """How thoroughly a latency is measured, as far as readers ask: in how many
    `rounds`."""

    rounds: Int = 0


class LatencyInputs(Inputs, frozen=True, kw_only=True, gc=False):
    """A timing of a file made from an `export` (its key), or of its network in torch.

    Attributes:
        machine: with its processors, as tables name it.
        runtime: a key of `suite.registry.RUNTIMES`.
        provider: execution provider.
        precision: "fp32", "plain" (the default export), "fp16" or "int8".
        batch_size: images.
        size: side of an image in pixels.
        threads: of the runtime.
        protocol: how thoroughly.
        versions: of the runtimes' packages.
    """

    export: str
    machine: str
    runtime: str
    provider: str
    precision: str = "fp32"
    batch_size: Int
    size: Int | None = None
    threads: Int | None = None
    protocol: Protocol = field(default_factory=Protocol)
    versions: dict[str, str] = field(default_factory=dict)


class PeakInputs(Inputs, frozen=True, kw_only=True, gc=False):
    """A measurement of what a `machine` can do at most on a `provider` with so many
    `threads` in a `precision`."""

    machine: str
    provider: str
    precision: str = "fp32"
    threads: Int
    versions: dict[str, str] = field(default_factory=dict)


class AnalyzeInputs(OnData, frozen=True, kw_only=True, gc=False):
    """A look inside the network of a training, whose key is `train`."""

    train: str
