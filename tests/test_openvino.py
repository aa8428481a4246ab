"""OpenVINO is tested in a process of its own: where it is loaded beside torch, and a worker process that was forked is
then killed, the whole process may crash, and with it all tests that happen to share it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("openvino_checks.py")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_openvino_computes_is_timed_and_is_named() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "--show-capture=no", str(CHECKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_openvino_is_not_loaded_beside_other_tests() -> None:
    assert "openvino" not in sys.modules
