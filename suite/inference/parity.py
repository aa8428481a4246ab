"""Does the exported file still compute the trained network? What runs it against torch
on test images."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import nn

from suite.data.batches import Batches
from suite.errors import join_with_or
from suite.inference.loaded import Loaded, Request, load
from suite.registry import ORT, REDUCED, RUNTIMES
from suite.results.derived import allowed_loss
from suite.schema.outcomes import Disagreement, ParityResult
from suite.tables.spec import TOLERANCE
from suite.tf32 import without_tf32

PRECISIONS = ("fp32", *REDUCED)

# What is at fault, by the comparison of `suite.inference.departure` that failed.
FAULTS = {
    "export": "in the export, or the folding of norms",
    "file": "in the file, which is damaged or of other weights",
    "runtime": "in what the runtime makes of the file",
}
# Disagreements that are shown, those with the widest margins first.
SHOWN = 10


class LogitsError(RuntimeError):
    """Logits that are not finite, so that nothing can be compared; `of` is "torch" or
    the runtime's label."""

    def __init__(self, of: str) -> None:
        super().__init__(f"the logits of {of} are not finite")
        self.of = of


def compare(
    model: nn.Module,
    path: Path,
    batches: Batches,
    threads: int,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    provider: str = "cpu",
    precision: str = "fp32",
    runtime: str = ORT,
    load: Callable[[Request, bool], Loaded] = load,
) -> ParityResult:
    """Run a network in float32 and its ONNX file in its own precision on the same
    images. TF32 is off on both sides.

    Args:
        model: the trained network, in evaluation mode, on the device of `batches`.
        path: its ONNX file; `input` and `logits` are float32 whatever the precision.
        batches: the test images.
        threads: of the runtime.
        progress: called with images done, images in all, and a note.
        provider: that the file is run on.
        precision: of the file: "fp32", "fp16" or "int8".
        runtime: that runs the file, a key of `suite.registry.RUNTIMES`.
        load: loads the file to be checked; see `suite.inference.loaded.load`.

    Returns:
        What was found, and whether it passed; of a float32 file `precision` is what the
        runtime computes it in. In float32 it passes if every logit is within the
        tolerance, and nothing but ties disagrees. In reduced precision, TF32 among
        them, where logits differ of necessity: no more right answers are lost on
        balance than 1 % of torch's, or than chance explains (two standard deviations of
        as many coins as answers changed).

    Raises:
        LogitsError: logits are not finite.
        RuntimeError: the provider cannot be used here.
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not valid; use {join_with_or(PRECISIONS)}")
    deployed = load(Request(runtime, str(path), provider, 1, 0, threads), True)
    logits = deployed.outputs.index("logits")
    expected, actual, targets = [], [], []
    with torch.inference_mode(), without_tf32():
        for images, labels in batches.test():
            expected.append(model(images).cpu().numpy())
            actual.append(deployed.compute({"input": images.contiguous().cpu().numpy()})[logits])
            targets.append(labels.cpu().numpy())
            progress(sum(map(len, targets)), batches.test_images, "images")
    used = deployed.computes if precision == "fp32" else precision
    tf32 = used == "tf32"
    exact, of = used == "fp32", RUNTIMES[runtime].label
    found = compare_logits(np.concatenate(expected), np.concatenate(actual), np.concatenate(targets), exact, of)
    return structs.replace(found, provider=deployed.provider, precision="fp32" if tf32 else used, tf32=tf32)


def compare_logits(
    expected: np.ndarray, actual: np.ndarray, labels: np.ndarray, exact: bool = True, of: str = RUNTIMES[ORT].label
) -> ParityResult:
    """Compare two sets of logits (N, classes); see `compare` for what passes.

    Args:
        expected: torch's logits.
        actual: the file's.
        labels: the right classes (N,).
        exact: whether both were computed in float32.
        of: the label of what ran the file.

    Raises:
        LogitsError: logits are not finite.
    """
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        raise LogitsError("torch" if not np.isfinite(expected).all() else of)
    # In float64, for two logits of float32 may lie further apart than float32 reaches.
    difference = np.subtract(expected, actual, dtype=np.float64)
    np.abs(difference, out=difference)
    scale = float(np.abs(expected).max())
    first, other = expected.argmax(1), actual.argmax(1)
    ordered = np.sort(expected, axis=1)
    margins = np.subtract(ordered[:, -1], ordered[:, -2], dtype=np.float64)
    apart = np.flatnonzero(first != other)
    ties = [int(i) for i in apart if margins[i] <= 2 * difference[i].max()]
    right, still = first == labels, other == labels
    lost, won = int((right & ~still).sum()), int((still & ~right).sum())
    if exact:
        passed = difference.max() <= TOLERANCE * scale and len(ties) == len(apart)
    else:
        passed = lost - won <= allowed_loss(int(right.sum()), lost, won)
    errors = [100 * float((~answers).mean()) for answers in (right, still)]
    return ParityResult(
        images=len(labels),
        torch_top1=errors[0],
        onnx_top1=errors[1],
        difference=errors[1] - errors[0],
        scale=scale,
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        agreement=100 * float((first == other).mean()),
        disagreements=[Disagreement(image=int(i), margin=float(margins[i])) for i in apart],
        ties=len(ties),
        lost=lost,
        won=won,
        passed=bool(passed),
    )


def render(found: Mapping[str, Any]) -> str:
    """What `compare` found (its fields by name) as text for a terminal, ending in a
    newline, with `departure` if that was looked for, and beside the errors where the
    network was trained if that is `elsewhere`; `runtime` is ONNX Runtime if not
    given."""
    scale, apart = found["scale"], found["disagreements"]
    runtime = RUNTIMES[found.get("runtime", ORT)].label
    widest = sorted(apart, key=lambda each: -each["margin"])[:SHOWN]
    margins = ", ".join(f"image {each['image']} by {each['margin']:.3g}" for each in widest)
    more = ", ..." if len(apart) > SHOWN else ""
    tf32 = ", with TF32" if found["tf32"] else ""
    elsewhere = f" on {found['data']}, but {found['elsewhere']}" if found.get("elsewhere") else ""
    lines = [
        f"{found['precision']} on {found['provider']}{tf32}: {found['images']} images",
        f"top-1 error    torch {found['torch_top1']:.2f} %, {runtime} {found['onnx_top1']:.2f} %, "
        f"difference {found['difference']:+.2f} points{elsewhere}",
        f"logits         greatest difference {found['max_logit_difference']:.3g}, which is "
        f"{found['max_logit_difference'] / scale if scale else 0.0:.1e} of the greatest logit; mean "
        f"{found['mean_logit_difference']:.3g}",
        f"agreement      {found['agreement']:.6g} % of images; right in torch alone {found['lost']}, "
        f"in {runtime} alone {found['won']}",
        f"disagreements  {len(apart)}, torch's margins: {margins}{more}" if apart else "disagreements  none",
        f"passed         {'yes' if found['passed'] else 'NO'}",
    ]
    if departure := found.get("departure"):
        expected, got = ("no number" if departure[each] is None else departure[each] for each in ("expected", "actual"))
        values = f"expected {expected}, got {got} at {departure['position']}"
        if departure["position"] is None:
            values = "its result has another shape"
        lines.append(
            f"departs first  at layer {departure['layer']} (node {departure['node']}, {departure['operator']}), "
            f"{FAULTS[departure['comparison']]}: {values}"
        )
    elif "departure" in found:
        lines.append("departs first  nowhere: no node differs by more than rounding")
    return "\n".join(lines) + "\n"
