"""Networks of timm, and of others who register theirs with it: found, exported, checked and timed."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file

from suite.errors import InputError
from suite.export import zoo
from suite.inference import contest, latency, model_files
from suite.schema.outcomes import PeakResult

Suite = Callable[..., tuple[int, str, str]]

# A network with each thing that an export must cope with: a BatchNorm that folds and one that does not, and a pool that
# is rewritten.
MODULE = """
import torch
from timm.models import register_model
from torch import nn

default_cfgs = {"small_net": {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "classifier": "fc"}}


class Small(nn.Module):
    def __init__(self, num_classes=7, in_chans=3):
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.conv1, self.bn1 = nn.Conv2d(in_chans, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.bn2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, 1, 1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc((x + torch.relu(self.conv2(self.bn2(x)))).mean((2, 3), keepdim=True).flatten(1))


@register_model
def small_net(pretrained=False, num_classes=7, in_chans=3, **of_timm):
    return Small(num_classes, in_chans)
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the module above, in which Python looks for modules."""
    folder: Path = tmp_path_factory.mktemp("modules")
    (folder / "small_nets.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def _short(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "QUICK", latency.Protocol(2, 0.0, 5, 50, 1))
    monkeypatch.setattr(latency, "measure_peak", lambda provider, threads, precision: PeakResult(flops=1e12))


IMPORT = ("--import", "small_nets")


def test_a_model_that_is_registered_elsewhere_is_exported_and_checked(tmp_path: Path, suite: Suite) -> None:
    out = tmp_path / "net.onnx"
    code, said, err = suite("export", "small_net", str(out), *IMPORT)
    assert code == 0, err
    model = onnx.load(out)
    operators = [node.op_type for node in model.graph.node]
    assert (operators.count("BatchNormalization"), operators.count("GlobalAveragePool")) == (1, 1)
    assert "1 BatchNorm cannot be folded" in err
    assert "mean as pool 1" in said
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    stated = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(stated["mean"]) == [0.5, 0.5, 0.5]
    code, said, err = suite("parity", str(out), "--against", "small_net", *IMPORT, "--images", "16")
    assert code == 0, err
    assert "logits         greatest difference" in said
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight")
    weight.raw_data = (3 * onnx.numpy_helper.to_array(weight)).tobytes()
    onnx.save(model, out)
    code, said, err = suite("parity", str(out), "--against", "small_net", *IMPORT, "--images", "16")
    assert code == 1
    assert "departs first  at node conv2 (Conv)" in said


def test_a_model_is_timed_in_all_runtimes_and_precisions(suite: Suite) -> None:
    options = ("--runtimes", "onnxruntime,torch", "--precisions", "fp32,int8", "--quick", "--format", "json")
    code, out, err = suite("time", "small_net", *IMPORT, *options, "--batch-sizes", "2")
    assert code == 0, err
    found = json.loads(out)
    rows = [(row["runtime"], row["precision"], row["provider"]) for row in found["rows"]]
    onnxruntime = [("onnxruntime", form, "CPUExecutionProvider") for form in ("fp32", "int8")]
    assert rows == [*onnxruntime, ("torch", "fp32", "cpu")]
    macs = 2 * (64 * 16 * 27 + 64 * 16 * 144 + 16 * 7)
    for row in found["rows"]:
        assert row["peak_percent"] == pytest.approx(100 * 2 * macs / (1e-3 * row["median_ms"]) / 1e12)
    assert "torch is timed in float32 alone, on cpu and cuda" in found["remarks"]


def test_weights_of_a_file_say_how_many_classes_there_are(tmp_path: Path, suite: Suite) -> None:
    zoo.import_modules(["small_nets"])
    torch.manual_seed(1)
    net = timm.create_model("small_net", num_classes=3).eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    weights = ("--weights", str(tmp_path / "net.safetensors"))
    code, _, err = suite("export", "small_net", str(tmp_path / "net.onnx"), *IMPORT, *weights)
    assert code == 0, err
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32)
    (logits,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": images})
    with torch.no_grad():
        assert logits == pytest.approx(net(torch.from_numpy(images)).numpy(), abs=1e-5)
    code, said, err = suite("parity", str(tmp_path / "net.onnx"), *weights, *IMPORT, "--images", "9")
    assert code == 0, err
    assert said.startswith(f"{tmp_path / 'net.onnx'} against small_net with {tmp_path / 'net.safetensors'}: 9 random")
    others = {name: value + 0.5 if name == "conv2.bias" else value for name, value in net.state_dict().items()}
    save_file(others, tmp_path / "others.safetensors")
    ask = ("parity", str(tmp_path / "net.onnx"), "--weights", str(tmp_path / "others.safetensors"), *IMPORT)
    code, said, _ = suite(*ask, "--images", "9")
    assert code == 1
    assert "departs first  at node conv2 (Conv)" in said
    save_file({"fc.weight": net.state_dict()["fc.weight"]}, tmp_path / "net.safetensors")
    code, _, err = suite("export", "small_net", str(tmp_path / "other.onnx"), *IMPORT, *weights)
    assert code == 2
    assert "not weights of small_net: bn1.bias (16) is missing" in err
    assert not (tmp_path / "other.onnx").exists()


def test_weights_that_are_to_be_compared_with_a_file_need_a_model_that_is_known(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.import_modules(["small_nets"])
    out, weights = tmp_path / "net.onnx", tmp_path / "net.safetensors"
    network = zoo.Network("small_net", None, False, {"in_chans": 1}, {"input_size": (1, 16, 16)})
    save_file(zoo.build(network).state_dict(), weights)
    model_files.export("small_net", network, out, "fp32", "cpu", weights=weights)
    ask = ("parity", str(out), "--weights", str(weights), "--images", "2")
    code, said, err = suite(*ask)  # by the arguments that the file states
    assert code == 0, err
    assert "passed         yes" in said

    def refusal(*arguments: str) -> str:
        code, out, err = suite(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    assert f"{out}: made from weights that were given, which --weights FILE.safetensors|FOLDER names" in refusal(
        "parity", str(out), "--import", "small_nets"
    )
    assert "--weights and --against cannot be combined; give one of them" in refusal(*ask, "--against", "resnet18")
    assert "--model is only for --weights FILE.safetensors" in refusal("parity", str(out), "--model", "resnet18")
    assert f"{weights}: holds weights alone; export MODEL OUT.onnx" in refusal(
        "parity", str(out), "--against", str(weights)
    )
    assert "no such file" in refusal("parity", str(out), "--weights", str(tmp_path / "none.safetensors"))
    assert "--model 'resnot18': neither this project nor timm has it" in refusal(*ask, "--model", "resnot18")
    content = onnx.load(out)
    for stated, what in (
        ({"model": "/etc"}, "its model '/etc': neither this project nor timm has it"),
        (
            {"model": "small_net", "arguments": '{"checkpoint_path": "/etc/passwd"}'},
            "'checkpoint_path' is not allowed; use the model's own",
        ),
        ({"model": "small_net", "arguments": "[]"}, "its arguments are not those of a model"),
        ({}, "does not say which model it was exported from; --model MODEL names it"),
    ):
        onnx.helper.set_model_props(content, stated)
        onnx.save(content, out)
        assert what in refusal(*ask)
    network = zoo.from_name("small_net")
    save_file(zoo.build(network).state_dict(), weights)
    model_files.export("small_net", network, out, "fp32", "cpu", weights=weights)
    content = onnx.load(out)
    del content.metadata_props[:]
    onnx.save(content, out)
    assert suite(*ask, "--model", "small_net")[0] == 0


def test_weights_that_cannot_be_read_are_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no weights at all")
    for name, why in (("bad.safetensors", ".+"), ("none.safetensors", "no such file"), ("", "is a folder")):
        with pytest.raises(InputError, match=f"cannot be read as weights in safetensors: {why}$"):
            zoo.require_weights(tmp_path / name)
    text = "import sys; from suite.export import zoo; from pathlib import Path; zoo.require_weights(Path(sys.argv[1]))"
    text = f"import contextlib\nwith contextlib.suppress(ValueError):\n    {text}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text, "none"], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_folder_in_timms_layout_is_a_network_of_which_nothing_is_run(tmp_path: Path) -> None:
    zoo.import_modules(["small_nets"])
    network = zoo.from_name("small_net")
    net = zoo.build(network)
    zoo.save(network, net, tmp_path)
    again = zoo.from_folder(tmp_path)
    assert (again.model, again.input_size, again.ours) == ("small_net", (3, 16, 16), False)
    for name, value in zoo.build(again).state_dict().items():
        assert torch.equal(value, net.state_dict()[name])
    content = json.loads((tmp_path / "config.json").read_bytes())
    for change, said in (
        ({"architecture": "hf-hub:someone/model"}, "timm has no model 'hf-hub:someone/model'"),
        (
            {"model_args": {"checkpoint_path": "/etc/passwd"}},
            "model_args: 'checkpoint_path' is not allowed; use the model's own",
        ),
        ({"model_args": {"act_layer": {"a": 1}}}, "model_args: 'act_layer' is not allowed; use the model's own"),
        ({"model_args": {"num_classes": "x"}}, "timm cannot make it: TypeError"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 16]}}, "its input_size is"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | change))
        with pytest.raises(InputError, match=said):
            zoo.load(tmp_path)


def test_a_module_that_cannot_be_imported_is_one_line(modules: Path, suite: Suite) -> None:
    (modules / "wrong_nets.py").write_text("raise RuntimeError('no luck\\nat all')")
    code, out, err = suite("export", "small_net", "net.onnx", "--import", "wrong_nets")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--import wrong_nets: cannot be imported: RuntimeError: no luck at all" in err


def test_a_forward_that_raises_is_one_line(tmp_path: Path, suite: Suite) -> None:
    text = MODULE.replace("small_net", "failing_net").replace(
        "x = torch", 'raise TypeError("no\\nway")\n        x = torch'
    )
    (tmp_path / "failing.py").write_text(text)
    module = ("--import", str(tmp_path / "failing.py"))
    for call in (("export", "failing_net", str(tmp_path / "net.onnx")), ("explain", "failing_net")):
        code, out, err = suite(*call, *module)
        assert (code, out) == (2, "")
        last = err.splitlines()[-1]
        assert last == "error: failing_net: its forward fails on float32 of 2x3x16x16: TypeError: no way"
    assert not (tmp_path / "net.onnx").exists()


def test_any_model_is_exported_in_int8_and_float16(tmp_path: Path, suite: Suite, picture: Callable[..., Path]) -> None:
    for number in range(3):
        picture(tmp_path / "photos" / f"{number}.png", number)
    out = tmp_path / "net.onnx"
    data = ("--data", str(tmp_path / "photos"))
    code, said, err = suite("export", "small_net", str(out), *IMPORT, "--precision", "int8", *data)
    assert code == 0, err
    assert "3 images given" in said
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(out).graph.node}
    says_what_was_written(said, out)
    code, said, err = suite("export", "small_net", str(out), *IMPORT, "--precision", "fp16")
    assert code == 0, err
    says_what_was_written(said, out)
    assert {tensor.data_type for tensor in onnx.load(out).graph.initializer} >= {onnx.TensorProto.FLOAT16}


def share(said: str, of: str) -> float:
    assert said.endswith(of)
    return float(said.removesuffix(of))


def says_what_was_written(said: str, path: Path) -> None:
    """See whether what `export` prints is of the file that it wrote, not of the float32 file before it."""
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in said.splitlines())
    counts = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert lines["operators"] == ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    assert lines["bytes"] == str(path.stat().st_size)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (actual,) = onnxruntime.InferenceSession(path).run(None, {"input": images.numpy()})
    with torch.no_grad():
        expected = zoo.build(zoo.from_name("small_net"))(images).numpy()
    apart = np.abs(actual - expected).max() / np.abs(expected).max()
    assert apart > 1e-5
    assert share(lines["difference from torch"], " of the greatest output") == pytest.approx(apart, rel=1e-3)
    assert 1e-5 < share(lines["difference from fp32"], " of the outputs, root mean square over root mean square") < 0.1


# One of each family, small ones; how far their exports are from torch is at most 1e-4 of scale.
FAMILIES = (
    *("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "efficientnet_b0", "convnext_atto", "regnetx_002"),
    *("mobilenetv2_100", "mixer_s32_224", "repvgg_a0", "ghostnet_100", "mobilevit_xxs", "edgenext_xx_small", "dla34"),
    *("levit_128s", "resmlp_12_224", "vgg11", "pvt_v2_b0", "efficientvit_b0", "poolformer_s12", "densenet121"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_twenty_families_are_exported_within_rounding(
    name: str, tmp_path: Path, suite: Suite, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("nightly"):
        pytest.skip("--nightly: half a minute each")
    network = zoo.from_name(name)
    net = disturbed(zoo.build(network))
    (tmp_path / "weights").mkdir()
    zoo.save(network, net, tmp_path / "weights")
    out, weights = str(tmp_path / "net.onnx"), f"local-dir:{tmp_path / 'weights'}"
    code, _, err = suite("export", weights, out)
    assert code == 0, err
    code, said, err = suite("parity", out, "--against", weights, "--images", "4", "--tolerance", "1e-4")
    assert code == 0, said + err
    assert "shows nothing" not in said


def disturbed(net: torch.nn.Module) -> torch.nn.Module:
    """Change weights and statistics at random: of some networks the last layer is zero at first, and BatchNorm does
    nothing."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("running_var"):
                value.mul_(0.5 + torch.rand(value.shape, generator=random))
            elif value.is_floating_point():
                value.add_(0.02 * torch.randn(value.shape, generator=random))
    return net.eval()


def test_what_a_model_gives_may_have_several_parts() -> None:
    from suite.inference.in_torch import tensors

    parts: Any = {"a": torch.ones(1), "b": (torch.zeros(2), [torch.ones(3)])}
    assert [len(each) for each in tensors(parts)] == [1, 2, 3]


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zoo.build(zoo.from_name("resnet20_relu_bn"))
    assert torch.equal(torch.rand(3), expected)
