"""Does the exported file still compute the trained network? ONNX Runtime against torch on test images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from suite.batches import Batches

# Greatest logit difference allowed, as a share of the greatest logit: float32 noise is far below it.
TOLERANCE = 1e-4


def compare(
    model: nn.Module,
    path: Path,
    batches: Batches,
    threads: int,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """Run a network and its ONNX file on the same images, on the CPU in float32.

    Args:
        model: the trained network, in evaluation mode.
        path: its ONNX file.
        batches: the test images.
        threads: of ONNX Runtime.
        progress: called with images done, images in all, and a note.

    Returns:
        `images`; `torch_top1`, `onnx_top1`: errors in percent; `difference`: the latter minus the former;
        `scale`: the greatest magnitude of torch's logits; `max_logit_difference`, `mean_logit_difference`;
        `agreement`: share of images in percent whose first class is the same; `disagreements`: for each of the
        others its index, and the margin between torch's two first logits; `ties`: those of them whose margin is
        within the logit difference, so that neither answer is wrong; `passed`: within the tolerance and nothing
        but ties disagrees.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    expected, actual, targets = [], [], []
    with torch.inference_mode():
        for images, labels in batches.test():
            expected.append(model(images).numpy())
            actual.append(session.run(["logits"], {"input": images.contiguous().numpy()})[0])
            targets.append(labels.numpy())
            progress(sum(map(len, targets)), batches.test_images, "images")
    return judge(np.concatenate(expected), np.concatenate(actual), np.concatenate(targets))


def judge(expected: np.ndarray, actual: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compare two sets of logits (N, classes); see `compare` for what is returned.

    Raises:
        RuntimeError: logits are not finite, so that nothing can be compared.
    """
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        which = "torch" if not np.isfinite(expected).all() else "ONNX Runtime"
        raise RuntimeError(f"the logits of {which} are not finite")
    difference = np.abs(expected - actual)
    scale = float(np.abs(expected).max())
    first, other = expected.argmax(1), actual.argmax(1)
    ordered = np.sort(expected, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    apart = np.flatnonzero(first != other)
    ties = [int(i) for i in apart if margins[i] <= 2 * difference[i].max()]
    errors = [100 * float((guess != labels).mean()) for guess in (first, other)]
    return {
        "images": len(labels),
        "torch_top1": errors[0],
        "onnx_top1": errors[1],
        "difference": errors[1] - errors[0],
        "scale": scale,
        "max_logit_difference": float(difference.max()),
        "mean_logit_difference": float(difference.mean()),
        "agreement": 100 * float((first == other).mean()),
        "disagreements": [{"image": int(i), "margin": float(margins[i])} for i in apart],
        "ties": len(ties),
        "passed": bool(difference.max() <= TOLERANCE * scale and len(ties) == len(apart)),
    }
