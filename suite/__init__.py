"""The benchmark suite: train, export, check, time and tabulate the networks of the
paper."""

import os

# Read by ONNX Runtime as it is imported: else it prepares to report its use to its makers, whatever it is told later,
# and leaves files in the user's cache and in /tmp for that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
