"""Errors in one line, whatever they say."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from suite.errors import LONGEST, describe_error, first_line, join_with_or


def test_an_error_is_one_line_whatever_it_says() -> None:
    assert first_line(RuntimeError("no room\nfor this")) == "no room for this"
    assert first_line(RuntimeError("\nlater")) == "later"
    assert first_line(RuntimeError("No room.\nFor debugging set this.")) == "No room."
    assert first_line(RuntimeError("no room\n\nStack trace")) == "no room"
    assert first_line(MemoryError()) == "MemoryError"
    assert describe_error(RuntimeError("no room\nfor this")) == "RuntimeError: no room for this"
    assert describe_error(MemoryError()) == "MemoryError"


def test_names_are_joined_as_in_a_sentence() -> None:
    assert join_with_or(["a"]) == "a"
    assert join_with_or(["a", "b"]) == "a or b"
    assert join_with_or(name for name in "abc") == "a, b or c"


def test_an_error_that_goes_on_and_on_is_cut() -> None:
    text = first_line(RuntimeError("a line of a file\n" * 1000))
    assert len(text) == LONGEST
    assert text.endswith("...")


@pytest.mark.parametrize(
    ("said", "how"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", " (Killed)"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...", " (Bus error)"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", ""),
    ],
)
def test_the_death_of_a_process_that_reads_images_is_told_with_the_remedy(said: str, how: str) -> None:
    text = first_line(RuntimeError(said))
    assert text.startswith(f"a process that reads images died{how}, as where memory or /dev/shm is full; ")
    assert text.endswith("docker run --shm-size=8g or --ipc=host")


def test_what_onnx_runtime_says_over_several_lines_is_told_whole() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], "square", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="invalid dimensions") as caught:
        session.run(None, {"x": np.zeros((4, 3, 9, 8), np.float32)})
    assert first_line(caught.value).endswith(
        "for the following indices index: 0 Got: 4 Expected: 1 index: 2 Got: 9 Expected: 8 "
        "Please fix either the inputs/outputs or the model."
    )
