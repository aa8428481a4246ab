"""suite.data.augment against scalar float64 computations of the same transforms."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from suite.data import augment

CIFAR_MEAN, CIFAR_STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
UNIT_MEAN, UNIT_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
IMAGENET = (torch.tensor(255 * UNIT_MEAN), torch.tensor(255 * UNIT_STD))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=seeded(seed), dtype=torch.uint8)


# Scalar references, channels first in float64


def hermite(values: np.ndarray, target: int) -> np.ndarray:
    """Cubic convolution with a = -0.5 as a Hermite spline whose tangents are central differences."""
    source = len(values)
    if target == 1 or source == 1:
        return np.repeat(values[-1:], target)
    extended = [2 * values[0] - values[1], *values, 2 * values[-1] - values[-2]]
    result = []
    for i in range(target):
        x = i * (source - 1) / (target - 1)
        start = min(math.floor(x + 1e-9), source - 2)
        t = x - start
        before, left, right, after = extended[start : start + 4]
        tangents = (right - before) / 2, (after - left) / 2
        value = (2 * t**3 - 3 * t**2 + 1) * left + (t**3 - 2 * t**2 + t) * tangents[0]
        result.append(value + (3 * t**2 - 2 * t**3) * right + (t**3 - t**2) * tangents[1])
    return np.array(result)


def reference_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    wide = np.array([[hermite(row, width) for row in plane] for plane in image])
    return np.array([[hermite(column, height) for column in plane.T] for plane in wide]).transpose(0, 2, 1)


def reference_colour(image: np.ndarray, name: str, alpha: float) -> np.ndarray:
    height, width = image.shape[1:]
    grey = np.array(
        [
            [sum(w * image[c, y, x] for c, w in enumerate((0.299, 0.587, 0.114))) for x in range(width)]
            for y in range(height)
        ]
    )
    other = {"brightness": 0.0, "contrast": grey.sum() / grey.size, "saturation": grey}[name]
    return np.array([alpha * plane + (1 - alpha) * other for plane in image])


def reference_lighting(image: np.ndarray, alpha: list[float]) -> np.ndarray:
    values = (0.2175, 0.0188, 0.0045)
    components = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
    shifts = [sum(row[k] * alpha[k] * values[k] for k in range(3)) for row in components]
    return np.array([plane + shift for plane, shift in zip(image, shifts, strict=True)])


def unit(image: Tensor) -> np.ndarray:
    return image.numpy().astype(np.float64).transpose(2, 0, 1) / 255


def normalized_unit(image: np.ndarray) -> np.ndarray:
    return (image - UNIT_MEAN[:, None, None]) / UNIT_STD[:, None, None]


def assert_close(actual: Tensor, expected: np.ndarray, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=atol)


# CIFAR


def test_offsets_are_uniform_over_the_81_positions() -> None:
    draws = augment.draw_crop_flip(81 * 500, seeded())
    assert draws.offset.dtype == torch.int64
    counts = Counter(map(tuple, draws.offset.tolist()))
    assert set(counts) == {(top, left) for top in range(9) for left in range(9)}
    chi_square = sum((count - 500) ** 2 / 500 for count in counts.values())
    assert 45 < chi_square < 125  # 80 degrees of freedom: p = 0.999 and 0.001


def test_half_of_the_images_are_flipped_whatever_their_offset() -> None:
    draws = augment.draw_crop_flip(40_000, seeded(1))
    assert draws.flip.dtype == torch.bool
    for chosen in (draws.flip, draws.flip[draws.offset[:, 0] < 4], draws.flip[draws.offset[:, 1] > 4]):
        assert chosen.double().mean().item() == pytest.approx(0.5, abs=0.012)


def test_padding_bounds_the_offsets() -> None:
    offset = augment.draw_crop_flip(2000, seeded(), padding=2).offset
    assert (offset.min().item(), offset.max().item()) == (0, 4)


def test_draws_depend_on_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (augment.draw_crop_flip(100, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.offset, again.offset)
    assert torch.equal(first.flip, again.flip)
    assert not torch.equal(first.offset, other.offset)
    assert torch.equal(state, torch.get_rng_state())


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    images = random_images(3, 5, 7, 3)
    result = augment.normalize(images, CIFAR_MEAN, torch.tensor(CIFAR_STD))
    expected = (images.numpy().astype(np.float64) - CIFAR_MEAN) / CIFAR_STD
    assert result.dtype == torch.float32
    assert_close(result, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_crop_flip_equals_a_loop_over_pixels() -> None:
    images = random_images(8, 32, 32, 3)
    draws = augment.draw_crop_flip(8, seeded(2))
    assert 0 < draws.flip.sum() < 8
    expected = np.zeros((8, 3, 32, 32))
    for n, (image, (top, left), flip) in enumerate(
        zip(images.tolist(), draws.offset.tolist(), draws.flip.tolist(), strict=True)
    ):
        for y in range(32):
            for x in range(32):
                row, column = y + top - 4, x + left - 4
                if 0 <= row < 32 and 0 <= column < 32:
                    pixel = image[row][31 - column if flip else column]
                    for c in range(3):
                        expected[n, c, y, x] = (pixel[c] - CIFAR_MEAN[c]) / CIFAR_STD[c]
    assert_close(augment.crop_flip(images, draws, CIFAR_MEAN, CIFAR_STD), expected, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_a_corner_in_the_padding_is_exactly_zero_after_normalising(flip: bool) -> None:
    images = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    draws = augment.CropFlip(torch.tensor([[0, 8]]), torch.tensor([flip]))
    result = augment.crop_flip(images, draws, CIFAR_MEAN, CIFAR_STD)[0]
    assert (result[:, :4] == 0).all()
    assert (result[:, :, -4:] == 0).all()
    assert (result[:, 4:, :-4] > 1).all()


def test_the_middle_offset_leaves_the_normalised_image() -> None:
    images = random_images(4, 32, 32, 3)
    draws = augment.CropFlip(torch.full((4, 2), 4), torch.zeros(4, dtype=torch.bool))
    result = augment.crop_flip(images, draws, CIFAR_MEAN, CIFAR_STD)
    assert torch.equal(result, augment.normalize(images, CIFAR_MEAN, CIFAR_STD))


def test_a_batch_equals_its_images_one_by_one() -> None:
    images, draws = random_images(6, 20, 24, 3), augment.draw_crop_flip(6, seeded(5))
    batch = augment.crop_flip(images, draws, CIFAR_MEAN, CIFAR_STD)
    for i in range(6):
        single = augment.crop_flip(images[i : i + 1], draws[i : i + 1], CIFAR_MEAN, CIFAR_STD)
        assert torch.equal(batch[i], single[0])


def test_images_may_be_a_strided_selection_of_the_data() -> None:
    images, draws = random_images(8, 32, 32, 3), augment.draw_crop_flip(8, seeded())
    every_other = torch.arange(0, 8, 2)
    result = augment.crop_flip(images[::2], draws[every_other], CIFAR_MEAN, CIFAR_STD)
    assert torch.equal(result, augment.crop_flip(images, draws, CIFAR_MEAN, CIFAR_STD)[::2])


@pytest.mark.parametrize("batch", [1, 5])
def test_cifar_results_are_channels_last(batch: int) -> None:
    images, draws = random_images(batch, 32, 32, 3), augment.draw_crop_flip(batch, seeded())
    for result in (
        augment.normalize(images, CIFAR_MEAN, CIFAR_STD),
        augment.crop_flip(images, draws, CIFAR_MEAN, CIFAR_STD),
    ):
        assert result.shape == (batch, 3, 32, 32)
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_crop_flip_reads_no_value_on_the_host() -> None:
    called: set[str] = set()

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            called.add(func.__name__)
            return func(*args, **(kwargs or {}))

    images, draws = random_images(4, 32, 32, 3), augment.draw_crop_flip(4, seeded())
    stats = torch.tensor(CIFAR_MEAN), torch.tensor(CIFAR_STD)
    with Recorder():
        augment.crop_flip(images, draws, *stats)
    assert "index_select" in called
    reading = {"item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"}
    assert not called & reading


def test_input_is_left_as_it_was() -> None:
    images = random_images(2, 32, 32, 3)
    copy = images.clone()
    augment.crop_flip(images, augment.draw_crop_flip(2, seeded()), CIFAR_MEAN, CIFAR_STD)
    augment.imagenet_train(images[0], 8, *IMAGENET, seeded())
    augment.imagenet_test(images[0], 28, *IMAGENET)
    assert torch.equal(images, copy)


@pytest.mark.parametrize("images", [torch.zeros(2, 4, 4, 3), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)])
def test_images_that_are_not_uint8_with_channels_last_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        augment.normalize(images, CIFAR_MEAN, CIFAR_STD)
    with pytest.raises(ValueError, match="expected uint8"):
        augment.imagenet_test(images[0], 2, *IMAGENET)


# Area crop


@pytest.fixture(scope="module")
def boxes() -> np.ndarray:
    generator = seeded(7)
    drawn = [augment.draw_area_crop(1000, 1000, generator) for _ in range(20_000)]
    return np.array([box for box in drawn if box is not None])


@pytest.fixture(scope="module")
def small_boxes(boxes: np.ndarray) -> np.ndarray:
    """Those below half of the image, which fit whatever their aspect: none of these draws is turned down."""
    return boxes[boxes[:, 2] * boxes[:, 3] < 0.5e6]


def test_boxes_lie_in_the_image_and_in_the_bounds_of_area_and_aspect(boxes: np.ndarray) -> None:
    top, left, height, width = boxes.T
    assert len(boxes) > 19_990
    assert min(top.min(), left.min()) == 0
    assert max((top + height).max(), (left + width).max()) == 1000
    area, aspect = width * height / 1e6, width / height
    assert area.min() > 0.0795
    assert area.max() > 0.985
    assert aspect.min() > 0.745
    assert aspect.max() < 1.342


def test_area_is_uniform(small_boxes: np.ndarray) -> None:
    area = np.sort(small_boxes[:, 2] * small_boxes[:, 3] / 1e6)
    distance = np.abs((area - 0.08) / 0.42 - np.arange(len(area)) / len(area)).max()
    assert distance < 1.63 / math.sqrt(len(area))  # Kolmogorov-Smirnov, p = 0.01


def test_sides_are_swapped_half_of_the_time(small_boxes: np.ndarray) -> None:
    # Without a swap four boxes of seven would be wide; always swapping would leave three of seven.
    height, width = small_boxes[:, 2], small_boxes[:, 3]
    wide = (width > height).mean() + (width == height).mean() / 2
    assert wide == pytest.approx(0.5, abs=0.015)


def test_aspect_is_uniform_before_the_swap(small_boxes: np.ndarray) -> None:
    aspect = small_boxes[:, 3] / small_boxes[:, 2]
    span = 4 / 3 - 3 / 4
    mean = ((16 / 9 - 9 / 16) / 2 + math.log(16 / 9)) / (2 * span)
    square = (((4 / 3) ** 3 - (3 / 4) ** 3) / 3 + (4 / 3 - 3 / 4)) / (2 * span)
    assert aspect.mean() == pytest.approx(mean, abs=0.006)
    assert aspect.var() == pytest.approx(square - mean**2, rel=0.03)


def test_every_position_of_a_box_can_be_drawn() -> None:
    generator = seeded(2)
    places = Counter()
    for _ in range(4000):
        box = augment.draw_area_crop(4, 4, generator)
        assert box is not None
        places[box] += 1
    square = [places[top, left, 3, 3] for top in range(2) for left in range(2)]
    assert min(square) > 0.8 * max(square) > 0


def test_no_box_fits_in_an_extreme_image() -> None:
    generator = seeded()
    for shape in ((1000, 1), (1, 1000)):
        assert all(augment.draw_area_crop(*shape, generator) is None for _ in range(50))


# Resizing


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((5, 9), (8, 4)),
        ((7, 7), (7, 7)),
        ((2, 3), (6, 11)),
        ((13, 2), (1, 5)),
        ((1, 4), (3, 2)),
        ((9, 31), (9, 7)),
    ],
)
def test_exact_resize_equals_a_scalar_cubic_spline(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = torch.rand(3, *source, generator=seeded(), dtype=torch.float64)
    result = augment.resize(image, *target)
    assert result.is_contiguous()
    assert_close(result, reference_resize(image.numpy(), *target), atol=1e-12)
    assert_close(augment.resize(image.float(), *target), reference_resize(image.numpy(), *target), atol=2e-6)


def test_a_linear_ramp_stays_linear_up_to_its_edges() -> None:
    ramp = torch.linspace(-1, 3, 6, dtype=torch.float64).expand(3, 4, 6)
    assert_close(augment.resize(ramp, 4, 17), np.tile(np.linspace(-1, 3, 17), (3, 4, 1)), atol=1e-12)


def test_an_edge_overshoots_without_clamping() -> None:
    step = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 4, 4)
    result = augment.resize(step, 4, 13)
    assert result.min() < -0.05
    assert result.max() > 1.05


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_a_resized_batch_equals_its_images_one_by_one(method: augment.Method) -> None:
    images = torch.rand(4, 3, 10, 14, generator=seeded())
    batch = augment.resize(images, 6, 7, method)
    assert batch.shape == (4, 3, 6, 7)
    for image, resized in zip(images, batch, strict=True):
        assert_close(augment.resize(image, 6, 7, method), resized.numpy(), atol=1e-6)


def test_fast_resize_keeps_a_constant_and_smooths_what_exact_resize_does_not() -> None:
    constant = torch.full((3, 11, 9), 0.3)
    assert_close(augment.resize(constant, 5, 6, "fast"), np.full((3, 5, 6), 0.3), atol=1e-6)
    noise = torch.rand(3, 64, 64, generator=seeded())
    assert augment.resize(noise, 16, 16, "fast").std() < 0.5 * augment.resize(noise, 16, 16).std()


def test_an_unknown_resize_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'nearest'; use 'exact' or 'fast'"):
        augment.resize(torch.zeros(3, 4, 4), 2, 2, "nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "expected"),
    [((300, 505), (256, 430)), ((505, 300), (430, 256)), ((400, 400), (256, 256)), ((20, 31), (256, 396))],
)
def test_the_longer_side_is_rounded_down(source: tuple[int, int], expected: tuple[int, int]) -> None:
    assert augment.resize_shorter(torch.zeros(3, *source), 256).shape == (3, *expected)


def test_an_image_of_the_right_size_is_not_resized() -> None:
    assert int(54 / 49 * 49) == 53  # rounding down the scaled length would lose a pixel
    for shape in ((49, 54), (54, 49)):
        image = torch.rand(3, *shape, generator=seeded())
        assert augment.resize_shorter(image, 49) is image


def test_the_centre_crop_leaves_the_larger_half_of_an_odd_rest_above_and_left() -> None:
    image = torch.arange(7 * 8).view(1, 7, 8)
    assert augment.center_crop(image, 4)[0, 0, 0].item() == 2 * 8 + 2
    with pytest.raises(ValueError, match="8x8 from an image of 7x8"):
        augment.center_crop(image, 8)


# Colour


@pytest.mark.parametrize("alpha", [0.6, 1.0, 1.37])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_jitter_equals_a_blend_of_pixels(name: str, alpha: float) -> None:
    image = torch.rand(3, 5, 6, generator=seeded(), dtype=torch.float64)
    expected = reference_colour(image.numpy(), name, alpha)
    assert_close(getattr(augment, name)(image, alpha), expected, atol=1e-12)


def test_lighting_adds_the_weighted_principal_components() -> None:
    image = torch.rand(3, 4, 4, generator=seeded(), dtype=torch.float64)
    alpha = [0.11, -0.07, 0.2]
    result = augment.lighting(image.clone(), torch.tensor(alpha, dtype=torch.float64))
    assert_close(result, reference_lighting(image.numpy(), alpha), atol=1e-12)


# The whole transforms of ImageNet


def reference_train(image: Tensor, size: int, generator: torch.Generator) -> tuple[np.ndarray, bool, list[int]]:
    """The scalar pipeline on the same draws: its result, whether it flipped, and the order of the jitter."""
    height, width, _ = image.shape
    box = augment.draw_area_crop(height, width, generator)
    if box is None:
        longer = max(height, width) * size // min(height, width)
        pixels = reference_resize(unit(image), *((longer, size) if height > width else (size, longer)))
        start = math.ceil((longer - size) / 2)
        pixels = pixels[:, start : start + size] if height > width else pixels[:, :, start : start + size]
    else:
        top, left, h, w = box
        pixels = reference_resize(unit(image)[:, top : top + h, left : left + w], size, size)
    alphas = (0.6 + 0.8 * torch.rand(3, generator=generator)).tolist()
    order = torch.randperm(3, generator=generator).tolist()
    for i in order:
        pixels = reference_colour(pixels, ("brightness", "contrast", "saturation")[i], alphas[i])
    pixels = reference_lighting(pixels, (0.1 * torch.randn(3, generator=generator)).tolist())
    pixels = normalized_unit(pixels)
    flip = torch.rand((), generator=generator).item() < 0.5
    return (pixels[:, :, ::-1] if flip else pixels), flip, order


def test_the_train_transform_equals_the_scalar_pipeline() -> None:
    image = random_images(30, 24, 3)
    seen = set()
    for seed in range(12):
        expected, flip, order = reference_train(image, 10, seeded(seed))
        assert_close(augment.imagenet_train(image, 10, *IMAGENET, seeded(seed)), expected)
        seen.add((flip, *order))
    assert {flip for flip, *_ in seen} == {False, True}
    assert len({tuple(order) for _, *order in seen}) >= 4


@pytest.mark.parametrize("shape", [(90, 3), (3, 91)])
def test_an_extreme_image_falls_back_to_its_centre(shape: tuple[int, int]) -> None:
    image = random_images(*shape, 3)
    assert augment.draw_area_crop(*shape, seeded()) is None
    expected, _, _ = reference_train(image, 6, seeded())
    assert_close(augment.imagenet_train(image, 6, *IMAGENET, seeded()), expected)


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_the_train_transform_depends_on_the_generator_alone(method: augment.Method) -> None:
    image, state = random_images(50, 60, 3), torch.get_rng_state()
    first, again, other = (augment.imagenet_train(image, 32, *IMAGENET, seeded(s), method) for s in (1, 1, 2))
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_half_of_the_train_images_are_flipped() -> None:
    ramp = torch.arange(0, 256, 16, dtype=torch.uint8)[None, :, None].expand(16, 16, 3)
    generator = seeded(3)
    rows = [augment.imagenet_train(ramp, 8, *IMAGENET, generator)[0, 0] for _ in range(400)]
    assert sum((row[-1] < row[0]).item() for row in rows) == pytest.approx(200, abs=33)


def test_a_bright_image_is_not_clamped() -> None:
    white = torch.full((16, 16, 3), 255, dtype=torch.uint8)
    no_statistics = (torch.zeros(3), torch.full((3,), 255.0))
    generator = seeded()
    brightest = max(augment.imagenet_train(white, 8, *no_statistics, generator).max().item() for _ in range(50))
    assert 1.3 < brightest < 1.5


def test_the_test_transform_is_the_centre_of_the_resized_image() -> None:
    image = random_images(47, 60, 3)
    expected = normalized_unit(reference_resize(unit(image), 32, 40))[:, 2:30, 6:34]
    result = augment.imagenet_test(image, 28, *IMAGENET)
    assert result.is_contiguous()
    assert_close(result, expected)


def test_ten_crops_are_the_centre_and_corners_of_the_image_and_of_its_mirror() -> None:
    image = random_images(256, 301, 3)  # its shorter side is 256 already
    crops = augment.imagenet_ten_crop(image, 224, *IMAGENET)
    assert crops.shape == (10, 3, 224, 224)
    whole = normalized_unit(unit(image))
    for half, view in ((crops[:5], whole), (crops[5:], whole[:, :, ::-1])):
        for crop, (top, left) in zip(half, ((16, 39), (0, 0), (0, 77), (32, 0), (32, 77)), strict=True):
            assert_close(crop, view[:, top : top + 224, left : left + 224])
    assert torch.equal(crops[0], augment.imagenet_test(image, 224, *IMAGENET))


def test_ten_crops_come_from_the_resized_image() -> None:
    image = random_images(50, 41, 3)
    crops = augment.imagenet_ten_crop(image, 28, *IMAGENET)
    whole = normalized_unit(reference_resize(unit(image), 39, 32))
    assert_close(crops[1], whole[:, :28, :28])
    assert_close(crops[4], whole[:, -28:, -28:])
    assert_close(crops[7], whole[:, :28, 27::-1])  # top right of the mirror image
