"""ONNX files in OpenVINO, on the CPU: one stream, for the least latency.

No process that goes on afterwards loads OpenVINO: beside torch it may crash when one of
its processes that read images is killed. So each file is loaded in a process of its
own, to be timed as in every runtime, and to be checked (`InOwnProcess`).
"""

import multiprocessing
import sys
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import numpy as np

from suite.errors import first_line
from suite.inference.feeds import Arrays, Values
from suite.inference.loaded import Loaded, Request
from suite.inference.processes import PipedProcess

# What a compiled model is asked for, and then what its record has: as many threads as the others have, all for one run.
_HINTS = ("PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT", "ENABLE_CPU_PINNING")
_FLOATS = {"f32": "fp32", "f16": "fp16"}


def load_openvino() -> Any:
    """The module openvino, without the package by which it reports each import to its
    makers, from a process that may outlive this one."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # which is what stops an import
    import openvino

    return openvino


def import_library() -> None:
    """Import OpenVINO, and read what the machine has."""
    load_openvino().Core()


def load(request: Request, checked: bool) -> Loaded:
    """A compiled model, in a process of its own if it is to be checked; see
    `suite.inference.loaded.load`. Of the runtime "openvino" it computes in float32
    whatever the file leaves in that; "openvino.default" is not told a precision, and
    takes bfloat16 where the CPU has it."""
    return InOwnProcess(request) if checked else _compile(request, checked)


def _compile(request: Request, checked: bool) -> Loaded:
    core = load_openvino().Core()
    told: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    told["INFERENCE_NUM_THREADS"] = request.threads
    if request.runtime == "openvino":
        told["INFERENCE_PRECISION_HINT"] = "f32"
    start = perf_counter()
    try:
        model = core.read_model(request.path)
        if not checked:
            # For the one shape that is timed, as a network that torch compiles.
            model.reshape({each.name: list(each.shape) for each in request.taken(_channels(model))})
        compiled = core.compile_model(model, "CPU", told)
    except Exception as error:  # OpenVINO's own have no base but this
        raise RuntimeError(f"OpenVINO: {_why(error)}") from None
    return InOpenVino(compiled, perf_counter() - start)


class InOpenVino(Loaded):
    """A compiled model; each input that is held has a request of its own, whose tensors
    stay in place."""

    def __init__(self, compiled: Any, load_seconds: float) -> None:
        self._compiled, self.load_seconds = compiled, load_seconds
        self.provider, self.nodes = ", ".join(compiled.get_property("EXECUTION_DEVICES")), {}
        self.outputs = tuple(output.any_name for output in compiled.outputs)
        self.channels = _channels(compiled)
        found = {name: compiled.get_property(name) for name in _HINTS}
        precision = found["INFERENCE_PRECISION_HINT"].get_type_name()
        self.computes = _FLOATS.get(precision, precision)
        about = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
        work = [each for each in about if each["layerType"].astype(str) not in ("Const", "Input", "Output")]
        ran = Counter(each["runtimePrecision"].astype(str) for each in work)
        self.settings = {name: _word(value) for name, value in found.items()}
        self.settings |= {"INFERENCE_PRECISION_HINT": precision, "runtimePrecision": dict(sorted(ran.items()))}

    def hold(self, feeds: Sequence[Values]) -> None:
        """Give each request its input."""
        self._requests = [self._request(feed) for feed in feeds]

    def run(self, index: int) -> None:
        """One inference; the result is there when it returns."""
        self._requests[index].infer()

    def results(self, index: int) -> Arrays:
        """Copies of what the request holds."""
        return _arrays(self._requests[index])

    def compute(self, values: Values) -> Arrays:
        """By a request for these inputs alone."""
        request = self._request(values)
        request.infer()
        return _arrays(request)

    def _request(self, values: Values) -> Any:
        openvino = load_openvino()
        request = self._compiled.create_infer_request()
        for name, array in values.items():
            request.set_tensor(name, openvino.Tensor(np.ascontiguousarray(array)))
        return request


class InOwnProcess(Loaded):
    """A compiled model in a process that ends with this object."""

    def __init__(self, request: Request) -> None:
        self._process = PipedProcess(multiprocessing.get_context("spawn"), serve, request)
        weakref.finalize(self, self._process.close)
        vars(self).update(self._process.wait())

    def hold(self, feeds: Sequence[Values]) -> None:
        """Keep the inputs there."""
        self._process.ask(("hold", feeds))

    def run(self, index: int) -> None:
        """One inference there."""
        self._process.ask(("run", index))

    def results(self, index: int) -> Arrays:
        """Copied from there."""
        return self._arrays("results", index)

    def compute(self, values: Values) -> Arrays:
        """Of inputs that are copied there, and results that are copied back."""
        return self._arrays("compute", values)

    def _arrays(self, method: str, argument: Any) -> Arrays:
        found: Arrays = self._process.ask((method, argument))["found"]
        return found


def serve(pipe: Any, request: Request) -> None:
    """What the process of an `InOwnProcess` does: load a model to be checked, and call
    its methods until the pipe is closed."""
    try:
        loaded = _compile(request, checked=True)
        pipe.send({name: getattr(loaded, name) for name in Loaded.__annotations__})
        with suppress(EOFError):
            while True:
                method, argument = pipe.recv()
                pipe.send({"found": getattr(loaded, method)(argument)})
    except Exception as error:  # whatever it is, the other process is to hear of it
        pipe.send({"error": first_line(error)})


def _channels(model: Any) -> int:
    """Of the images that it takes; 0 if it takes something else."""
    if not model.inputs:
        return 0
    shape = model.inputs[0].partial_shape
    images = shape.rank.is_static and len(shape) == 4 and shape[1].is_static
    return int(shape[1].get_length()) if images else 0


def _arrays(request: Any) -> Arrays:
    return [np.array(tensor.data) for tensor in request.output_tensors]


def _word(value: Any) -> str:
    return value.name if hasattr(value, "name") else str(value)


def _why(error: Exception) -> str:
    """The last line of an exception, which says what is wrong; those before say where
    in OpenVINO that was."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return first_line(RuntimeError(lines[-1])) if lines else first_line(error)
