"""What worker processes read, in a container with little shared memory, and when one of them dies."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch.utils.data import get_worker_info

import models  # noqa: F401 - registers the networks with timm
from suite.data import batches, shared
from suite.data.batches import Batches
from suite.data.sets import Dataset, load
from suite.errors import first_line
from suite.export import onnxfile
from suite.inference import deploy, parity
from suite.tables import spec

ROOT = Path(__file__).parents[2]
Suite = Callable[..., tuple[int, str, str]]
# A batch of one test image more than fits into a megabyte is still read in no time.
RECIPE = dataclasses.replace(spec.load_table(4).recipe, train_size=224, test_size=224, batch_size=2, resize="fast")


@pytest.fixture
def images(tmp_path: Path, imagenet_folder: Callable[[Path], Path]) -> Path:
    return imagenet_folder(tmp_path / "images")


@pytest.fixture
def in_a_container() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with a /dev/shm of one megabyte, of which `ballast` bytes are taken, where one may be mounted."""

    def call(*arguments: str, ballast: int = 0) -> subprocess.CompletedProcess[str]:
        mount = f"mount -t tmpfs -o size=1m tmpfs /dev/shm && head -c {ballast} /dev/zero > /dev/shm/ballast"
        command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)

    if shutil.which("unshare") is None or call("-c", "").returncode:
        pytest.skip("this user may not mount a small /dev/shm")
    return call


READ = """
import sys, torch
from pathlib import Path
from suite.data.batches import Batches
from suite.data.sets import load
from tests.data.test_shared import RECIPE
if __name__ == "__main__":
    torch.set_num_threads(1)  # as in a worker: how work is divided between threads shows in the last bit
    made = [Batches(load("imagenet", Path(sys.argv[1])), RECIPE, torch.device("cpu"), workers) for workers in (0, 2)]
    for (images, labels), (others, other_labels) in zip(*(each.train(0, 1) for each in made), strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
        assert images.stride() == others.stride()
        print(images.nbytes, others.is_shared())
"""


def test_batches_that_shared_memory_does_not_hold_are_read_without_it(
    in_a_container: Callable[..., subprocess.CompletedProcess[str]], images: Path
) -> None:
    done = in_a_container("-c", READ, str(images))
    assert (done.returncode, done.stderr) == (0, "")
    size = 2 * 3 * 224 * 224 * 4
    assert size > 1 << 20
    assert done.stdout == f"{size} False\n" * 3


@pytest.mark.full
def test_shared_memory_that_is_full_is_one_line_with_its_remedy(
    in_a_container: Callable[..., subprocess.CompletedProcess[str]], images: Path, tmp_path: Path
) -> None:
    run = ["-m", "suite", "run", "--table", "4", "--rows", "resnet34_relu_bn", "--data", f"imagenet={images}"]
    run += ["--steps", "1", "--stages", "train", "--compile", "never", "--results", str(tmp_path / "results")]
    done = in_a_container(*run, ballast=1 << 20)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [
        "error: /dev/shm: No space left on device, and processes that read images need a page of it; "
        "give the container more, as by docker run --shm-size=8g or --ipc=host"
    ]
    assert "Traceback" not in done.stderr


class Space(NamedTuple):
    free: int


@pytest.mark.parametrize("free", [0, 10**12])
def test_what_a_worker_hands_on_arrives_whatever_its_layout(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shared, "get_worker_info", lambda: object())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(free))
    values = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    for tensor in (values, values.contiguous(memory_format=torch.channels_last), values[:0], torch.tensor([1, 2])):
        sent = shared.send_tensor(tensor.clone())
        arrived = shared.receive_tensor(sent)
        assert isinstance(sent, torch.Tensor) == (free > 0) == arrived.is_shared()
        assert torch.equal(arrived, tensor)
        assert arrived.stride() == tensor.stride()


def test_shared_memory_that_another_process_takes_meanwhile_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def share_memory_(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(shared, "get_worker_info", lambda: object())
    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
    assert shared.receive_tensor(shared.send_tensor(torch.arange(5))).tolist() == [0, 1, 2, 3, 4]


def test_files_go_through_a_pipe_as_they_are(images: Path) -> None:
    split = load("imagenet", images).train
    files = [batches._Files(split)[index] for index in (2, 0)]
    raw, rest = batches._send_files(files)
    for (sent, *described), (expected, *others) in zip(batches._receive_files(raw, rest), files, strict=True):
        assert torch.equal(sent, expected)
        assert described == others


def test_an_error_of_a_worker_process_is_told_as_it_was_raised(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_image(path: Path) -> np.ndarray:
        raise MemoryError("no room")

    monkeypatch.setattr(batches, "read_image", read_image)
    with pytest.raises(MemoryError) as caught:
        list(Batches(load("imagenet", images), RECIPE, torch.device("cpu"), 2).test())
    assert str(caught.value) == "no room"


def dies(monkeypatch: pytest.MonkeyPatch, by: signal.Signals) -> None:
    """Have worker processes die as they read an image."""
    read = batches.read_image

    def read_image(path: Path) -> np.ndarray:
        if get_worker_info() is not None:
            os.kill(os.getpid(), by)
        return read(path)

    monkeypatch.setattr(batches, "read_image", read_image)


SAID = "a process that reads images died"


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGBUS])
def test_a_run_whose_worker_dies_says_so(
    by: signal.Signals, images: Path, tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies(monkeypatch, by)
    run = ["run", "--table", "4", "--rows", "resnet34_relu_bn", "--data", f"imagenet={images}", "--steps", "1"]
    code, out, err = suite(*run, "--stages", "train", "--compile", "never", "--results", str(tmp_path / "results"))
    assert code == 1
    assert f"train failed: RuntimeError: {SAID}" in out
    assert "docker run --shm-size=" in out
    assert "Traceback" not in err


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGBUS])
def test_parity_whose_worker_dies_is_one_line(
    by: signal.Signals, images: Path, tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare: Any = parity.compare
    # Making a file takes its time, and there will be nothing to compare it with.
    monkeypatch.setattr(deploy, "export", lambda *_: None)
    monkeypatch.setattr(onnxfile, "precision", lambda path: "fp32")
    monkeypatch.setattr(parity, "compare", partial(compare, load=lambda *_: SimpleNamespace(outputs=("logits",))))
    save_for_hf(timm.create_model("resnet34_relu_bn", num_classes=2), str(tmp_path / "run"), safe_serialization=True)
    dies(monkeypatch, by)
    code, out, err = suite("parity", str(tmp_path / "run"), "--data", f"imagenet={images}")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'run'}: {SAID}")
    assert err.count("error: ") == 1


def many(images: Path) -> Dataset:
    """The same images again and again, so that workers are at it when one dies."""
    found = load("imagenet", images)
    return dataclasses.replace(
        found,
        test=dataclasses.replace(
            found.train,
            images=found.train.images * 100,
            labels=np.tile(found.train.labels, 100),
            sizes=found.train.sizes * 100,
        ),
    )


@pytest.mark.parametrize("free", [0, 10**12])
def test_a_worker_killed_in_the_midst_of_a_batch_ends_the_reading_within_seconds(
    free: int, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(free))
    started: list[Any] = []
    start = torch.multiprocessing.Process.start
    monkeypatch.setattr(
        torch.multiprocessing.Process, "start", lambda process: (started.append(process), start(process))[1]
    )
    feed: Any = Batches(many(images), RECIPE, torch.device("cpu"), 2).test()
    next(feed)
    killed = time.monotonic()

    def kill() -> None:
        os.kill(started[0].pid, signal.SIGKILL)
        list(feed)

    with pytest.raises(RuntimeError) as caught:
        kill()
    feed.close()
    assert time.monotonic() - killed < 20
    assert first_line(caught.value).startswith(SAID)
    for process in started:
        process.join(20)
        assert not process.is_alive()
