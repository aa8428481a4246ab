"""Train and test transforms of the two recipes: uint8 pixels in, float32 images out.

The paper's Experiments section trains with the settings of fb.resnet.torch, so what
each transform does, and in which order, is that of its datasets/transforms.lua,
datasets/cifar10.lua and datasets/imagenet.lua. Nothing here keeps a random state: every
draw comes from the `torch.Generator` passed in. Means and standard deviations are on
the 0-255 scale throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Stats = Tensor | Sequence[float]
Method = Literal["exact", "fast"]
Box = tuple[int, int, int, int]

GREY = (0.299, 0.587, 0.114)
JITTER = 0.4
LIGHTING = 0.1
# Principal components of ImageNet's RGB values, a column each (fb.resnet.torch datasets/imagenet.lua).
EIGVAL = (0.2175, 0.0188, 0.0045)
EIGVEC = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def _require_uint8(images: Tensor, dims: int) -> None:
    if images.dtype != torch.uint8 or images.dim() != dims or images.shape[-1] != 3:
        layout = "(H, W, 3)" if dims == 3 else "(B, H, W, 3)"
        raise ValueError(f"expected uint8 {layout}, got {images.dtype} {tuple(images.shape)}")


# CIFAR: a batch at a time


@dataclass(frozen=True)
class CropFlip:
    """What `crop_flip` does to each of N images: `offset` (N, 2) int64, the top and
    left of the crop within the padded image, and `flip` (N,) bool."""

    offset: Tensor
    flip: Tensor

    def __getitem__(self, index: Tensor | slice) -> "CropFlip":
        """The draws of a part of the images, such as one batch of an epoch."""
        return CropFlip(self.offset[index], self.flip[index])

    def to(self, device: torch.device | str) -> "CropFlip":
        """The same draws on another device."""
        return CropFlip(self.offset.to(device), self.flip.to(device))


def draw_crop_flip(n: int, generator: torch.Generator, padding: int = 4) -> CropFlip:
    """Draw uniform offsets in [0, 2 * padding] and flips at 0.5 for n images.

    The draws lie on the generator's device. Drawing a whole epoch at once, from a
    generator seeded by seed and epoch, lets a killed run take up any batch again.
    """
    device = generator.device
    offset = torch.randint(2 * padding + 1, (n, 2), generator=generator, device=device)
    flip = torch.randint(2, (n,), generator=generator, device=device).bool()
    return CropFlip(offset, flip)


def _stats(values: Stats, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=like.device)


def _normalized(images: Tensor, mean: Stats, std: Stats) -> Tensor:
    """(images - mean) / std, float32 (B, H, W, 3)."""
    _require_uint8(images, 4)
    batch, height, width, channels = images.shape
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    # The statistics are repeated along a row, since the CPU does not vectorise over a last axis of three.
    rows = pixels.view(batch, height, width * channels)
    rows.sub_(_stats(mean, images).repeat(width)).div_(_stats(std, images).repeat(width))
    return pixels


def normalize(images: Tensor, mean: Stats, std: Stats) -> Tensor:
    """The test transform of CIFAR, and what its train transform starts with.

    images: uint8 (B, H, W, 3) on any device. mean, std: three values each, on the 0-255
    scale; for a CUDA graph, float32 tensors on the device. Returns float32 (B, 3, H,
    W), channels_last. Raises ValueError for another dtype or shape.
    """
    return _normalized(images, mean, std).permute(0, 3, 1, 2)


def crop_flip(images: Tensor, draws: CropFlip, mean: Stats, std: Stats, padding: int = 4) -> Tensor:
    """The train transform of CIFAR: normalise, flip, pad with zeros, crop as before.

    images, mean, std, result and errors: as in `normalize`. draws: those of the same B
    images, on their device, drawn with the same padding. The padding comes after
    normalising, so it has the mean colour (fb.resnet.torch datasets/cifar10.lua). No
    shape depends on a value and the host reads nothing back.
    """
    batch, height, width, channels = images.shape
    padded_height, padded_width = height + 2 * padding, width + 2 * padding
    # F.pad names the last axis first: channels, width, height.
    padded = F.pad(_normalized(images, mean, std), (0, 0) + (padding,) * 4)
    image = torch.arange(batch, device=images.device)[:, None]
    row = draws.offset[:, :1] + torch.arange(height, device=images.device)
    column = draws.offset[:, 1:] + torch.arange(width, device=images.device)
    # The padding is symmetric, so flipping the padded image equals padding the flipped one.
    column = torch.where(draws.flip[:, None], padded_width - 1 - column, column)
    pixel = (image * padded_height + row)[:, :, None] * padded_width + column[:, None, :]
    cropped = padded.view(-1, channels).index_select(0, pixel.flatten())
    return cropped.view(batch, height, width, channels).permute(0, 3, 1, 2)


# ImageNet: an image at a time, for their sizes differ


def draw_area_crop(height: int, width: int, generator: torch.Generator) -> Box | None:
    """Draw a box (top, left, height, width) of an image of height x width pixels.

    Its area is U(0.08, 1) of the image and its aspect U(3/4, 4/3), with the sides
    swapped half of the time. None if none of ten tries fits in the image
    (fb.resnet.torch datasets/transforms.lua, RandomSizedCrop).
    """
    # All tries at once, so that an image takes as many draws from the generator whatever comes of them.
    tries = torch.rand(10, 5, generator=generator, dtype=torch.float64, device=generator.device).tolist()
    for area, aspect, swap, vertical, horizontal in tries:
        target = (0.08 + 0.92 * area) * height * width
        ratio = 3 / 4 + (4 / 3 - 3 / 4) * aspect
        w, h = int((target * ratio) ** 0.5 + 0.5), int((target / ratio) ** 0.5 + 0.5)
        if swap < 0.5:
            w, h = h, w
        if 0 < h <= height and 0 < w <= width:
            return int(vertical * (height - h + 1)), int(horizontal * (width - w + 1)), h, w
    return None


@lru_cache(maxsize=4096)  # as many sizes as crops of photographs have; 10 KB each
def _taps(source: int, target: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The interpolation matrix (target, source) by its four entries a row: their
    columns and their values.

    Cubic convolution, a = -0.5, corners aligned, not widened when shrinking; beyond the
    edges the line through the last two samples goes on (torch/image generic/image.c,
    scaleCubic_rowcol).
    """
    if source == 1:
        return torch.zeros(target, 1, dtype=torch.int64), torch.ones(target, 1, dtype=dtype)
    # Sample i lies at i * (source - 1) / (target - 1), kept in integers; a lone one takes the last value.
    position = torch.arange(target) * (source - 1) if target > 1 else torch.tensor([source - 1])
    steps = max(target - 1, 1)
    # The last sample starts one tap early with a fraction of 1, which copies the last value.
    start = (position // steps).clamp(max=source - 2)
    t = (position - start * steps).double() / steps
    weight = torch.stack(
        [
            ((-0.5 * t + 1) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1,
            ((-1.5 * t + 2) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ],
        dim=1,
    )
    index = start[:, None] + torch.arange(-1, 3)
    # An outer neighbour that is missing is 2 * near - far of the two inner ones: its weight goes to those.
    for outside, near, far, missing in ((0, 1, 2, index[:, 0] < 0), (3, 2, 1, index[:, 3] >= source)):
        spare = weight[:, outside] * missing
        weight[:, near] += 2 * spare
        weight[:, far] -= spare
        weight[:, outside] -= spare
    return index.clamp(0, source - 1), weight.to(dtype)


def _interpolate_rows(rows: Tensor, target: int) -> Tensor:
    """The product of an interpolation matrix (target, source) with rows (source, n)."""
    index, weight = _taps(rows.shape[0], target, rows.dtype)
    # A weighted sum of a few rows is an embedding bag: several times faster here than the dense product.
    index, weight = index.to(rows.device), weight.to(rows.device)
    return F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")


def _resize_exact(image: Tensor, height: int, width: int) -> Tensor:
    # Channels go last, as decoded pixels lie in memory: the image is a matrix of its rows as it is.
    pixels = image.flatten(0, -3).permute(1, 2, 0)
    source_height, source_width, channels = pixels.shape
    rows = _interpolate_rows(pixels.reshape(source_height, -1), height)
    columns = rows.view(height, source_width, channels).transpose(0, 1).reshape(source_width, -1)
    resized = _interpolate_rows(columns, width).view(width, height, channels)
    return resized.permute(2, 1, 0).contiguous().view(*image.shape[:-2], height, width)


def _resize_fast(image: Tensor, height: int, width: int) -> Tensor:
    batch = image.view(-1, *image.shape[-3:])
    resized = F.interpolate(batch, (height, width), mode="bicubic", align_corners=False, antialias=True)
    return resized.view(*image.shape[:-2], height, width).contiguous()


def resize(image: Tensor, height: int, width: int, method: Method = "exact") -> Tensor:
    """Resize float (3, H, W) or (B, 3, H, W) to height x width; overshoots are not
    clamped.

    "exact" is the bicubic of fb.resnet.torch (image.scale of torch/image): a = -0.5,
    corners aligned, no antialiasing. "fast" is torch's own, with antialiasing and
    without aligned corners: a deviation that the caller records. Raises ValueError for
    another method.
    """
    if method == "exact":
        return _resize_exact(image, height, width)
    if method == "fast":
        return _resize_fast(image, height, width)
    raise ValueError(f"unknown resize method {method!r}; use 'exact' or 'fast'")


def resize_shorter(image: Tensor, size: int, method: Method = "exact") -> Tensor:
    """Resize float (..., 3, H, W) so that the shorter side has `size` pixels; the
    longer is rounded down.

    An image that has that size already is returned as it is (fb.resnet.torch
    datasets/transforms.lua, Scale, where the allocation of the result truncates a
    fractional side).
    """
    height, width = image.shape[-2:]
    if min(height, width) == size:
        return image
    if width < height:
        return resize(image, int(height / width * size), size, method)
    return resize(image, size, int(width / height * size), method)


def center_crop(image: Tensor, size: int) -> Tensor:
    """The central size x size view of (..., H, W); an odd remainder is larger at the
    top and left, as in fb.resnet.torch. Raises ValueError if the image is smaller."""
    height, width = image.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"cannot crop {size}x{size} from an image of {height}x{width}")
    return _crop(image, (height - size + 1) // 2, (width - size + 1) // 2, size)


def _crop(image: Tensor, top: int, left: int, size: int) -> Tensor:
    return image[..., top : top + size, left : left + size]


def _grey(image: Tensor) -> Tensor:
    return torch.einsum("c,chw->hw", image.new_tensor(GREY), image)


def brightness(image: Tensor, alpha: float) -> Tensor:
    """Blend float (3, H, W) with black: alpha * image. Like the other three, in place,
    and without clamping."""
    return image.mul_(alpha)


def contrast(image: Tensor, alpha: float) -> Tensor:
    """Blend float (3, H, W) with its grey mean: alpha * image + (1 - alpha) * mean."""
    mean = _grey(image).mean()
    return image.mul_(alpha).add_(mean, alpha=1 - alpha)


def saturation(image: Tensor, alpha: float) -> Tensor:
    """Blend float (3, H, W) with its grey image: alpha * image + (1 - alpha) * grey."""
    grey = _grey(image)
    return image.mul_(alpha).add_(grey, alpha=1 - alpha)


def lighting(image: Tensor, alpha: Tensor) -> Tensor:
    """Add alpha (3,) times ImageNet's principal components to float (3, H, W)."""
    shift = image.new_tensor(EIGVEC) @ (alpha.to(image) * image.new_tensor(EIGVAL))
    return image.add_(shift[:, None, None])


def _jitter(image: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation in random order, alpha = 1 + U(-0.4, 0.4)."""
    steps = (brightness, contrast, saturation)
    device = generator.device
    alphas = (1 + JITTER * (2 * torch.rand(len(steps), generator=generator, device=device) - 1)).tolist()
    for i in torch.randperm(len(steps), generator=generator, device=device).tolist():
        image = steps[i](image, alphas[i])
    return image


def _unit(image: Tensor) -> Tensor:
    """uint8 (H, W, 3) as float32 (3, H, W) in [0, 1], its channels still last in
    memory."""
    _require_uint8(image, 3)
    return image.permute(2, 0, 1).to(torch.float32).div_(255)


def _normalize_unit(image: Tensor, mean: Stats, std: Stats) -> Tensor:
    """Normalise float (3, H, W) on [0, 1], in place, by statistics on 0-255."""
    mean, std = (_stats(values, image)[:, None, None] / 255 for values in (mean, std))
    return image.sub_(mean).div_(std)


def imagenet_train(
    image: Tensor, size: int, mean: Stats, std: Stats, generator: torch.Generator, method: Method = "exact"
) -> Tensor:
    """The train transform of ImageNet: random area crop, colour jitter, lighting,
    normalise, flip.

    image: uint8 (H, W, 3). mean, std: three values each, on the 0-255 scale. Returns
    float32 (3, size, size). Raises ValueError for another dtype or shape. The order is
    that of fb.resnet.torch datasets/imagenet.lua.
    """
    box = draw_area_crop(image.shape[0], image.shape[1], generator)
    if box is None:
        pixels = center_crop(resize_shorter(_unit(image), size, method), size)
    else:
        top, left, height, width = box
        pixels = resize(_unit(image[top : top + height, left : left + width]), size, size, method)
    pixels = _jitter(pixels, generator)
    pixels = lighting(pixels, LIGHTING * torch.randn(3, generator=generator, device=generator.device))
    pixels = _normalize_unit(pixels, mean, std)
    flip = torch.rand((), generator=generator, device=generator.device).item() < 0.5
    return pixels.flip(-1) if flip else pixels


def _test_image(image: Tensor, size: int, mean: Stats, std: Stats, method: Method) -> Tensor:
    """The normalised whole image, its shorter side 256/224 of the crop's."""
    return _normalize_unit(resize_shorter(_unit(image), round(size * 256 / 224), method), mean, std)


def imagenet_test(image: Tensor, size: int, mean: Stats, std: Stats, method: Method = "exact") -> Tensor:
    """The test transform of ImageNet: shorter side to size * 256 / 224, centre crop,
    normalise.

    Arguments, result and errors as in `imagenet_train`.
    """
    return center_crop(_test_image(image, size, mean, std, method), size).contiguous()


def imagenet_ten_crop(image: Tensor, size: int, mean: Stats, std: Stats, method: Method = "exact") -> Tensor:
    """Ten crops of the resized image that `imagenet_test` takes the centre of; their
    logits are to be summed.

    Returns float32 (10, 3, size, size): centre, top left, top right, bottom left and
    bottom right of the image, then the same places of its mirror image (fb.resnet.torch
    datasets/transforms.lua, TenCrop). Arguments and errors as in `imagenet_train`.
    """
    whole = _test_image(image, size, mean, std, method)
    bottom, right = whole.shape[-2] - size, whole.shape[-1] - size
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right))
    return torch.stack(
        [
            crop
            for view in (whole, whole.flip(-1))
            for crop in (center_crop(view, size), *(_crop(view, top, left, size) for top, left in corners))
        ]
    )
