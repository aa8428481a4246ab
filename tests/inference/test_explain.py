"""What is said of a file: the nodes that ONNX Runtime runs, and where their time goes."""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

import models  # noqa: F401 - registers the networks with timm
from suite.errors import InputError
from suite.export.exporter import to_graph
from suite.export.nodes import name_after_layers
from suite.export.precision import to_int8
from suite.export.rewrite import apply_rewrites
from suite.inference.explain import explain, render
from suite.inference.feeds import parse_inputs

BLOCKED = pytest.mark.skipif(platform.machine() != "x86_64", reason="ONNX Runtime's blocked layout needs x86")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ResNet-20 with CReLU as exported, rewritten, and in int8."""
    torch.manual_seed(0)
    graph = to_graph(timm.create_model("resnet20_crelu_bn", num_classes=7).eval(), 32)
    folder: Path = tmp_path_factory.mktemp("files")
    paths = {form: folder / f"{form}.onnx" for form in ("plain", "rewritten", "int8")}
    plain = ir.from_proto(ir.to_proto(graph))
    apply_rewrites(graph)
    for model, form in ((plain, "plain"), (graph, "rewritten")):
        name_after_layers(model)
        ir.save(model, paths[form])
    to_int8(paths["rewritten"], paths["int8"], [np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)])
    return paths


@pytest.fixture(scope="module")
def explained(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {form: explain(path, batch_size=2) for form, path in files.items()}


@BLOCKED
def test_what_is_left_unfused_and_reordered_is_counted(explained: dict[str, dict[str, Any]]) -> None:
    plain = explained["plain"]
    assert plain["unfused"]["Neg"] == 19
    assert plain["unfused"]["Slice"] == 4
    assert plain["unfused"]["Pad"] == 2
    assert sum(plain["behind"]["Neg"].values()) == 19
    said = render(plain)
    assert "; 19 Neg (behind " in said or "not fused     19 Neg (behind " in said
    assert "right behind a convolution whose result nothing else takes" in said
    assert "right behind" not in render(explained["rewritten"])
    assert plain["reorders"]["ReorderInput"] >= 18
    rewritten = explained["rewritten"]
    assert rewritten["unfused"] == {}
    assert rewritten["reorders"] == {"ReorderOutput": 1}
    assert rewritten["operators"] == {"Conv": 40, "Gemm": 1, "GlobalAveragePool": 1, "ReorderOutput": 1, "Reshape": 1}


@pytest.mark.parametrize("form", ["plain", "rewritten", "int8"])
def test_every_node_is_counted_with_its_provider(form: str, explained: dict[str, dict[str, Any]]) -> None:
    found = explained[form]
    assert found["provider"] == "CPUExecutionProvider"
    assert found["nodes"] == {"CPUExecutionProvider": sum(found["operators"].values())}
    assert found["copies"] == {}
    assert found["inputs"] == {"input": [2, 3, 32, 32]}


@pytest.mark.parametrize("form", ["plain", "rewritten", "int8"])
def test_the_most_expensive_nodes_come_first_with_their_share(form: str, explained: dict[str, dict[str, Any]]) -> None:
    found = explained[form]
    times = [node["microseconds"] for node in found["expensive"]]
    assert len(times) == 5
    assert times == sorted(times, reverse=True)
    assert 0 < sum(node["share"] for node in found["expensive"]) < 1
    assert 0 < sum(times) < found["kernel_us"] < found["run_us"]
    assert found["wall_us"] > 0


def test_a_convolutions_speed_is_its_operations_by_its_time(explained: dict[str, dict[str, Any]]) -> None:
    stages = {"layer1": 32, "layer2": 16, "layer3": 8}  # side of an image
    checked = 0
    for node in explained["rewritten"]["expensive"]:
        stage, block, layer = (node["name"].split(".") + ["", ""])[:3]
        narrows = block == "0" and layer == "conv1" and stage != "layer1"
        if stage in stages and layer in ("conv1", "conv2") and not narrows:
            side, width = stages[stage], 512 // stages[stage]
            # Two images; CReLU has twice the channels; a multiplication and an addition.
            operations = 2 * 2 * side**2 * width * 2 * width * 9
            assert node["gflops"] == pytest.approx(operations / node["microseconds"] / 1e3)
            checked += 1
    assert checked


@BLOCKED
def test_a_convolution_that_is_named_after_its_bound_has_a_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suite.inference.explain.MOST_EXPENSIVE", 100)
    graph = to_graph(timm.create_model("resnet20_relu_np").eval(), 32)
    apply_rewrites(graph)
    name_after_layers(graph)
    ir.save(graph, tmp_path / "np.onnx")
    nodes = {node["name"]: node for node in explain(tmp_path / "np.onnx")["expensive"]}
    assert all(node["gflops"] for node in nodes.values() if node["operator"] == "Conv")
    node = nodes["layer3.1.act1.1.clip"]
    assert node["gflops"] == pytest.approx(2 * 8**2 * 64 * 64 * 9 / node["microseconds"] / 1e3)


def test_operations_are_told_of_convolutions_and_gemm_only() -> None:
    from suite.inference.explain import _gflops, _Node

    def node(operator: str, *inputs: list[int]) -> _Node:
        return _Node("x", operator, "CPUExecutionProvider", inputs, [2, 10], [1.0, 4.0, 2.0])

    assert _gflops(node("Gemm", [2, 64], [10]), {}) == pytest.approx(2 * 2 * 10 * 64 / 2 / 1e3)
    assert _gflops(node("Conv", [2, 8, 4, 4]), {"x": (16, 8, 3, 3)}) == pytest.approx(2 * 2 * 10 * 72 / 2 / 1e3)
    assert _gflops(node("Conv", [2, 8, 4, 4]), {}) is None
    assert _gflops(node("Relu", [2, 10]), {}) is None


@pytest.mark.parametrize("form", ["plain", "rewritten", "int8"])
def test_an_explanation_is_json_and_text(form: str, explained: dict[str, dict[str, Any]]) -> None:
    found = explained[form]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = render(found)
    assert text.startswith(f"{form}.onnx: input 2x3x32x32, threads 1")
    assert all(len(line) <= 200 for line in text.splitlines())
    for node in found["expensive"]:
        assert node["name"] in text
    assert ("19 Neg" in text) == (form == "plain")


def test_a_file_that_is_no_graph_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"broken\.onnx") as caught:
        explain(tmp_path / "broken.onnx")
    assert "\n" not in str(caught.value)


def test_a_file_of_others_is_explained_with_all_its_inputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="look up"),
        helper.make_node("MatMul", ["words", "weight"], ["hidden"], name="product"),
        helper.make_node("Where", ["mask", "hidden", "zero"], ["y"], name="choose"),
    ]
    random = np.random.default_rng(0)
    constants = {"table": (50, 8), "weight": (8, 8), "zero": (1,)}
    held = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in constants.items()
    ]
    ends = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", "length", 1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "length", 8]),
    ]
    graph = helper.make_graph(nodes, "words", ends[:2], ends[2:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    (tmp_path / "words.onnx").write_bytes(model.SerializeToString())
    found = explain(tmp_path / "words.onnx", batch_size=3, given=parse_inputs(["ids=1x5"]))
    assert found["inputs"] == {"ids": [3, 5], "mask": [3, 5, 1]}
    assert {node["name"] for node in found["expensive"]} == {"look up", "product", "choose"}
    with pytest.raises(InputError, match="dimension 1 'length' of input 'ids' is free"):
        explain(tmp_path / "words.onnx")
    with pytest.raises(InputError, match="nothing here has an input 'word'; use ids or mask"):
        explain(tmp_path / "words.onnx", given=parse_inputs(["word=1x5"]))
