"""What tests of the Triton kernels share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def in_process(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Call a function of the test's file, by its name, in a new process with these environment variables."""
    module = request.module

    def call(function: str, **variables: str) -> None:
        folder = str(Path(module.__file__).parent)
        code = f"import sys; sys.path.insert(0, {folder!r}); import {module.__name__} as t; t.{function}()"
        alone = {name: value for name, value in os.environ.items() if not name.startswith("TRITON")}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=alone | variables, capture_output=True, text=True, timeout=480
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return call
