"""Training against a plain PyTorch loop, and image input against torchvision's, as ratios of interleaved medians.

The plain loop is what a tutorial would write: NCHW, float32, a DataLoader with two workers, torchvision's transforms.
"""

import dataclasses
import functools
import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import datasets
from torchvision.transforms import v2 as transforms

import models
from suite.data import batches
from suite.data import sets as data
from suite.tables import spec
from suite.training import train
from suite.training.compiling import try_compile
from suite.training.stacked import Stack
from suite.training.step import STEPS_BEFORE_CAPTURE, Engine, Precision, Step
from suite.training.testing import QuickForward, evaluate

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
ROUNDS, STEPS, WARM_UP = 5, 4, 2
GPU_STEPS = 50
# Epochs of 24 images after which the weights of interpolation for most sizes of crop are there, as in a real epoch they
# are after the first hundredth.
WARM_EPOCHS = 40


class PlainImages(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory behind torchvision's transforms, one at a time."""

    def __init__(self, split: data.Split) -> None:
        self.split = split
        self.transform = transforms.Compose(
            [
                transforms.ToImage(),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize([m / 255 for m in MEAN], [s / 255 for s in STD]),
                transforms.RandomHorizontalFlip(),
                transforms.RandomCrop(32, padding=4),
            ]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.split.images[index]), int(self.split.labels[index])


def random_images(count: int) -> data.Dataset:
    random = np.random.default_rng(0)
    split = data.Split(
        random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, count, dtype=np.int64)
    )
    return data.Dataset("random", tuple("abcdefghij"), split, split, MEAN, STD, {})


def plain_steps(model_name: str, source: data.Dataset) -> Iterator[float]:
    """Seconds of each step of the plain loop, the wait for its data among them."""
    model = timm.create_model(model_name, num_classes=10).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = PlainImages(source.train)
    sampler = RandomSampler(images, num_samples=10**6, replacement=True)
    loader = iter(DataLoader(images, 128, sampler=sampler, num_workers=2))
    while True:
        start = perf_counter()
        x, y = next(loader)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield perf_counter() - start


def our_steps(
    model_name: str, source: data.Dataset, out: Path, count: int, precision: Precision = "auto"
) -> list[float]:
    """Seconds of each step of the suite's own training."""
    recipe = dataclasses.replace(spec.load_table(2).recipe, max_steps=count, max_test_images=1, learning_rate=0.01)
    ends: list[float] = []
    train.train(
        train.Job(
            model_name,
            batches.Batches(source, recipe, torch.device("cpu")),
            0,
            out,
            on_step=lambda done, total, note: ends.append(perf_counter()),
        ),
        Engine(precision, "never"),
    )
    return [b - a for a, b in itertools.pairwise(ends)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "precision" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full", default=False)
        metafunc.parametrize("precision", ["auto", "float32"] if full else ["auto"])


@pytest.mark.parametrize("model", ["resnet20_relu_bn", pytest.param("resnet110_crelu_bn", marks=pytest.mark.more)])
def test_a_training_step_is_faster_than_that_of_a_plain_loop(
    model: str, precision: Precision, tmp_path: Path, ratio: Callable[..., None]
) -> None:
    source = random_images(128 * 20)
    plain = plain_steps(model, source)
    for _ in range(WARM_UP):
        next(plain)
    pairs = []
    for _ in range(ROUNDS):
        ours = statistics.median(our_steps(model, source, tmp_path, STEPS + WARM_UP, precision)[WARM_UP - 1 :])
        theirs = statistics.median(itertools.islice(plain, STEPS))
        pairs.append((theirs, ours))
    ratio(f"{model}, batch 128, precision {precision}: images/s over the plain loop's", pairs, least=1.4)


GPU = torch.device("cuda")
ON_A_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: what a network trains at on one is not known"
)


def plain_gpu_loop(model_name: str, size: int, batch_size: int) -> float:
    """Images/s of the plain loop on a GPU: NCHW, bfloat16 autocast, launch by launch, from memory."""
    model = timm.create_model(model_name, num_classes=10).to(GPU).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    x, y = torch.randn(batch_size, 3, size, size, device=GPU), torch.randint(10, (batch_size,), device=GPU)
    for number in range(GPU_STEPS + 10):
        if number == 10:
            torch.cuda.synchronize()
            start = perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    return GPU_STEPS * batch_size / (perf_counter() - start)


def gpu_network(model_name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = timm.create_model(model_name, num_classes=10).train()
    return network


def gpu_recipe(size: int, batch_size: int) -> spec.Recipe:
    recipe = spec.load_table(2 if size == 32 else 4).recipe
    return dataclasses.replace(recipe, learning_rate=0.01, batch_size=batch_size)


def gpu_batch(size: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(batch_size, 3, size, size, device=GPU).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(10, (batch_size,), device=GPU)


def gpu_step(model_name: str, size: int, batch_size: int, packed: int = 1) -> Callable[[], object]:
    """The suite's own step, as a CUDA graph: of one network, or of so many seeds as `--pack` trains them, as one."""
    recipe, batch = gpu_recipe(size, batch_size), gpu_batch(size, batch_size)
    own = Engine().wants_kernels_on(GPU, recipe)

    def step_of(model: nn.Module, seeds: int = 1) -> Step:
        return Step(model, recipe, GPU, True, own_kernels=own, seeds=seeds)

    stream = torch.cuda.Stream(GPU)
    stream.wait_stream(torch.cuda.current_stream(GPU))
    with torch.cuda.stream(stream):
        if packed == 1:
            step: Callable[[], object] = functools.partial(step_of(gpu_network(model_name, 0)), *batch)
        else:
            sums = {"loss_sum": torch.zeros((), device=GPU), "hits": torch.zeros((), device=GPU)}
            weights = [gpu_network(model_name, seed).to(GPU).state_dict() for seed in range(packed)]
            states = [{f"model.{name}": value for name, value in each.items()} | sums for each in weights]
            stack = Stack(gpu_network(model_name, 0), step_of, states, [stream])
            step = functools.partial(stack, [batch] * packed)

    def run() -> None:
        with torch.cuda.stream(stream):
            step()

    for _ in range(STEPS_BEFORE_CAPTURE + 2):
        run()
    torch.cuda.synchronize()
    return run


@ON_A_GPU
@pytest.mark.parametrize(
    ("model", "size", "packed", "least"),
    [
        ("resnet110_relu_bn", 32, 1, 30_000),
        ("resnet110_relu_bn", 32, 5, 60_000),
        ("resnet110_crelu_bn", 32, 1, None),
        ("resnet110_crelu_bn", 32, 5, 40_000),
        ("resnet50_relu_bn", 224, 1, 4_500),
    ],
)
def test_training_reaches_its_images_a_second_on_a_gpu(
    model: str, size: int, packed: int, least: int | None, bar: Callable[..., None]
) -> None:
    """From memory, without torch.compile; `packed` seeds trained as one, over one network's plain loop."""
    plain = plain_gpu_loop(model, size, 128)
    step = gpu_step(model, size, 128, packed)
    rates = []
    for _ in range(ROUNDS):
        start = perf_counter()
        for _ in range(GPU_STEPS):
            step()
        torch.cuda.synchronize()
        rates.append(GPU_STEPS * packed * 128 / (perf_counter() - start))
    rate = statistics.median(rates)
    words = f"{rate:,.0f} images/s, {rate / plain:.2f} times the plain loop's {plain:,.0f}"
    words += f"; bar for an H100 or H200: {least:,}" if least else ""
    name = f"{model}, batch 128, bfloat16, {torch.cuda.get_device_name()}, {packed} at a time"
    bar(name, words, least is None or rate >= least, images_per_second=rate, plain=plain)


@ON_A_GPU
@pytest.mark.parametrize("model", ["resnet110_relu_bn", "resnet110_crelu_bn"])
def test_torch_compile_takes_at_most_30_seconds_on_a_gpu(model: str, bar: Callable[..., None]) -> None:
    """As a long training measures it: without and with, each with our own kernels where they are used."""
    recipe = gpu_recipe(32, 128)
    own = Engine().wants_kernels_on(GPU, recipe)
    found = try_compile(gpu_network(model, 0), recipe, True, gpu_batch(32, 128), 10**9, own)
    assert not found.compile_error, found.compile_error
    plain, compiled, seconds = found.step_seconds, found.compiled_step_seconds, found.compile_seconds
    assert isinstance(plain, float)
    assert isinstance(compiled, float)
    assert isinstance(seconds, float)
    words = f"{seconds:.0f} s to compile, {128 / compiled:,.0f} images/s where it is {128 / plain:,.0f} without"
    words += "; bar for an H100 or H200: at most 30 s"
    bar(f"{model}, batch 128, bfloat16: torch.compile of its blocks", words, seconds <= 30, seconds=seconds)


@ON_A_GPU
def test_a_test_between_epochs_stays_within_its_time_on_a_gpu(bar: Callable[..., None]) -> None:
    """Of 10,000 images, as CUDA graphs in bfloat16, which have been captured."""
    recipe = gpu_recipe(32, 128)
    feed = batches.Batches(random_images(10_000), recipe, GPU)
    one = Step(
        gpu_network("resnet110_relu_bn", 0), recipe, GPU, True, own_kernels=Engine().wants_kernels_on(GPU, recipe)
    )
    forward, times = QuickForward(one.model, True), []
    for _ in range(ROUNDS + 2):  # the first pass is launch by launch, the second captures
        torch.cuda.synchronize()
        start = perf_counter()
        evaluate(one.model, feed.test(), forward=forward)
        times.append(perf_counter() - start)
    seconds = statistics.median(times[2:])
    words = f"{seconds:.3f} s; bar for an H100 or H200: at most 0.15 s"
    bar("resnet110_relu_bn: a test of 10,000 images between epochs", words, seconds <= 0.15, seconds=seconds)


# What a kernel's name says that it does; the rest is additions, casts, the loss, the optimiser and copies. "add_parts"
# is small, and serves norms too.
KERNELS = {
    "convolution": ("conv", "weight_gradient", "add_parts", "gemm", "wgrad", "dgrad", "fprop", "implicit"),
    "norm": (
        "norm",
        "bn_",
        "filter_gradients",
        "part_statistics",
        "merge_statistics",
        "part_gradients",
        "input_gradient",
    ),
}


@ON_A_GPU
@pytest.mark.parametrize(
    ("model", "size"), [("resnet110_relu_bn", 32), ("resnet110_crelu_bn", 32), ("resnet50_relu_bn", 224)]
)
def test_kernels_of_a_step_are_told_with_their_shares_on_a_gpu(model: str, size: int, bar: Callable[..., None]) -> None:
    """Of a step's time in kernels, by torch's profiler; our norm's kernels add and rectify too."""
    run = gpu_step(model, size, 128)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(STEPS):
            run()
        torch.cuda.synchronize()
    seconds: dict[str, float] = dict.fromkeys((*KERNELS, "rest"), 0.0)
    for event in profile.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in KERNELS.items() if any(part in name for part in parts)), "rest")
        seconds[kind] += event.self_device_time_total / 1e6 / STEPS
    total = sum(seconds.values())
    words = ", ".join(f"{kind} {value / total:.0%}" for kind, value in seconds.items())
    bar(f"{model}, batch 128: {1000 * total:.2f} ms in kernels a step", words, True, seconds=seconds)


PEAK = """
import dataclasses, sys, tempfile
from pathlib import Path
import numpy, torch
from suite import env
from suite.data import batches, sets as data
from suite.tables import spec
from suite.training import train
from suite.training.step import Engine

model, precision = sys.argv[1:]
random = numpy.random.default_rng(0)
splits = [
    data.Split(random.integers(0, 256, (n, 32, 32, 3), dtype=numpy.uint8), random.integers(0, 10, n))
    for n in (50_000, 10_000)
]
source = data.Dataset("random", tuple("abcdefghij"), *splits, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7), {})
recipe = dataclasses.replace(spec.load_table(2).recipe, max_steps=4, max_test_images=500, learning_rate=0.01)
with tempfile.TemporaryDirectory() as out:
    job = train.Job(model, batches.Batches(source, recipe, torch.device("cpu")), 0, Path(out))
    train.train(job, Engine(precision, "never"))
print(env.peak_memory())
"""


@pytest.mark.parametrize(
    "model",
    [
        "resnet110_crelu_bn",
        pytest.param("resnet110_w32_relu_bn", marks=pytest.mark.more),
        pytest.param("resnet110_w24_crelu_bn", marks=pytest.mark.more),
    ],
)
def test_training_stays_within_2_gb(model: str, precision: Precision, ratio: Callable[..., None]) -> None:
    """Of a process of its own that trains on as many images as CIFAR has, in GB."""
    done = subprocess.run([sys.executable, "-c", PEAK, model, precision], capture_output=True, text=True, check=True)
    ratio(f"{model}, batch 128, precision {precision}: peak memory in GB", [(int(done.stdout), 1e9)], most=2)


def test_normprops_filter_norms_take_at_most_5_percent_of_a_step(tmp_path: Path, ratio: Callable[..., None]) -> None:
    """What NormProp2 adds to a step of a plain network: the norms of its filters, and their gradients."""
    convs = [m for m in timm.create_model("resnet110_relu_np2").modules() if isinstance(m, models.NormPropConv2d)]
    times = []
    for _ in range(ROUNDS * STEPS):
        start = perf_counter()
        sum(conv.normalized_weight().sum() for conv in convs).backward()
        times.append(perf_counter() - start)
    step = statistics.median(our_steps("resnet110_relu_np2", random_images(128 * 20), tmp_path, STEPS + 1)[1:])
    name = "resnet110_relu_np2, batch 128: share of filter norms in a step"
    ratio(name, [(statistics.median(times), step)], most=0.05)


def test_input_takes_at_most_3_percent_of_a_step(tmp_path: Path, ratio: Callable[..., None]) -> None:
    source = random_images(128 * 40)
    feed = batches.Batches(source, spec.load_table(2).recipe, torch.device("cpu")).train(0, 1)
    next(feed)
    times = []
    for _ in range(30):
        start = perf_counter()
        next(feed)
        times.append(perf_counter() - start)
    step = statistics.median(our_steps("resnet20_relu_bn", source, tmp_path, 8)[1:])
    ratio("resnet20_relu_bn, batch 128: share of input in a step", [(statistics.median(times), step)], most=0.03)


def test_imagenet_input_is_faster_than_that_of_torchvision(tmp_path: Path, ratio: Callable[..., None]) -> None:
    """Images/s of one core from 500x375 JPEG files to 224x224 training tensors."""
    random = np.random.default_rng(0)
    (tmp_path / "class").mkdir()
    for index in range(24):
        # Smooth noise, since the size of a JPEG file, and with it the decoder's work, depends on detail.
        small = Image.fromarray(random.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(tmp_path / "class" / f"{index}.jpg", quality=90)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = datasets.ImageFolder(
        str(tmp_path),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(224, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.ColorJitter(0.4, 0.4, 0.4),
                transforms.ToImage(),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize(mean, std),
                transforms.RandomHorizontalFlip(),
            ]
        ),
    )
    paths = tuple(sorted((tmp_path / "class").iterdir()))
    split = data.Split(paths, np.zeros(len(paths), np.int64))
    scaled = [tuple(255 * value for value in values) for values in (mean, std)]
    source = data.Dataset("files", ("class",), split, split, scaled[0], scaled[1], {})  # type: ignore[arg-type]
    recipe = dataclasses.replace(spec.load_table(4).recipe, batch_size=len(paths))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for epoch in range(WARM_EPOCHS):
        list(batches.Batches(source, recipe, torch.device("cpu")).train(1, epoch))
    pairs = []
    for epoch in range(ROUNDS + 1):
        start = perf_counter()
        for index in range(len(paths)):
            plain[index]
        middle = perf_counter()
        list(batches.Batches(source, recipe, torch.device("cpu")).train(0, epoch))
        pairs.append((middle - start, perf_counter() - middle))
    torch.set_num_threads(threads)
    ratio("ImageNet input, one core: images/s over torchvision's", pairs[1:], least=1.3)
