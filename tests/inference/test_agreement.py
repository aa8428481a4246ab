"""Do two networks compute the same? Files of any names against each other and against models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from suite.errors import InputError
from suite.inference import agreement, deploy, feeds, networks, shared_inputs, subjects
from suite.inference.agreement import Comparison, Side
from suite.inference.feeds import Input

Suite = Callable[..., tuple[int, str, str]]


@pytest.fixture
def net(tmp_path: Path) -> Callable[..., Path]:
    """Write a small network that tells 10 classes apart; `wrong` is added to one weight of its second layer."""

    def write(name: str, wrong: float = 0.0, image: str = "image", scores: str = "scores", batch: Any = "N") -> Path:
        random = np.random.default_rng(0)
        first = random.standard_normal((8, 3, 3, 3)).astype(np.float32)
        second = random.standard_normal((10, 8, 1, 1)).astype(np.float32)
        second[3, 2] += wrong
        nodes = [
            helper.make_node("Conv", [image, "w1"], ["hidden"], name="one"),
            helper.make_node("Relu", ["hidden"], ["active"], name="act"),
            helper.make_node("Conv", ["active", "w2"], ["maps"], name="two"),
            helper.make_node("ReduceMean", ["maps"], [scores], axes=[2, 3], keepdims=0, name="pool"),
        ]
        ends = [
            helper.make_tensor_value_info(image, TensorProto.FLOAT, [batch, 3, 8, 8]),
            helper.make_tensor_value_info(scores, TensorProto.FLOAT, [batch, 10]),
        ]
        held = [numpy_helper.from_array(first, "w1"), numpy_helper.from_array(second, "w2")]
        graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write


def test_equal_files_pass_whatever_their_names_are(net: Callable[..., Path], suite: Suite) -> None:
    a, b = net("a.onnx"), net("b.onnx", image="x", scores="y", batch=4)
    code, out, err = suite("parity", str(b), "--against", str(a), "--images", "10")
    assert code == 0, err
    words = "random inputs, of seeds 0, 1 and so on, not 10, since a file has batches of one size alone"
    assert out.startswith(f"{b} against {a}: 12 {words}\n")
    assert "scores         greatest difference 0, which is 0.0e+00 of the greatest value, " in out
    assert "agreement      100 % of 12 rows" in out
    assert "passed         yes" in out


def test_a_wrong_weight_fails_and_its_node_is_named(net: Callable[..., Path], suite: Suite) -> None:
    a, b = str(net("a.onnx")), str(net("b.onnx", wrong=-40.0))
    code, out, _ = suite("parity", b, "--against", a, "--images", "64")
    assert code == 1
    assert "departs first  at node two (Conv): expected " in out
    assert "passed         NO, at most 0.0001 of the greatest value is allowed" in out
    assert f"margins of {a}: number " in out
    assert suite("parity", b, "--against", a, "--images", "8", "--tolerance", "100")[0] == 0


def test_differences_are_counted_by_output_over_its_own_scale() -> None:
    taken = (Input("x", "float32", (2, 3)),)

    def side(change: float, broken: float = 0.0) -> Side:
        def run(values: agreement.Arrays) -> agreement.Arrays:
            (x,) = values
            return [x + change, 100 * x, (x * 0 + broken).astype(np.float32), np.argmax(x, 1)]

        return Side("a", taken, ("rows", "large", "constant", "index"), run)

    batch = {"x": np.array([[1, 2, 4], [4, 2, 0]], np.float32)}
    found = agreement.compare(side(0), side(0.5), iter([batch, batch]), Comparison("rows", of=4))
    assert found.count == 4
    assert found.scale == [4, 400, 0, 2]
    assert found.greatest == [0.5, 0, 0, 0]
    assert found.relative == 0.125
    assert (found.rows, found.same, found.apart) == (4, 4, [])
    assert not found.passed(0.1)
    assert found.passed(0.2)
    assert found.mean == pytest.approx(4 * 3 * 0.5 / (4 * 10) / 400 * 1.0, rel=0.2)
    lost = agreement.compare(side(0), side(0, np.nan), iter([batch]), Comparison("rows"), 2)
    assert lost.broken == {"constant"}
    assert not lost.passed(1.0)


def test_inputs_are_compared_for_a_minute_where_nobody_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(agreement, "monotonic", lambda: next(clock))
    taken = (Input("x", "float32", (2, 3)),)
    same = Side("a", taken, ("y",), lambda values: values)
    found = agreement.compare(same, same, shared_inputs.random_batches(taken), Comparison("random inputs", of=100))
    assert (found.count, found.by_time) == (6, True)
    assert "6 of 100 random inputs, as many as take 60 s" in agreement.render(found, "a", "b", 1e-4)
    found = agreement.compare(same, same, shared_inputs.random_batches(taken), Comparison("random inputs"), 10)
    assert (found.count, found.by_time) == (10, False)


def test_what_does_not_take_the_same_is_not_compared(net: Callable[..., Path], tmp_path: Path, suite: Suite) -> None:
    other = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "other",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(other, tmp_path / "other.onnx")
    code, _, err = suite("parity", str(net("a.onnx")), "--against", str(tmp_path / "other.onnx"))
    assert code == 2
    assert "takes x 8x5 and " in err
    assert "takes image 8x3x8x8: not the same" in err


def test_images_and_arrays_of_a_user_are_inputs(
    net: Callable[..., Path], tmp_path: Path, suite: Suite, picture: Callable[..., Path]
) -> None:
    a, b = str(net("a.onnx")), str(net("b.onnx"))
    for number in range(5):
        picture(tmp_path / "photos" / f"{number}.png", number)
    code, out, err = suite("parity", b, "--against", a, "--data", str(tmp_path / "photos"))
    assert code == 0, err
    assert f"5 images of {tmp_path / 'photos'}\n" in out
    assert "normalised by those of ImageNet" in err
    np.savez(tmp_path / "values.npz", image=np.ones((3, 3, 8, 8), np.float32))
    code, out, err = suite("parity", b, "--against", a, "--data", str(tmp_path / "values.npz"))
    assert code == 0, err
    assert f": 3 inputs of {tmp_path / 'values.npz'}\n" in out
    assert suite("parity", b, "--against", a, "--data", str(tmp_path / "none"))[0] == 2
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    code, _, err = suite("parity", b, "--against", a, "--data", str(tmp_path / "photos"))
    assert code == 2
    assert "broken.png: cannot be read as an image" in err


def test_a_file_of_arrays_has_one_for_each_input_and_no_other(
    net: Callable[..., Path], tmp_path: Path, suite: Suite
) -> None:
    a, b = str(net("a.onnx")), str(net("b.onnx", image="x", wrong=-40.0))
    values, array = tmp_path / "values.npz", np.zeros((3, 3, 8, 8), np.float32)
    ask = ("parity", b, "--against", a)

    def refusal(option: str, **arrays: Any) -> str:
        np.savez(values, **arrays)
        code, out, err = suite(*ask, option, str(values))
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    for option in ("--data", "--input"):
        assert f"{values}: nothing here has an input 'foo'; use image or x\n" in refusal(option, foo=array)
        assert f"{values}: nothing here has an input 'foo'" in refusal(option, image=array, foo=array)
        assert f"{values}: holds no array; give one for each input, by its name" in refusal(option)
        said = refusal(option, image=array, x=array)
        assert f"{values}: has arrays by the names of both, and x would not be used; give only those of one" in said
    assert suite(*ask, "--input", "foo=1x3x8x8")[2].endswith(
        "--input: nothing here has an input 'foo'; use image or x\n"
    )
    for name in ("image", "x"):  # by either's name, and of zeros the difference is none
        np.savez(values, **{name: array})
        code, out, err = suite(*ask, "--data", str(values))
        assert code == 0, err
        assert f": 3 inputs of {values}\nscores         greatest difference 0, " in out


def test_an_input_without_an_array_is_named(tmp_path: Path, suite: Suite) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5]) for name in ("x", "mask", "y")]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "mask"], ["y"])], "g", ends[:2], ends[2:])
    path = str(tmp_path / "net.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    np.savez(tmp_path / "values.npz", x=np.ones((2, 5), np.float32))
    code, _, err = suite("parity", path, "--against", path, "--data", str(tmp_path / "values.npz"))
    assert code == 2
    assert f"values.npz: has no array for input 'mask' of {path}, only x; give one for each input (x, mask)\n" in err


def test_as_many_inputs_are_compared_as_were_asked_for(
    net: Callable[..., Path], tmp_path: Path, suite: Suite, picture: Callable[..., Path]
) -> None:
    ask = ("parity", str(net("a.onnx")), "--against", str(net("b.onnx")))
    out = suite(*ask, "--images", "20")[1]
    assert ": 20 random inputs, of seeds 0, 1 and so on\n" in out
    assert "over 200 values\nagreement      100 % of 20 rows" in out
    np.savez(tmp_path / "values.npz", image=np.ones((5, 3, 8, 8), np.float32))
    assert ": 2 inputs of " in suite(*ask, "--images", "2", "--data", str(tmp_path / "values.npz"))[1]
    for number in range(11):
        picture(tmp_path / "photos" / f"{number}.png", number)
    out = suite(*ask, "--images", "10", "--data", str(tmp_path / "photos"))[1]
    assert f": 10 of 11 images of {tmp_path / 'photos'}\n" in out


def test_what_is_no_number_in_both_is_counted_and_does_not_pass_alone(
    net: Callable[..., Path], tmp_path: Path, suite: Suite
) -> None:
    a, b, c = str(net("a.onnx")), str(net("b.onnx")), str(net("c.onnx", wrong=np.nan))
    image = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)

    def parity(file: str, against: str, no_numbers: int) -> tuple[int, str]:
        image[:no_numbers] = np.nan
        np.savez(tmp_path / "values.npz", image=image)
        return suite("parity", file, "--against", against, "--data", str(tmp_path / "values.npz"))[:2]

    assert parity(c, a, 0)[0] == 1
    code, out = parity(c, c, 0)
    assert code == 0
    assert "scores         4 of 40 values are not finite in both\n" in out
    assert "agreement" not in out  # each row has what is no number
    code, out = parity(b, a, 1)
    assert code == 0
    assert "scores         10 of 40 values are not finite in both\n" in out
    assert "agreement      100 % of 3 rows" in out
    code, out = parity(b, a, 4)
    assert code == 1
    assert "scores         nothing compared: no value is a finite number in both\n" in out
    assert "scores         40 of 40 values are not finite in both\n" in out
    assert out.endswith("passed         NO, since no value was compared\n")
    assert "departs" not in out


def test_what_is_not_finite_in_another_way_fails() -> None:
    taken = (Input("x", "float32", (1, 2)),)

    def side(last: float) -> Side:
        return Side("a", taken, ("y",), lambda values: [np.array([[1.0, last]], np.float32)])

    batch = {"x": np.zeros((1, 2), np.float32)}
    for first, second, passes in ((np.inf, np.inf, True), (np.inf, -np.inf, False), (np.nan, np.inf, False)):
        found = agreement.compare(side(first), side(second), iter([batch]), Comparison("rows"), 1)
        assert found.passed(1e-4) == passes
        assert found.broken == (set() if passes else {"y"})
        assert (found.values, found.not_finite) == (1, [1 if passes else 0])


def test_an_image_is_brought_to_the_form_that_the_model_asks_for(tmp_path: Path) -> None:
    from suite.export.zoo import Network
    from suite.inference import pictures

    Image.new("RGB", (64, 64), (255, 0, 51)).save(tmp_path / "a.png")
    described = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.2), "std": (0.5, 0.25, 0.1)}
    (batch,) = pictures.batches_of_files(Network("x", None, False, {}, described), [tmp_path / "a.png"], (4, 3, 32, 32))
    assert batch.shape == (1, 3, 32, 32)
    assert batch[0, :, 16, 16] == pytest.approx([1.0, -2.0, 0.0], abs=1e-6)


def test_a_file_of_this_project_is_compared_for_a_minute_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "MINUTE", 0.001)
    with networks.find_network("resnet20_relu_bn") as of:
        deploy.export(of, tmp_path / "net.onnx", "fp32", "cpu", False, {})
    told: list[str] = []
    found = deploy.parity(str(tmp_path / "net.onnx"), None, {}, None, "cpu", lambda d, t, note: told.append(note))
    assert found["images"] == deploy.PROBED
    assert f"{deploy.PROBED} of 1000 images, as many as take a minute" in found["notes"][-1]
    assert {"load resnet20_relu_bn", "images"} <= set(told)


def test_random_values_are_given_by_seed() -> None:
    taken = (Input("x", "float32", (2, 3)),)
    first, second = (next(shared_inputs.random_batches(taken))["x"] for _ in range(2))
    assert np.array_equal(first, second)
    assert feeds.random_values(taken, 0)["x"].dtype == np.float32


def test_a_file_that_says_nothing_of_its_model_asks_for_the_other_one(net: Callable[..., Path], suite: Suite) -> None:
    code, _, err = suite("parity", str(net("a.onnx")))
    assert code == 2
    assert "--against" in err
    with pytest.raises(InputError):
        subjects.find(str(net("a.onnx").with_name("none.onnx")))
