"""Readers of what strangers may have written, on thousands of made-up files: nothing but what they promise is raised.

200 cases each; with `--nightly` 10,000.
"""

import contextlib
import json
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.data import cifar
from suite.errors import InputError
from suite.grid import status
from suite.report import figures, page
from suite.report import tables as report
from suite.report.formats import FORMATS
from suite.report.render import render
from suite.results import compact
from suite.results.compare import compare
from suite.results.notes import Failure, read_failure
from suite.results.record import AnyRecord, read_record
from suite.results.store import Store
from suite.results.verify import verify
from suite.tables.spec import load_table, parse_table
from suite.training import checkpoint

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "..", "/", "\x1b[2J", "a" * 1000, "=1+1", "\u202e", "__class__"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@contextlib.contextmanager
def input_errors_naming(file: object) -> Iterator[None]:
    """Let no error through but an InputError of one line that names the file."""
    said = str(file)
    try:
        yield
    except InputError as error:
        said = str(error)
    assert str(file) in said
    assert "\n" not in said


@st.composite
def mutilated(draw: st.DrawFn, good: bytes) -> bytes:
    """A file that was cut, or of which some bytes were changed, repeated or left out."""
    raw = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(raw) - 1, 0)))
        other = draw(st.integers(0, len(raw)))
        kind = draw(st.sampled_from(["cut", "byte", "insert", "repeat", "leave out"]))
        if kind == "cut":
            del raw[place:]
        elif kind == "byte" and raw:
            raw[place] = draw(st.integers(0, 255))
        elif kind == "insert":
            raw[place:place] = draw(st.binary(max_size=16))
        elif kind == "repeat":
            raw[place:place] = raw[place:other][:4096]
        else:
            del raw[place:other]
    return bytes(raw)


def table_text() -> str:
    from importlib import resources

    return (resources.files("suite") / "tables" / "table2.toml").read_text("utf-8")


LINES = table_text().splitlines()


@given(data=st.data())
def test_no_table_leaves_the_loader_but_by_an_input_error(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        text = data.draw(mutilated(table_text().encode())).decode("utf-8", "replace")
    else:
        key = data.draw(
            st.sampled_from([line.partition("=")[0] for line in LINES if "=" in line] + ["[[rows]]\n", "x"])
        )
        values = [
            "1" * 5000,
            "1" * 400,
            f"0x{'f' * 6000}",
            "1e400",
            "nan",
            "[" * 2000,
            "{a={",
            "1979-05-27",
            "'''",
            '"\\u0000"',
            "-1",
            "true",
            "''",
        ]
        extra = f"{key}={data.draw(st.sampled_from(values))}"
        place = data.draw(st.integers(0, len(LINES)))
        text = "\n".join([*LINES[:place], extra, *LINES[place + data.draw(st.integers(0, 1)) :]])
    with input_errors_naming("x.toml"):
        parse_table(text, "x.toml")


def test_deep_or_huge_toml_is_an_input_error() -> None:
    for text in ("a=" + "[" * 100_000, "a=" + "{a=" * 10_000, "a=" + "1" * 10_000, "a=1\na=2", "a='\x1b'", "\ufffe"):
        with pytest.raises(InputError, match=r"x\.toml"):
            parse_table(text, "x.toml")


FILES = {"weights": {"path": "artifacts/KEY/weights", "sha256": "0" * 64, "bytes": 3}}


@given(data=st.data())
def test_no_record_leaves_its_readers_but_by_an_input_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, record_text: dict[str, bytes]
) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed"
    stage = data.draw(st.sampled_from(sorted(record_text)))
    path = root / "records" / stage / "resnet110_relu_bn-0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = record_text[stage]
    if data.draw(st.booleans()):
        raw = data.draw(mutilated(raw))
    else:
        content = json.loads(raw) | {"digest": ""}
        where: Any = content
        while isinstance(where, dict | list) and where:
            names = sorted(where) if isinstance(where, dict) else list(range(len(where)))
            name = data.draw(st.sampled_from(names))
            if not isinstance(where[name], dict | list) or data.draw(st.integers(0, 3)) == 0:
                where[name] = data.draw(VALUES)
                break
            where = where[name]
        raw = json.dumps(content).encode()
    path.write_bytes(raw)
    with input_errors_naming(path):
        record = read_record(path, AnyRecord)
        store = Store(root)
        for name in record.artifacts:
            assert store.artifact(record, name).parent == root / "artifacts" / record.key
    with input_errors_naming(root):
        for form in FORMATS:
            text = render(report.build(load_table(2), Store(root)), form)
            assert all(line.isprintable() for line in text.splitlines())
        page.write(Store(root), root / "report")
    with input_errors_naming(root):
        compare(root, root)
    with input_errors_naming(root):
        status.read(Store(root))
    with input_errors_naming(root):
        figures._longest(Store(root), "resnet110_relu_bn")
    with input_errors_naming(root):
        compact.rewrite(Store(root))
    assert path.read_bytes() == raw, "it is under another name than its own"
    assert all(problem.isprintable() for problem in verify(root).problems)
    path.unlink()


@pytest.fixture(scope="session")
def record_text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A record of each stage, as the suite writes it."""
    store = Store(tmp_path_factory.mktemp("records"))
    model = {"model": "resnet110_relu_bn"}
    data = {"name": "cifar10", "train": 50000, "test": 10000, "sha256": "0" * 64}
    recipe = {"epochs": 164, "max_steps": None, "learning_rate": 0.1, "max_test_images": None}
    tries = [{"learning_rate": 0.1, "outcome": "trained"}]
    epochs = [{"epoch": 1, "top1": 6.5, "train_error": 1.0, "train_loss": None}]
    result = {"trained": True, "top1": 6.5, "tries": tries, "epochs": epochs, "steps": 9, "test_images": 10}
    # As `suite.env` writes it.
    source = {"commit": "0" * 40, "dirty": True}
    machine = {"id": "m", "cpu": "c", "cores": 2, "gpu": None, "memory_bytes": 1, "system": "s"}
    environment = {"machine": machine, "versions": {"torch": "2"}, "source": source, "command": ["python", "-m"]}
    timing = {"seconds": 1.5, "images_per_second": 10.0}
    train = store.put("train", model | {"data": data, "recipe": recipe, "seed": 0}, result, environment, timing)
    export = store.put("export", model | {"train": train.key}, {"parameters": 1, "macs": 2}, environment, timing)
    parity = {"images": 9, "difference": 0.0, "max_logit_difference": 1e-6, "scale": 2.0}
    parity |= {"agreement": 100.0, "ties": 0, "passed": True}
    store.put("parity", model | {"export": export.key}, parity, environment, timing)
    timed = model | {"export": export.key, "machine": "m", "runtime": "onnxruntime", "provider": "cpu"}
    timed |= {"batch_size": 8, "protocol": {"rounds": 2}, "versions": {"torch": "2"}, "threads": 2}
    store.put("latency", timed, {"rounds_ns": [[100], [200]], "load_seconds": 0.1}, environment, timing)
    files = (path for path in store.root.glob("records/*/*.json"))
    return {path.parent.name: path.read_bytes() for path in files}


NOTE = b'{"inputs": {"model": "m"}, "reason": "r", "stage": "s"}'


@given(raw=VALUES.map(lambda value: json.dumps(value).encode()) | mutilated(NOTE))
def test_no_failures_note_leaves_the_store_but_by_an_input_error(
    raw: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "note.json"
    path.write_bytes(raw)
    with input_errors_naming(path):
        assert isinstance(read_failure(path), Failure)


@given(data=st.data())
def test_no_checkpoint_leaves_the_reader_at_all(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "checkpoints"
    checkpoint.write(folder, 1, {"weight": torch.arange(6.0), "half": torch.ones(3).bfloat16()}, {"epoch": 3})
    (path,) = folder.glob("*.safetensors")
    good = path.read_bytes()
    if data.draw(st.booleans()):
        raw = data.draw(mutilated(good))
    else:
        size = int.from_bytes(good[:8], "little")
        header = json.loads(good[8 : 8 + size])
        part = header[data.draw(st.sampled_from(sorted(header)))]
        types = st.sampled_from(["F64", "BF16", "F8_E4M3", "F4", "BOOL", "C64", "U64", "X"])
        part[data.draw(st.sampled_from(sorted(part)))] = data.draw(types | VALUES)
        text = json.dumps(header).encode()
        raw = len(text).to_bytes(8, "little") + text + good[8 + size :]
    path.write_bytes(raw)
    warnings: list[str] = []
    found = checkpoint.read(folder, warnings.append)
    assert found is None or found[1] == {"epoch": 3}
    assert all(warning.isprintable() and str(path) in warning for warning in warnings)
    assert found or warnings
    path.unlink()


NUMPY = pickle.dumps({"data": np.zeros((2, 3), np.uint8), "labels": [1, 2]}, protocol=2)
# Enough of the pickle machine to get out of it, if there is a way: stack, memo, calls, states, extensions, frames.
OPCODES = st.sampled_from(
    [bytes([code]) for code in b"(.0121N}])\x85\x86\x87aesutRbo\x81\x93\x94Q\x88\x89\x8f\x90\x91\x97\x98"]
    + [b"K\x01", b"M\x01\x02", b"q\x00", b"h\x00", b"r\xff\xff\xff\x7f", b"j\x00\x00\x00\x00"]
    + [
        b"\x82\x01",
        b"\x83\x01\x00",
        b"\x84\x01\x00\x00\x00",
        b"\x95" + b"\xff" * 7 + b"\x7f",
        b"\x8a\x10" + b"\xff" * 16,
    ]
    + [
        b"X\x04\x00\x00\x00data",
        b"X\x02\x00\x00\x00u1",
        b"U\x03abc",
        b"C\x02ab",
        b"P0\n",
        b"I1\n",
        b"L1L\n",
        b"F1e400\n",
    ]
    + [f"c{name}\n".encode() for name in ("numpy\nndarray", "numpy\ndtype", "_codecs\nencode", "os\nsystem")]
    + [b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy._core.numeric\n_frombuffer\n", b"cbuiltins\neval\n"]
    + [b"ios\nsystem\n"]
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of strings with odd escapes
@given(data=st.data())
def test_no_cifar_file_leaves_the_reader_but_by_an_input_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path_factory.getbasetemp() / "batch"
    made = st.lists(OPCODES, max_size=24).map(lambda codes: b"\x80\x04" + b"".join(codes) + b".")
    path.write_bytes(data.draw(made | mutilated(NUMPY) | st.binary(max_size=64)))
    for read in (
        lambda: cifar._records_from_pickle(path, "labels"),
        lambda: cifar._names_from_pickle(path),
        lambda: cifar._names_from_text(path),
        lambda: cifar._records(path, 10),
    ):
        with monkeypatch.context() as patch, input_errors_naming(path):
            # Only here, since hypothesis evaluates code of its own between cases; not `exec`, which imports use.
            for name in ("os.system", "builtins.eval"):
                patch.setattr(name, lambda *_: pytest.fail("the pickle ran a function"))
            read()
