"""Whether a GPU multiplies float32 in TF32, which keeps ten bits of a fraction."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_tf32() -> Iterator[None]:
    """Have torch multiply and convolve float32 in float32; its own default convolves in
    TF32."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    try:
        matmul.allow_tf32 = convolution.allow_tf32 = False
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
