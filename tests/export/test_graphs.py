"""ONNX files of others: what they take, what is refused, and how many operations are counted."""

import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from suite.errors import InputError
from suite.export import graphs
from suite.inference import feeds, subjects
from suite.session import open_session

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a graph of these nodes, inputs (name, type, shape), outputs and constants; returns the file."""

    def write(
        nodes: Sequence[onnx.NodeProto],
        taken: Sequence[tuple[str, int, Sequence[Any]]],
        given: Sequence[tuple[str, int, Sequence[Any] | None]],
        constants: Sequence[tuple[str, np.ndarray]] = (),
        opset: int = 13,
        name: str = "net.onnx",
        **options: Any,
    ) -> Path:
        ends = [[helper.make_tensor_value_info(*each) for each in side] for side in (taken, given)]
        held = [numpy_helper.from_array(array, called) for called, array in constants]
        graph = helper.make_graph(list(nodes), "net", *ends, held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.save(model, tmp_path / name, **options)
        return tmp_path / name

    return write


@pytest.fixture
def transformer(save: Save) -> Path:
    """Token ids and a mask, as a transformer's first layers take them: a table of 50 rows, and a product."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["column"]),
        helper.make_node("Mul", ["words", "column"], ["masked"]),
        helper.make_node("MatMul", ["masked", "weight"], ["hidden"]),
    ]
    taken = [(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
    constants = [
        ("table", random.standard_normal((50, 8)).astype(np.float32)),
        ("last", np.array([-1])),
        ("weight", random.standard_normal((8, 6)).astype(np.float32)),
    ]
    return save(nodes, taken, [("hidden", TensorProto.FLOAT, None)], constants)


def test_token_ids_are_drawn_from_their_table_and_masks_hide_nothing(transformer: Path) -> None:
    graph = graphs.read(transformer)
    assert [(slot.name, slot.below) for slot in graph.inputs] == [("input_ids", 50), ("attention_mask", 0)]
    taken = subjects.resolve_inputs(graph, feeds.parse_inputs(["input_ids=2x9"]))
    values = feeds.random_values(taken, 0)
    assert {name: array.shape for name, array in values.items()} == {"input_ids": (2, 9), "attention_mask": (2, 9)}
    assert 0 <= values["input_ids"].min() < values["input_ids"].max() < 50
    assert (values["attention_mask"] == 1).all()
    assert not np.array_equal(values["input_ids"], feeds.random_values(taken, 1)["input_ids"])


def test_a_free_dimension_is_asked_for_by_the_names_of_input_and_dimension(transformer: Path) -> None:
    graph = graphs.read(transformer)
    with pytest.raises(InputError, match=r"dimension 1 'sequence' of input 'input_ids' is free; .*input_ids=1x128"):
        subjects.resolve_inputs(graph)
    with pytest.raises(InputError, match="'sequence' is 9 of one input, and 8 of 'attention_mask'"):
        subjects.resolve_inputs(graph, feeds.parse_inputs(["input_ids=1x9", "attention_mask=1x8"]))
    with pytest.raises(InputError, match="input 'input_ids' is batchxsequence, not 1x2x3"):
        subjects.resolve_inputs(graph, feeds.parse_inputs(["input_ids=1x2x3"]))


def test_the_batch_size_goes_to_free_first_dimensions(transformer: Path, save: Save) -> None:
    taken = subjects.resolve_inputs(graphs.read(transformer), feeds.parse_inputs(["input_ids=1x9"]), 4)
    assert [each.shape for each in taken] == [(4, 9), (4, 9)]
    fixed = save(
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [2, 3])],
        [("y", TensorProto.FLOAT, [2, 3])],
        name="fixed.onnx",
    )
    assert subjects.resolve_inputs(graphs.read(fixed))[0].shape == (2, 3)
    with pytest.raises(InputError, match="is for batches of 2; use that batch size, or give none"):
        subjects.resolve_inputs(graphs.read(fixed), batch_size=8)


@pytest.mark.parametrize("kind", feeds.TYPES)
def test_every_type_of_numbers_is_drawn(kind: str, save: Save) -> None:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    path = save([helper.make_node("Identity", ["x"], ["y"])], [("x", number, ["n", 4])], [("y", number, ["n", 4])])
    (taken,) = subjects.resolve_inputs(graphs.read(path))
    (values,) = feeds.random_values([taken], 0).values()
    assert values.dtype.name == taken.type == kind
    assert values.shape == (1, 4)


def test_what_is_no_tensor_of_numbers_is_refused_in_one_line(save: Save) -> None:
    path = save(
        [helper.make_node("Identity", ["text"], ["y"])],
        [("text", TensorProto.STRING, [1])],
        [("y", TensorProto.STRING, [1])],
    )
    with pytest.raises(InputError, match="input 'text' takes strings; give a file that takes tensors of numbers"):
        graphs.read(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(InputError, match="not an ONNX file"):
        graphs.read(path)
    with pytest.raises(InputError, match="no such file"):
        graphs.read(path.with_name("none.onnx"))


def outside(save: Save, location: str, **options: Any) -> Path:
    path = save(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", 400])],
        [("y", TensorProto.FLOAT, ["n", 400])],
        [("w", np.ones((1, 400), np.float32))],
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
    )
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_a_file_are_its_own_and_others_are_not_read(save: Save, tmp_path: Path) -> None:
    assert graphs.read(outside(save, "net.data")).precision == "fp32"
    (tmp_path / "link.data").symlink_to("/etc/hostname")
    for elsewhere in ("../net.data", "/etc/hostname", "link.data", "a/../../net.data", ""):
        with pytest.raises(InputError, match="outside the file's folder and is not read"):
            graphs.read(outside(save, elsewhere))
    with pytest.raises(InputError, match="no such file"):
        graphs.read(outside(save, "gone.data"))


def test_weights_beside_a_file_that_are_cut_short_are_refused(save: Save, tmp_path: Path) -> None:
    path = outside(save, "net.data")
    os.truncate(tmp_path / "net.data", 1000)
    with pytest.raises(InputError, match=r"'net.data' beside it has 1000 bytes, which is shorter .* 'w' ends at 1600"):
        graphs.read(path)


def test_what_onnx_runtime_cannot_be_given_is_refused_in_plain_words(save: Save, tmp_path: Path) -> None:
    relu, given = helper.make_node("Relu", ["x"], ["y"]), [("y", TensorProto.FLOAT, None)]
    with pytest.raises(InputError, match=r"input 'x' is 0x3x\?, which has no values to compute from"):
        graphs.read(save([relu], [("x", TensorProto.FLOAT, [0, 3, None])], given))
    path = save([relu], [("x", TensorProto.FLOAT, [2, 3])], given, opset=99)
    with pytest.raises(RuntimeError, match=r"opset 99; this onnxruntime, \S+, reads up to \d\d: export the file with"):
        open_session(str(path), "cpu", 1)
    model = onnx.load(path)
    model.opset_import[0].version, model.ir_version = 17, 99
    with pytest.raises(RuntimeError, match=r"IR version 99; this onnxruntime, \S+, reads up to \d\d: export"):
        open_session(model.SerializeToString(), "cpu", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are UTF-8")
def test_a_name_that_is_not_utf8_is_refused(save: Save, tmp_path: Path) -> None:
    path = save([helper.make_node("Relu", ["x"], ["y"])], [("x", 1, [2])], [("y", 1, [2])])
    renamed = path.rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.onnx")))
    with pytest.raises(InputError, match="its name is not UTF-8"):
        graphs.read(renamed)


def test_multiply_accumulates_are_those_of_convolutions_and_products(transformer: Path, save: Save) -> None:
    graph = graphs.read(transformer)
    assert graphs.macs(graph, {"input_ids": (2, 9), "attention_mask": (2, 9)}) == 2 * 9 * 8 * 6
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], group=2),
        helper.make_node("ConvTranspose", ["y", "v"], ["z"]),
    ]
    weights = [("w", np.ones((6, 2, 3, 3), np.float32)), ("v", np.ones((6, 5, 2, 2), np.float32))]
    ends = [("x", TensorProto.FLOAT, ["n", 4, 8, 8])], [("z", TensorProto.FLOAT, None)]
    path = save(nodes, *ends, weights)
    assert graphs.macs(graphs.read(path), {"x": (3, 4, 8, 8)}) == 3 * 4 * 4 * 6 * (2 * 9 + 5 * 4)


def test_nothing_is_said_of_what_cannot_be_counted(save: Save) -> None:
    path = save(
        [helper.make_node("Einsum", ["x", "x"], ["y"], equation="ij,kj->ik")],
        [("x", TensorProto.FLOAT, [4, 4])],
        [("y", TensorProto.FLOAT, [4, 4])],
    )
    assert graphs.macs(graphs.read(path), {"x": (4, 4)}) is None


@pytest.mark.parametrize("text", ["ids", "ids=", "=1x2", "ids=1xtwo", "ids=1x0", "ids=-1"])
def test_what_input_says_is_a_shape_or_a_file(text: str) -> None:
    if text == "ids=":
        assert feeds.parse_inputs([text]).shapes == {"ids": ()}
        return
    with pytest.raises(InputError, match=r"is not valid; use NAME=SHAPE, as in ids=1x128, or an .npz file"):
        feeds.parse_inputs([text])


def test_values_of_a_file_are_checked_against_the_graph(transformer: Path, tmp_path: Path) -> None:
    graph, path = graphs.read(transformer), tmp_path / "values.npz"
    np.savez(path, input_ids=np.full((1, 5), 7), attention_mask=np.ones((1, 5), np.int64))
    given = feeds.parse_inputs([str(path)])
    taken = subjects.resolve_inputs(graph, given)
    assert (feeds.values_for(taken, given.path, 0)["input_ids"] == 7).all()
    np.savez(path, input_ids=np.full((1, 5), 7, np.int32))
    with pytest.raises(InputError, match=r"'input_ids' is of int64, and in .*values.npz of int32"):
        subjects.resolve_inputs(graph, feeds.parse_inputs([str(path)]))
    np.savez(path, input_ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"with arrays of numbers; it holds Python objects$"):
        feeds.parse_inputs([str(path)])
    path.write_text("no archive")
    with pytest.raises(InputError, match=r"it is of another format, or damaged$"):
        feeds.parse_inputs([str(path)])
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match=r"it is of another format, or damaged$"):
        feeds.parse_inputs([str(path)])
    for member in ("x.txt", "x.npy"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, "no array")
        with pytest.raises(InputError, match=r"with arrays of numbers; '.*' in it is no array$"):
            feeds.parse_inputs([str(path)])
    np.savez_compressed(path, x=np.arange(4000.0))
    whole = path.read_bytes()
    for place in range(len(whole)):  # whatever is damaged, and whatever raises then
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with suppress(InputError):
            feeds.read_npz(path)
    header = b"\x93NUMPY\x01\x00\x10\x00" + b"((((((((((((((((("[:16]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header)
    with pytest.raises(InputError, match=r"cannot be read as an \.npz file of arrays: "):
        feeds.parse_inputs([str(path)])
