"""An exported file in float16 or int8, fixed by training images and checked on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, structs

from suite import env
from suite.schema.outcomes import ConvertResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from suite.data.batches import Batches
    from suite.export.precision import Activations

# Training images that fix the ranges of int8 activations, and show whether float16 holds them.
CALIBRATION_IMAGES = 200


@dataclass(frozen=True, eq=False)
class Calibration:
    """Training images as in test, float32 (B, 3, size, size) each batch, in words what
    they are, and what else is to be said of them."""

    batches: Sequence["NDArray[np.float32]"]
    words: str
    notes: tuple[str, ...] = ()


def calibration(batches: "Batches", elsewhere: str = "") -> Calibration:
    """`CALIBRATION_IMAGES` training images, evenly spaced, for a network that was
    trained `elsewhere` (see `trained_elsewhere`)."""
    held = [batch.contiguous().numpy() for batch in batches.calibration(CALIBRATION_IMAGES)]
    words = f"{sum(map(len, held))} training images of {batches.dataset.name}"
    foreign = (f"calibrated on {words}, but {elsewhere}",) if elsewhere else ()
    return Calibration(held, words, (*batches.dataset.notes, *foreign))


def convert(
    path: Path,
    out: Path,
    precision: str,
    images: Calibration,
    activations: "Activations" = "unsigned",
    trained: bool = True,
    ours: bool = True,
) -> ConvertResult:
    """Write an exported file in "fp16", or in "int8" calibrated on images, with
    `activations` of a kind; of a network that is not `ours` nothing is known
    beforehand.

    A file in float16 that does not hold an activation of a network that is not
    `trained` has a warning.

    Raises:
        RuntimeError: float16 does not hold a weight, or an activation of a trained
            network on these images; or the file is not what it is meant to be.
    """
    from suite.export import exporter
    from suite.export.precision import FLOAT16, activation_magnitudes, to_float16, to_int8

    check = exporter.check if ours else exporter.describe
    if precision == "int8":
        to_int8(path, out, images.batches, activations=activations, normprop=ours)
        return ConvertResult(**structs.asdict(check(out)), calibration=images.words)
    to_float16(path, out)
    found = activation_magnitudes(path, images.batches, env.available_cores())
    greatest, most, warnings = max(found.values()), float(FLOAT16.max), []
    for node, value in found.items():
        if not value <= most:  # nor if it is not a number
            greatest = value
            overflow = f"{node} gives values to {value:.3g} on {images.words}, and float16 holds {most:.0f} at most"
            if trained:
                raise RuntimeError(f"{overflow}; use fp32, or int8 on the CPU provider")
            warnings = [f"{overflow}: with these initial weights the file gives no numbers on a GPU"]
            break
    return ConvertResult(
        **structs.asdict(check(out)),
        calibration=images.words,
        greatest_activation=greatest,
        warnings=warnings or UNSET,
    )


def of_fp32(exported: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of an exported float32 file, as it is said of one that is made of
    it: what was measured before has a name that says so."""
    found = dict(exported)
    if "rewrite_difference" in found:
        found["rewrite_difference_of_fp32"] = found.pop("rewrite_difference")
    return found
