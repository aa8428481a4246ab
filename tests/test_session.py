"""A session is on the provider that was asked for, or there is none."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from suite.inference import latency
from suite.registry import PROVIDERS
from suite.session import open_session, provider_options, uses_tf32

GPUS = ["cuda", "tensorrt"]


def graph() -> bytes:
    """One multiplication."""
    value = helper.make_tensor_value_info
    node = helper.make_node("Mul", ["x", "x"], ["y"])
    made = helper.make_graph([node], "mul", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


class Fallen:
    """What ONNX Runtime gives where a provider's libraries are missing and nothing forbids it: a session on the CPU."""

    def __init__(self, source: bytes, options: Any, providers: Any) -> None:
        self.options, self.providers = options, providers

    def disable_fallback(self) -> None:
        pass

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


@pytest.fixture
def whole_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime says that it was built with all providers, as its package for GPUs does on every machine."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [each.name for each in PROVIDERS.values()])


def test_the_cpu_runs_with_as_many_threads_as_asked_for() -> None:
    session = open_session(graph(), "cpu", 2)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize("provider", GPUS)
def test_a_build_without_the_provider_is_an_error(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match=f"^this build of ONNX Runtime has no {PROVIDERS[provider].name}$"):
        open_session(graph(), provider, 1)


@pytest.mark.usefixtures("whole_build")
@pytest.mark.parametrize("provider", GPUS)
def test_a_session_that_fell_back_to_the_cpu_is_an_error(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    with pytest.raises(RuntimeError, match=f"{PROVIDERS[provider].name} cannot be loaded here; .* fell back to CPU"):
        open_session(graph(), provider, 1)


@pytest.mark.usefixtures("whole_build")
@pytest.mark.parametrize("provider", GPUS)
def test_a_session_for_a_gpu_lets_no_node_run_on_the_cpu(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any]] = []

    def opened(source: bytes, options: Any, providers: Any) -> Fallen:
        asked.append((options, providers))
        fallen = Fallen(source, options, providers)
        monkeypatch.setattr(fallen, "get_providers", lambda: [PROVIDERS[provider].name], raising=False)
        return fallen

    monkeypatch.setattr(ort, "InferenceSession", opened)
    open_session(graph(), provider, 1)
    ((options, providers),) = asked
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert [name for name, _ in providers] == [PROVIDERS[provider].name]


@pytest.mark.parametrize("provider", GPUS)
def test_the_package_for_gpus_without_their_libraries_is_an_error_of_one_line(provider: str) -> None:
    if PROVIDERS[provider].name not in ort.get_available_providers() or latency.why_unavailable(provider) is None:
        pytest.skip("this build lacks the provider, or this machine has what it needs")
    with pytest.raises(RuntimeError, match=PROVIDERS[provider].name) as caught:
        open_session(graph(), provider, 1)
    assert "\n" not in str(caught.value)


def test_cuda_searches_for_the_fastest_convolution_keeps_channels_last_and_is_told_of_tf32() -> None:
    told = {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "1"}
    assert provider_options("cuda", tf32=False) == told | {"use_tf32": "0"}
    assert provider_options("cuda", tf32=True) == told | {"use_tf32": "1"}
    assert provider_options("cuda", False, cuda_graph=True) == told | {"use_tf32": "0", "enable_cuda_graph": "1"}
    for provider in ("cpu", "tensorrt"):
        assert provider_options(provider, tf32=True, cuda_graph=True) == {}


def test_the_default_logger_is_quiet_from_the_first_session_on(tmp_path: Path) -> None:
    model = onnx.load_from_string(graph())
    model.graph.initializer.append(helper.make_tensor("unread", TensorProto.FLOAT, [1], [0.0]))
    onnx.save(model, tmp_path / "unread.onnx")
    code = (
        "import onnxruntime, sys; from suite.session import open_session\n"
        "if sys.argv[2:]: open_session(sys.argv[1], 'cpu', 1)\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    )

    def said(*more: str) -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "unread.onnx"), *more]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    assert "unread" in said()
    assert "unread" not in said("quiet")


def test_onnxruntime_leaves_no_files_for_reports_to_its_makers(tmp_path: Path) -> None:
    places = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME", "LOCALAPPDATA")}
    others = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = "from suite.session import load_onnxruntime; load_onnxruntime()"
    subprocess.run([sys.executable, "-c", code], env=others | places, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("variable", "used"), [(None, True), ("1", True), ("0", False)])
def test_tensorrt_uses_tf32_unless_the_environment_forbids_it(
    variable: str | None, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    if variable is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", variable)
    assert uses_tf32("tensorrt") is used
    assert not uses_tf32("cuda")


def test_what_is_no_graph_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(RuntimeError, match=r"^CPUExecutionProvider: .*broken\.onnx") as caught:
        open_session(str(path), "cpu", 1)
    assert "\n" not in str(caught.value)
