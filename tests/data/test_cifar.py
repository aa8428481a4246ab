"""Tests of the readers of CIFAR's official layouts, on files of a few images."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suite.data import cifar
from suite.data.sets import load
from suite.errors import InputError

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
NAMES10 = [f"class{number}" for number in range(10)]
NAMES100 = [f"fine{number:02d}" for number in range(100)]


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def records(data: np.ndarray, *labels: list[int]) -> bytes:
    return np.concatenate([np.array(labels, np.uint8).T, data], axis=1).tobytes()


def binary10(home: Path) -> Path:
    home.mkdir(parents=True)
    for seed, file in enumerate(BATCHES):
        (home / f"{file}.bin").write_bytes(records(rows(2, seed), [seed, 9]))
    (home / "test_batch.bin").write_bytes(records(rows(1, 9), [3]))
    (home / "batches.meta.txt").write_text("\n".join(NAMES10) + "\n\n")
    return home


def binary100(home: Path) -> Path:
    home.mkdir(parents=True)
    (home / "train.bin").write_bytes(records(rows(3), [0, 1, 2], [7, 42, 99]))
    (home / "test.bin").write_bytes(records(rows(1, 9), [4], [50]))
    (home / "fine_label_names.txt").write_text("\n".join(NAMES100) + "\n")
    return home


def python10(home: Path, dump: Any = pickle.dumps) -> Path:
    home.mkdir(parents=True)
    for seed, file in enumerate(BATCHES):
        (home / file).write_bytes(dump({"data": rows(2, seed), "labels": [seed, 9], "batch_label": file}))
    (home / "test_batch").write_bytes(dump({"data": rows(1, 9), "labels": [3], "filenames": ["a.png"]}))
    (home / "batches.meta").write_bytes(dump({"label_names": NAMES10, "num_vis": 3072}))
    return home


def python2(value: Any) -> bytes:
    """Write the opcodes that Python 2's cPickle writes at protocol 2: strings and array data as BINSTRING."""

    def put(value: Any) -> bytes:
        match value:
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                return b"J" + struct.pack("<i", value)
            case str():
                return put(value.encode())
            case bytes():
                return b"T" + struct.pack("<i", len(value)) + value
            case tuple():
                return b"(" + b"".join(map(put, value)) + b"t"
            case list():
                return b"](" + b"".join(map(put, value)) + b"e"
            case dict():
                return b"}(" + b"".join(put(key) + put(item) for key, item in value.items()) + b"u"
            case np.ndarray():
                dtype = b"cnumpy\ndtype\n" + put(("u1", 0, 1)) + b"R"
                dtype += put((3, "|", None, None, None, -1, -1, 0)) + b"b"
                start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + put((0,)) + put("b") + b"tR"
                return start + b"(" + put(1) + put(value.shape) + dtype + put(False) + put(value.tobytes()) + b"tb"
        raise TypeError(value)

    return b"\x80\x02" + put(value) + b"."


def same(left: cifar.Contents | None, right: cifar.Contents | None) -> bool:
    assert left is not None
    assert right is not None
    arrays = zip((*left[1], *left[2]), (*right[1], *right[2]), strict=True)
    return left[0] == right[0] and all(np.array_equal(a, b) for a, b in arrays)


def test_binary_records_become_rgb_images_in_the_order_of_the_batches(tmp_path):
    names, (images, labels), (test_images, test_labels) = cifar.read("cifar10", binary10(tmp_path / "any"))
    assert names == tuple(NAMES10)
    assert labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert labels.dtype == np.int64
    assert test_labels.tolist() == [3]
    assert images.shape == (10, 32, 32, 3)
    assert images.dtype == np.uint8
    red, green, blue = rows(2, 4)[1].reshape(3, 32, 32)
    assert np.array_equal(images[9], np.stack([red, green, blue], axis=-1))
    assert np.array_equal(test_images[0], rows(1, 9).reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar100_takes_the_fine_label_of_a_record(tmp_path):
    _, (images, labels), _ = cifar.read("cifar100", binary100(tmp_path / "any"))
    assert labels.tolist() == [7, 42, 99]
    assert np.array_equal(images[0].transpose(2, 0, 1).ravel(), rows(3)[0])


def test_the_folder_around_the_layout_is_enough(tmp_path):
    inner = binary10(tmp_path / "cifar-10-batches-bin")
    assert same(cifar.read("cifar10", tmp_path), cifar.read("cifar10", inner))


def test_the_binary_layout_is_read_before_the_python_one(tmp_path):
    binary10(tmp_path / "cifar-10-batches-bin")
    home = python10(tmp_path / "cifar-10-batches-py")
    (home / "data_batch_1").write_bytes(b"not read")
    assert cifar.read("cifar10", tmp_path) is not None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", ["_core", "core"])
def test_pickles_of_every_protocol_and_numpy_read_like_the_binary_layout(tmp_path, protocol, core):
    def dump(value):
        data = pickle.dumps(value, protocol=protocol)
        if protocol < 4:  # names without a length in front
            return data.replace(b"numpy._core.", f"numpy.{core}.".encode())
        long, short = b"numpy._core.", f"numpy.{core}.".encode()
        for module in (b"multiarray", b"numeric"):
            old, new = long + module, short + module
            data = data.replace(b"\x8c" + bytes([len(old)]) + old, b"\x8c" + bytes([len(new)]) + new)
        frame = data.index(b"\x95")
        shift = 0 if core == "_core" else data.count(b"numpy.core.")
        size = struct.unpack("<Q", data[frame + 1 : frame + 9])[0]
        return data[: frame + 1] + struct.pack("<Q", size - shift) + data[frame + 9 :]

    expected = cifar.read("cifar10", binary10(tmp_path / "bin"))
    assert same(cifar.read("cifar10", python10(tmp_path / "py", dump)), expected)


def test_pickles_of_python_2_read_like_the_binary_layout(tmp_path):
    expected = cifar.read("cifar10", binary10(tmp_path / "bin"))
    assert same(cifar.read("cifar10", python10(tmp_path / "py", python2)), expected)


def test_keys_and_names_may_be_bytes(tmp_path):
    def dump(value):
        value = {key.encode(): item for key, item in value.items()}
        if b"label_names" in value:
            value[b"label_names"] = [name.encode() for name in NAMES10]
        return pickle.dumps(value, protocol=2)

    expected = cifar.read("cifar10", binary10(tmp_path / "bin"))
    assert same(cifar.read("cifar10", python10(tmp_path / "py", dump)), expected)


def test_arrays_in_fortran_order_and_labels_in_other_integers_are_read(tmp_path):
    def dump(value):
        if "labels" in value:
            value["data"] = np.asfortranarray(value["data"])
            value["labels"] = np.array(value["labels"], ">i4")
        return pickle.dumps(value, protocol=5)

    expected = cifar.read("cifar10", binary10(tmp_path / "bin"))
    assert same(cifar.read("cifar10", python10(tmp_path / "py", dump)), expected)


def test_cifar100_pickles_are_read(tmp_path):
    home = tmp_path / "cifar-100-python"
    home.mkdir()
    fine = {"data": rows(3), "fine_labels": [7, 42, 99], "coarse_labels": [0, 1, 2]}
    (home / "train").write_bytes(pickle.dumps(fine))
    (home / "test").write_bytes(pickle.dumps({"data": rows(1, 9), "fine_labels": [50]}))
    (home / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES100, "coarse_label_names": ["x"]}))
    assert same(cifar.read("cifar100", tmp_path), cifar.read("cifar100", binary100(tmp_path / "bin")))


def test_a_truncated_batch_is_named(tmp_path):
    home = binary10(tmp_path / "any")
    file = home / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_3\.bin: 6145 bytes is no whole number of records of 3073"):
        cifar.read("cifar10", home)


@pytest.mark.parametrize("content", [b"", pickle.dumps({"data": rows(0), "labels": []})])
def test_an_empty_batch_is_named(tmp_path, content):
    home = python10(tmp_path / "any") if content else binary10(tmp_path / "any")
    file = home / ("test_batch" if content else "test_batch.bin")
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file}: holds no images"):
        cifar.read("cifar10", home)


def test_a_label_out_of_range_is_named(tmp_path):
    home = binary100(tmp_path / "any")
    (home / "test.bin").write_bytes(records(rows(2), [0, 0], [99, 100]))
    with pytest.raises(InputError, match=r"test\.bin: label 100 of image 1 is not in 0\.\.99"):
        cifar.read("cifar100", home)
    home = python10(tmp_path / "py")
    (home / "test_batch").write_bytes(pickle.dumps({"data": rows(1), "labels": [-1]}))
    with pytest.raises(InputError, match=r"test_batch: label -1 of image 0 is not in 0\.\.9"):
        cifar.read("cifar10", home)


@pytest.mark.parametrize("file", ["data_batch_4.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(tmp_path, file):
    home = binary10(tmp_path / "any")
    (home / file).unlink()
    with pytest.raises(InputError, match=f"{home}: {file} missing"):
        cifar.read("cifar10", home)


def test_a_wrong_number_of_class_names_is_named(tmp_path):
    home = binary10(tmp_path / "any")
    (home / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match=r"batches\.meta\.txt: 2 class names, must be 10"):
        cifar.read("cifar10", home)
    (home / "batches.meta.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"batches\.meta\.txt: is no text of class names"):
        cifar.read("cifar10", home)
    home = python10(tmp_path / "py")
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES100}))
    with pytest.raises(InputError, match=r"batches\.meta: 100 class names, must be 10"):
        cifar.read("cifar10", home)


def test_the_other_cifar_is_recognised(tmp_path):
    with pytest.raises(InputError, match="holds cifar100, not cifar10"):
        load("cifar10", binary100(tmp_path / "hundred"))
    with pytest.raises(InputError, match="holds cifar10, not cifar100"):
        load("cifar100", python10(tmp_path / "ten"))


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refusal(tmp_path: Path, content: bytes) -> str:
    home = python10(tmp_path / "any")
    (home / "data_batch_2").write_bytes(content)
    with pytest.raises(InputError) as caught:
        cifar.read("cifar10", home)
    assert str(home / "data_batch_2") in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, f"{os.name}.system"), (eval, "eval"), (np.load, "numpy.load"), (np.empty, "numpy")],
)
def test_a_pickle_that_calls_a_function_is_refused_by_name(tmp_path, function, named, protocol):
    trace = tmp_path / "trace"
    command = f"touch {trace}" if function is os.system else f"open({str(trace)!r}, 'w')"
    message = refusal(tmp_path, pickle.dumps({"data": Runs(function, command)}, protocol=protocol))
    assert "refused" in message
    assert named in message
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([{}], dtype=object), "refused dtype 'O8'"),
        (np.zeros(2, "u1,u1"), "refused dtype 'V2'"),
        (np.zeros(2, np.float32), "refused dtype 'f4'"),
        (np.zeros(2).view(np.matrix), "refused numpy.matrix"),
        (np.dtype("u1").type, "refused numpy.uint8"),
    ],
)
def test_arrays_of_anything_but_integers_are_refused(tmp_path, value, reason):
    assert reason in refusal(tmp_path, pickle.dumps({"data": value}, protocol=2))


def test_a_dtype_that_turns_into_another_by_its_state_is_refused(tmp_path):
    content = pickle.dumps({"data": rows(1), "labels": [0]}, protocol=2)
    forged = content.replace(b"X\x01\x00\x00\x00|q", b"X\x01\x00\x00\x00Oq")
    assert forged != content
    assert "refused a structured dtype" in refusal(tmp_path, forged)


def test_codecs_encode_is_held_to_latin1(tmp_path):
    content = b"\x80\x02}X\x04\x00\x00\x00datac_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86Rs."
    assert "refused _codecs.encode to 'zip'" in refusal(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}r\xff\xff\xff\xff.",  # asks for a memo of 64 GiB
        b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",  # and for as large an array
        b"garbage",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": rows(2), "labels": [1, 2]})[:-9],
        pickle.dumps({"data": rows(2), "labels": [1]}),
        pickle.dumps({"data": rows(2), "labels": [1, "a"]}),
        pickle.dumps({"data": rows(2), "labels": [1, 2**70]}),
        pickle.dumps({"data": rows(2)}),
        pickle.dumps({"data": rows(2)[:, 1:], "labels": [1, 2]}),
        pickle.dumps({"data": rows(2).astype(np.int64), "labels": [1, 2]}),
        b"\x80\x02}X\x04\x00\x00\x00datacnumpy\nndarray\n)Rs.",  # an array without a state
        b"\x80\x02}X\x04\x00\x00\x00datacnumpy\nndarray\n)RK\x05bs.",  # and with a wrong one
        b"\x80\x02cnumpy\nndarray\n}X\x05\x00\x00\x00valueNsb.",  # a state for the class itself
    ],
)
def test_a_malformed_pickle_is_named(tmp_path, content):
    assert refusal(tmp_path, content)


# Each would call os.system("touch ...") or worse in an unrestricted unpickler.
EXPLOITS = {
    "GLOBAL": b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00touch\x85R.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",
    "INST": b"(X\x05\x00\x00\x00touchios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x05\x00\x00\x00toucho.",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\nX\x05\x00\x00\x00touch\x85}\x92.",
    "eval": b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.",
    "eval of Python 2": b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x001+1\x85R.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\n.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x13ndarray.__class__.x\x93.",
    "a name split elsewhere": b"\x80\x04\x8c\x00\x8c\x0dnumpy.ndarray\x93.",
    "the unpickler's own": b"\x80\x02csuite.cifar\n_Array\n.",
    "copyreg": b"\x80\x02ccopyreg\n_reconstructor\n.",
    "an extension": b"\x80\x02\x82\xf0X\x05\x00\x00\x00touch\x85R.",
    "a persistent identity": b"\x80\x02X\x02\x00\x00\x00osQ.",
    "BUILD on a function": b"\x80\x02c_codecs\nencode\n}X\x08\x00\x00\x00__code__Nsb.",
    "reconstruct of another class": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85X\x01\x00\x00\x00b\x87R."
    ),
    "a frame without end": b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
    "a long without end": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "a bomb of the memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a bomb of hashes": b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "a bomb of sets": b"\x80\x04" + b"(K\x01\x91\x94" * 60 + b".",
    "deep nesting": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
}


@pytest.mark.parametrize("kind", EXPLOITS)
def test_no_exploit_gets_out_of_the_restricted_reader(tmp_path, kind, monkeypatch):
    import builtins
    import copyreg

    for module, name in ((os, "system"), (builtins, "eval")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("the pickle ran a function"))
    copyreg.add_extension(os.name, "system", 0xF0)
    try:
        assert refusal(tmp_path, EXPLOITS[kind])
    finally:
        copyreg.remove_extension(os.name, "system", 0xF0)


@pytest.mark.parametrize("make", [binary10, python10])
def test_a_file_cut_at_any_sixteenth_is_named_or_holds_only_whole_images(tmp_path, make):
    home = make(tmp_path / "any")
    whole = cifar.read("cifar10", home)[1][0]
    for file in sorted(home.iterdir()):
        raw = file.read_bytes()
        for part in range(16):
            file.write_bytes(raw[: len(raw) * part // 16])
            if file.suffix == ".txt" and part == 15:
                continue  # the last of ten names is cut, and the fingerprint another
            if file.suffix == ".bin" and part == 8 and len(raw) == 2 * 3073:
                images = cifar.read("cifar10", home)[1][0]
                assert len(images) == len(whole) - 1, "which the fingerprint holds, and the report says"
            else:
                with pytest.raises(InputError, match=str(file)):
                    cifar.read("cifar10", home)
        file.write_bytes(raw)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of strings with odd escapes
def test_no_mutilation_of_a_pickle_escapes_as_another_error(tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "batch"
    good = pickle.dumps({"labels": [1, 2], "data": rows(2)[:, :3]}, protocol=2)
    for _ in range(500):
        content = bytearray(good)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        file.write_bytes(content)
        with pytest.raises(InputError):  # three columns are never right
            cifar._records_from_pickle(file, "labels")
