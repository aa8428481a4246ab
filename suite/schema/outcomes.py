"""What each stage finds, as types: the results that records hold, field by field with
its unit.

Times are in seconds unless a name says otherwise, errors in percent. What a stage of an
earlier version did not write, or leaves out, is `UNSET`, and is not written again; null
is a figure that there is none of.
"""

from typing import Annotated, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType

from suite.schema.inputs import Int

T = TypeVar("T")

Count = Annotated[int, Meta(gt=0, le=2**63 - 1)]
Positive = Annotated[float, Meta(gt=0)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
# Several of something, one at least.
Numbers = Annotated[list[float], Meta(min_length=1)]
Figure = float | UnsetType | None
Error = Percent | UnsetType | None


def none_if_unset(value: T | UnsetType | None) -> T | None:
    """A value that may be missing in two ways, in one."""
    return None if isinstance(value, UnsetType) else value


class Errors(Struct, frozen=True, kw_only=True, gc=False):
    """Test errors in percent, by the names that tables have for them."""

    top1: Error = UNSET
    top5: Error = UNSET
    top1_10crop: Error = UNSET
    top5_10crop: Error = UNSET

    def figure(self, name: str) -> float | None:
        """The figure of this name; None if it is not known."""
        value: float | UnsetType | None = getattr(self, name, None)
        return none_if_unset(value)


class Epoch(Errors, frozen=True, kw_only=True, gc=False):
    """One epoch of a training, `epoch` counting from 1: its learning rate, the mean
    training loss (None if that is not finite), the training error in percent, and the
    test errors after it."""

    epoch: Int | UnsetType = UNSET
    learning_rate: Figure = UNSET
    train_loss: Figure = UNSET
    train_error: Figure = UNSET


class Try(Struct, frozen=True, kw_only=True, gc=False):
    """What came of one learning rate.

    Attributes:
        learning_rate: the initial one.
        outcome: why it ended, in words; "trained" if all went well.
        epochs, steps: begun, and done.
        last_loss: mean of the last 25 steps; None if that is not finite.
        train_error: of the last epoch, in percent.
        dead_units: share of the channels before the classifier, 0 to 1, that are zero
            on a whole test batch; None if that is not finite.
    """

    learning_rate: float
    outcome: str
    epochs: Int | UnsetType = UNSET
    steps: Int | UnsetType = UNSET
    last_loss: Figure = UNSET
    train_error: Figure = UNSET
    dead_units: Figure = UNSET


class TrainResult(Errors, frozen=True, kw_only=True, gc=False):
    """What came of a training. Its test errors are those of the last epoch in float32;
    None if it did not succeed.

    Attributes:
        best_top1: the least error over epochs in percent. On a GPU all but the last are
            tested in the precision of training.
        trained: whether training was feasible at any learning rate.
        tries: what came of each learning rate, one at least.
        epochs: of the last of them.
        steps: done at the last learning rate.
        test_images: how many were tested.
        device: "cpu" or "cuda"; "cuda, cpu" if one went on with the last try that the
            other began.
        precision: of activations in training, such as "float32" or "bfloat16 autocast",
            or both in their order; empty if not known.
        compiled: whether by torch.compile.
        kernels: of convolutions and BatchNorm, "triton" (our own, where they fit) or
            "library", or both in their order.
        processes: that shared each batch.
        batch_per_process: images of a step in each of them.
    """

    best_top1: Error = UNSET
    trained: bool
    tries: Annotated[list[Try], Meta(min_length=1)]
    epochs: list[Epoch]
    steps: Int
    test_images: Int
    device: str | UnsetType = UNSET
    precision: str = ""
    compiled: bool | UnsetType = UNSET
    kernels: str | UnsetType = UNSET
    processes: Int | UnsetType = UNSET
    batch_per_process: Int | UnsetType = UNSET


class File(Struct, frozen=True, kw_only=True, gc=False):
    """An ONNX file: its `opset`, its `operators` (how many of each) and its `bytes`."""

    opset: Int | UnsetType = UNSET
    operators: dict[str, Int] | UnsetType = UNSET
    bytes: Int | UnsetType = UNSET


class ExportResult(File, frozen=True, kw_only=True, gc=False):
    """An exported network.

    Attributes:
        parameters: trainable numbers.
        macs: multiply-accumulates of convolutions and linear layers for one image, of
            the network itself; None of a network in which they cannot be counted.
        rewrites: how often each was applied; not of the default export.
        rewrite_difference: what they changed of the logits on random images, as a share
            of the largest.
    """

    parameters: Int
    macs: Int | None
    rewrites: dict[str, Int] | UnsetType = UNSET
    rewrite_difference: float | UnsetType = UNSET


class ConvertResult(File, frozen=True, kw_only=True, gc=False):
    """A file in reduced precision.

    Attributes:
        calibration: in words, the images that fixed it.
        greatest_activation: in float32 on these images, where float16 has to hold it.
        warnings: in words, what is to be feared of it.
    """

    calibration: str | UnsetType = UNSET
    greatest_activation: float | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET


class Disagreement(Struct, frozen=True, kw_only=True, gc=False):
    """An image, by its index, whose first class is another one, and the `margin`
    between torch's two first logits."""

    image: Int
    margin: float


class Departure(Struct, frozen=True, kw_only=True, gc=False):
    """The first node of a file that does not compute what its network does.

    Attributes:
        layer: of the network that it comes from.
        comparison: that failed, "export", "file" or "runtime".
        node, operator: in the graph.
        difference: the greatest; None if shapes differ or a value is not finite.
        scale: the greatest magnitude expected.
        position: index in the tensor where the difference is worst; None if the shapes
            differ.
        expected, actual: the values there; None for none, and for one that is not
            finite.
    """

    layer: str
    comparison: str | UnsetType = UNSET
    node: str | UnsetType = UNSET
    operator: str | UnsetType | None = UNSET
    difference: Figure = UNSET
    scale: Figure = UNSET
    position: list[Int] | UnsetType | None = UNSET
    expected: Figure = UNSET
    actual: Figure = UNSET


class ParityResult(Struct, frozen=True, kw_only=True, gc=False):
    """ONNX Runtime held against torch in float32 on the same images.

    Attributes:
        passed: whether the file counts as the network (see `suite.inference.parity`).
        images: how many.
        difference: of the top-1 errors in points, ONNX Runtime's minus torch's.
        scale: the greatest magnitude of torch's logits.
        max_logit_difference, mean_logit_difference: between the two.
        agreement: images in percent whose first class is the same.
        ties: disagreements within the logit difference, where neither is wrong.
        disagreements: each other first class.
        torch_top1, onnx_top1: errors in percent.
        lost, won: images that only torch, or only ONNX Runtime has right.
        provider: as ONNX Runtime names it.
        precision: of the file.
        tf32: whether TensorRT used it.
        departure: where a float32 file that fails departs first; None if nowhere, UNSET
            if nobody looked.
    """

    passed: bool
    images: Int
    difference: float
    scale: Positive
    max_logit_difference: float
    mean_logit_difference: float | UnsetType = UNSET
    agreement: float
    ties: Int
    disagreements: list[Disagreement] | UnsetType = UNSET
    torch_top1: Percent | UnsetType = UNSET
    onnx_top1: Percent | UnsetType = UNSET
    lost: Int | UnsetType = UNSET
    won: Int | UnsetType = UNSET
    provider: str | UnsetType = UNSET
    precision: str = "fp32"
    tf32: bool = False
    departure: Departure | UnsetType | None = UNSET


class LatencyResult(Struct, frozen=True, kw_only=True, gc=False):
    """The times of all runs, in one of three layouts, of which
    `suite.results.samples.to_seconds` makes one.

    Attributes:
        rounds_ns: whole nanoseconds, round by round.
        samples_ns: the same where rounds are not known.
        samples, rounds: seconds, as until format 1.
        host_samples_ns, host_samples: of runs from host memory to host memory, in
            nanoseconds or seconds.
        throttled: how often a container's CPU quota stopped the machine.
        others: share of the cores' time that other processes took meanwhile, 0 to 1.
        load_seconds: to create the session, or load the weights.
        first_run_seconds: of the first run.
        in_turns_with: how many others took turns with it.
        provider: as the runtime names it.
        nodes: of the graph, as given out to providers.
        settings: of the runtime, by their names there.
    """

    rounds_ns: list[list[Count]] | UnsetType = UNSET
    samples_ns: Annotated[list[Count], Meta(min_length=1)] | UnsetType = UNSET
    samples: Annotated[list[Positive], Meta(min_length=1)] | UnsetType = UNSET
    rounds: list[list[Positive]] | UnsetType = UNSET
    host_samples_ns: Annotated[list[Count], Meta(min_length=1)] | UnsetType = UNSET
    host_samples: Annotated[list[Positive], Meta(min_length=1)] | UnsetType = UNSET
    throttled: Int | UnsetType = UNSET
    others: Share | UnsetType = UNSET
    load_seconds: float | UnsetType = UNSET
    first_run_seconds: float | UnsetType = UNSET
    in_turns_with: Int | UnsetType = UNSET
    provider: object = UNSET
    nodes: object = UNSET
    settings: object = UNSET

    def __post_init__(self) -> None:
        layouts = [name for name in ("rounds_ns", "samples_ns", "samples") if getattr(self, name) is not UNSET]
        if len(layouts) > 1:
            raise ValueError(f"both {' and '.join(layouts)}")
        if not layouts or not (self.samples_ns or self.samples or any(none_if_unset(self.rounds_ns) or ())):
            raise ValueError("no samples")


class Trial(Struct, frozen=True, kw_only=True, gc=False):
    """One product or convolution: its `flops`, and its runs in nanoseconds."""

    flops: Positive
    samples_ns: list[Count]


class PeakResult(Struct, frozen=True, kw_only=True, gc=False):
    """The most that a machine was seen to do: `flops`, multiplications and additions a
    second.

    `of` names the fastest of the `trials`; both are from version 2 on, before which
    there was but one product.
    """

    flops: Positive
    of: str | UnsetType = UNSET
    trials: dict[str, Trial] | UnsetType = UNSET
