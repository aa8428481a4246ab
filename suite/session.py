"""A session of ONNX Runtime that runs on the provider that was asked for, and on no
other."""

import os
import re
from collections.abc import Callable
from typing import Any

from suite.errors import first_line
from suite.registry import PROVIDERS


def load_onnxruntime() -> Any:
    """The module onnxruntime, its default logger as quiet as the sessions here: the
    CUDA provider writes to it, in hundreds of lines, which of cuDNN's plans do not fit.
    It is told to report nothing to its makers, which versions that read the environment
    know already from `suite/__init__.py`."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def open_session(
    source: str | bytes,
    provider: str,
    threads: int,
    tf32: bool = False,
    cuda_graph: bool = False,
    configure: Callable[[Any], None] = lambda options: None,
) -> Any:
    """Load a graph.

    Args:
        source: the ONNX file's name, or its content.
        provider: "cpu", "cuda" or "tensorrt".
        threads: of the session's pool.
        tf32: whether a GPU may multiply float32 in TF32. TensorRT cannot be told: see
            `uses_tf32`.
        cuda_graph: whether the CUDA provider keeps its kernels as a CUDA graph, which
            needs buffers that stay in place.
        configure: changes the `SessionOptions`.

    Raises:
        RuntimeError: the provider is not in this build, cannot be loaded here or cannot
            run all of the graph, or the source is no graph; one line.
    """
    ort = load_onnxruntime()
    name = PROVIDERS[provider].name
    if name not in ort.get_available_providers():
        raise RuntimeError(f"this build of ONNX Runtime has no {name}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised below, in one line
    if provider != "cpu":
        # With CUDA and cuDNN from pip, their libraries have to be loaded before the provider's own.
        ort.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    configure(options)
    told = provider_options(provider, tf32, cuda_graph)
    try:
        session = ort.InferenceSession(source, options, providers=[(name, told)])
    except Exception as error:  # ONNX Runtime's own have no base but this
        raise RuntimeError(f"{name}: {_in_plain_words(error) or first_line(error)}") from None
    session.disable_fallback()
    if session.get_providers()[0] != name:
        raise RuntimeError(f"{name} cannot be loaded here; ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def _in_plain_words(error: Exception) -> str | None:
    """What ONNX Runtime says of a file that is newer than itself or cut short, without
    the signatures of its functions; None of anything else."""
    said, version = str(error), load_onnxruntime().__version__
    newer = f"this onnxruntime, {version}, reads up to"
    remedy = "export the file with an older one, or install a newer onnxruntime"
    if found := re.search(r"Opset (\d+) is under development.* domain (\S+) is till opset (\d+)", said, re.DOTALL):
        opset = "opset" if found[2] == "ai.onnx" else f"opset of {found[2]}"
        return f"{opset} {found[1]}; {newer} {found[3]}: {remedy}"
    if found := re.search(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)", said):
        return f"IR version {found[1]}; {newer} {found[2]}: {remedy}"
    if found := re.search(r"External initializer: (.+) offset: \d+ size to read: \d+ given file_length: \d+", said):
        return f"the file that its weight {found[1]!r} lies in is shorter than it says: copy or export it again"
    return None


def provider_options(provider: str, tf32: bool, cuda_graph: bool = False) -> dict[str, str]:
    """What a provider is told: for CUDA precision, the search for a convolution's
    algorithm, pinned so that figures compare, and to keep channels last, where its
    convolutions are faster."""
    if provider == "cuda":
        told = {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": str(int(tf32)), "prefer_nhwc": "1"}
        return told | ({"enable_cuda_graph": "1"} if cuda_graph else {})
    return {}


def uses_tf32(provider: str) -> bool:
    """Whether a session that was opened without TF32 uses it all the same, as TensorRT
    does unless the environment has NVIDIA_TF32_OVERRIDE=0."""
    return provider == "tensorrt" and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
