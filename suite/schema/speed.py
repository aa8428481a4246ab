"""What a training says of its own speed, which its record holds under `timing`."""

from msgspec import UNSET, Struct, UnsetType

from suite.schema.inputs import Int


class CompileTrial(Struct, frozen=True, kw_only=True, gc=False):
    """What was measured to decide on torch.compile; nothing where nobody measured.

    Attributes:
        step_seconds, compiled_step_seconds: of a step without it, and with it.
        compile_seconds: how much longer the first step took with it.
        compile_error: in words, why it could not be used.
    """

    step_seconds: float | UnsetType = UNSET
    compiled_step_seconds: float | UnsetType = UNSET
    compile_seconds: float | UnsetType = UNSET
    compile_error: str | UnsetType = UNSET


class TrainTiming(CompileTrial, frozen=True, kw_only=True, gc=False):
    """How fast a training was, beside the `seconds` that it took.

    Attributes:
        training_seconds: without tests.
        images_per_second: over these.
        packed: networks that were trained at the same time, at most.
        stacked: those of them that were trained as one network with this one, at most;
            1 for none but itself.
        blocks_twice: blocks that were computed twice to save memory.
    """

    training_seconds: float
    images_per_second: float
    packed: Int
    stacked: Int
    blocks_twice: Int
