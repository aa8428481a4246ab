"""Export, parity and latency on the CUDA provider of ONNX Runtime."""

from pathlib import Path

import pytest
import torch

from suite.inference import departure, deploy, latency, networks
from suite.results.samples import to_seconds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
# Short: what is tested is that figures come about, not what they are.
PROTOCOL = latency.Protocol(rounds=2, min_seconds=0, min_runs=3, max_runs=10, warmup=1)


@pytest.fixture(autouse=True)
def _provider() -> None:
    if reason := latency.why_unavailable("cuda"):
        pytest.skip(reason)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", ["resnet20_relu_bn", "resnet20_crelu_bn", "resnet20_crelu_np2"])
def test_an_exported_file_computes_its_network_and_is_timed(model: str, precision: str, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    with networks.find_network(model) as of:
        made = deploy.export(of, file, precision, "cuda", plain=False, data={})
        assert made["form"] == "plain"
        found = departure.check(of.weights, file, networks.test_batches(of, {}, 100), precision, "cuda")
        assert found.passed, found
    for batch_size in (1, 8):
        request = latency.Request("onnxruntime", str(file), "cuda", batch_size, 32, 1, PROTOCOL)
        (answer,) = latency.measure([request])
        assert not isinstance(answer, RuntimeError), answer
        assert all(0 < seconds < 1 for seconds in to_seconds(answer).samples)


def test_torch_is_timed_on_the_same_gpu(tmp_path: Path) -> None:
    with networks.find_network("resnet20_relu_bn") as of:
        (answer,) = latency.measure([latency.Request("torch", str(of.weights), "cuda", 8, 32, 1, PROTOCOL)])
    assert not isinstance(answer, RuntimeError), answer
    assert all(0 < seconds < 1 for seconds in to_seconds(answer).samples)
