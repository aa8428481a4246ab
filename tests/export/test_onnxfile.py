"""ONNX files that a user names, as strangers may have made them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from suite.errors import InputError
from suite.inference import deploy, networks
from suite.inference.explain import explain


def graph(
    size: int | str = 8,
    classes: int | str = 10,
    opset: int = 18,
    names: tuple[str, str] = ("input", "logits"),
    channels: int | str = 3,
    weights: TensorProto | None = None,
    **metadata: str,
) -> onnx.ModelProto:
    """A file that tells classes apart by the mean of the first channel."""
    weights = weights or numpy_helper.from_array(np.ones((3, 10), np.float32), "weights")
    nodes = [
        helper.make_node("ReduceMean", [names[0], "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], [names[1]], name="\x1b[2Jfc"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["batch", channels, size, size])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.array([2, 3]), "axes"), weights],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(model, metadata)
    return model


def outside(location: str) -> TensorProto:
    """Weights that lie in another file."""
    tensor = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[3, 10])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


def refusal(path: Path) -> str:
    """What is said of a file that is to be compared with a network of this project."""
    with pytest.raises(InputError) as caught, networks.errors_in_one_line(str(path)):
        deploy.parity(str(path), "resnet20_relu_bn", {}, 2, "cpu")
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said


def explained(path: Path) -> dict[str, Any]:
    with deploy.onnx_file(str(path), "cpu", None) as file:
        return explain(file)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "weights.bin", "a/../../secret"])
@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "sparse"])
def test_weights_outside_the_file_are_refused_before_anything_is_read(
    path: Path, location: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = graph(weights=outside(location) if place == "initializer" else None)
    if place == "attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside(location)))
    if place == "subgraph":
        branch = helper.make_graph([], "b", [], [], [outside(location)])
        model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))
    if place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(outside(location))
    path.write_bytes(model.SerializeToString())
    (path.parent / "weights.bin").write_bytes(bytes(120))
    opened: list[str] = []
    whole = open

    def noted(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(file))
        return whole(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", noted)
    monkeypatch.setattr("suite.session.open_session", lambda *_: pytest.fail("a session was opened"))
    assert refusal(path) == f"{path}: 'weights' lies outside the file, in {location!r}, which is not read"
    assert not [file for file in opened if file.endswith(("secret", "passwd", "weights.bin"))]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (graph(opset=17), "its opset is 17; it must be 18"),
        (graph(opset=99), "its opset is 99; it must be 18"),
        (graph(names=("x", "y")), "they must be one input, 'input', and one output, 'logits'"),
        (
            graph(size=10**9),
            f"its input is [3, {10**9}, {10**9}]; it must be [channels, size, size] with a size of 1 to 4096",
        ),
        (graph(size="any"), "its input is [3, 0, 0]; it must be"),
        (graph(channels="any"), "its input is [0, 8, 8]; it must be"),
        (graph(classes="any"), "its logits are [0]; they must be [classes]"),
    ],
)
def test_a_file_of_another_form_is_named(path: Path, model: onnx.ModelProto, said: str) -> None:
    path.write_bytes(model.SerializeToString())
    assert said in refusal(path)


@pytest.mark.parametrize(
    ("model", "why"), [(onnx.ModelProto(), "it is empty"), (onnx.ModelProto(ir_version=8), "it holds no graph")]
)
def test_an_empty_file_is_no_onnx_file_to_any_command(path: Path, model: onnx.ModelProto, why: str) -> None:
    path.write_bytes(model.SerializeToString())
    said = f"{path}: not an ONNX file ({why})"
    assert refusal(path) == said
    with pytest.raises(InputError) as caught:
        explained(path)
    assert str(caught.value) == said


@pytest.mark.parametrize("content", [b"", b"not ONNX", b"\x80\x04.", b"\xff" * 100, b"PK\x03\x04"])
def test_a_file_that_is_no_onnx_is_named(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refusal(path)


def test_a_file_cut_at_any_sixteenth_is_named(path: Path) -> None:
    raw = graph().SerializeToString()
    for part in range(16):
        path.write_bytes(raw[: len(raw) * part // 16])
        assert refusal(path)


@pytest.mark.parametrize("dims", [[3, 10**9], [2**40, 2**40], [-1, 10]])
def test_weights_of_absurd_shapes_are_refused_without_memory_for_them(path: Path, dims: list[int]) -> None:
    tensor = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(120))
    path.write_bytes(graph(weights=tensor).SerializeToString())
    with pytest.raises(InputError, match=str(path)), networks.errors_in_one_line(str(path)):
        explained(path)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (graph(classes=100), "tells 100 classes apart, resnet20_relu_bn 10: another network's file"),
        (graph(channels=1), "takes 1 channels, resnet20_relu_bn 3: another network's file"),
        (graph(size=16), "is to see 16x16 pixels, .* and the images of digits10 have 32x32 pixels"),
        (graph(size=32), "has no node in common with an export of this network"),
    ],
)
def test_another_networks_file_is_named(path: Path, model: onnx.ModelProto, said: str) -> None:
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=said), networks.errors_in_one_line(str(path)):
        deploy.parity(str(path), "resnet20_relu_bn", {}, 2, "cpu")


@pytest.mark.parametrize("model", ["hf-hub:someone/model", "resnet50", "/etc", ""])
def test_what_a_file_says_of_its_model_is_not_followed_elsewhere(path: Path, model: str) -> None:
    path.write_bytes(graph(trained="false", model=model).SerializeToString())
    with pytest.raises(InputError, match="which is not one of this project's"):
        deploy.parity(str(path), None, {}, 2, "cpu")


def test_names_in_a_file_cannot_steer_a_terminal(path: Path, suite: Callable[..., tuple[int, str, str]]) -> None:
    path.write_bytes(graph().SerializeToString())
    code, out, err = suite("explain", str(path))
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert r"\x1b[2Jfc" in out


def test_weights_that_are_not_numbers_are_named(path: Path) -> None:
    with networks.find_network("resnet20_relu_bn") as of:
        deploy.export(of, path, "fp32", "cpu", False, {})
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "layer2.1.conv2.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full(list(weight.dims), np.nan, np.float32), weight.name))
    path.write_bytes(model.SerializeToString())
    said = "the logits of ONNX Runtime are not finite; it departs first at layer2.1.conv2$"
    with pytest.raises(InputError, match=said), networks.errors_in_one_line(str(path)):
        deploy.parity(str(path), None, {}, 2, "cpu")
