"""What happens within a process that times."""

import threading
import time
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from suite.inference import in_onnxruntime, loaded, timing
from suite.inference.loaded import Protocol

SHORT = Protocol(rounds=2, min_seconds=0.0, min_runs=5, max_runs=50, warmup=1)


def test_a_process_answers_when_its_threads_no_longer_spin() -> None:
    end = time.perf_counter() + 0.2

    def spin() -> None:
        while time.perf_counter() < end:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    timing.fall_asleep()
    assert not thread.is_alive()
    assert time.perf_counter() < end + timing.SPIN


def test_a_burst_stops_on_time_and_on_count() -> None:
    calls: list[int] = []
    assert len(timing.time_burst(calls.append, SHORT)) == 5
    assert calls == [0, 0, 1, 2, 3, 4]  # the first is not counted
    endless = Protocol(rounds=1, min_seconds=60.0, min_runs=7, max_runs=50, warmup=0)
    assert len(timing.time_burst(calls.append, endless)) == 50


class Recorded:
    """A session on the CUDA provider, as far as a machine without one has it: it keeps what it is asked to run."""

    def __init__(self, session: Any, ran: list[tuple[str, Any, int]]) -> None:
        self.session, self.ran = session, ran

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        number = options.get_run_config_entry("gpu_graph_id")
        held = binding.get_outputs()[0]
        self.ran.append((number, held.data_ptr(), held.shape()[0]))
        self.session.run_with_iobinding(binding)


def test_on_cuda_each_input_has_a_graph_and_buffers_that_stay_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, size = helper.make_tensor_value_info, ["batch", 3]
    node = helper.make_node("GlobalAveragePool", ["input"], ["pooled"])
    flat = helper.make_node("Flatten", ["pooled"], ["logits"])
    ends = [value("input", TensorProto.FLOAT, ["batch", 3, 8, 8])], [value("logits", TensorProto.FLOAT, size)]
    graph = helper.make_graph([node, flat], "mean", *ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    ran: list[tuple[str, Any, int]] = []
    asked: list[bool] = []

    def opened(source: str, provider: str, threads: int, cuda_graph: bool = False) -> Recorded:
        asked.append(cuda_graph)
        options = ort.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return Recorded(ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]), ran)

    on_device = ort.OrtValue.ortvalue_from_numpy
    empty = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(in_onnxruntime, "open_deployed", opened)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", lambda array, *device: on_device(array))
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", lambda shape, kind, *device: empty(shape, kind))
    request = loaded.Request("onnxruntime", str(tmp_path / "m.onnx"), "cuda", 2, 8, 1, SHORT)
    _, *bursts, last = timing._serve(request, iter(["load", "burst", "burst", "end"]))
    assert asked == [True]
    # The first run, and then each graph before anything is counted.
    assert [number for number, *_ in ran[:5]] == ["1", "1", "2", "3", "4"]
    places = {(number, place) for number, place, batch in ran if batch == 2}
    assert len(places) == loaded.DISTINCT_INPUTS
    assert len({place for _, place in places}) == loaded.DISTINCT_INPUTS
    assert [len(each["samples"]) for each in bursts] == [5, 5]
    assert last["finite"]
    assert len(last["host_samples"]) == 5
    settings = last["settings"]
    assert (settings["prefer_nhwc"], settings["enable_cuda_graph"], settings["use_tf32"]) == ("1", "1", "1")


def test_inputs_vary_from_run_to_run() -> None:
    calls: list[int] = []
    timing.time_burst(calls.append, SHORT)
    assert len({index % loaded.DISTINCT_INPUTS for index in calls}) == loaded.DISTINCT_INPUTS
