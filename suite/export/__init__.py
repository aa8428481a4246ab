"""PyTorch to ONNX: weights that are read, folded and exported, then rewritten and
converted to a reduced precision.

Imports the tables, the leaves and `models`. Inference, the grid and the report import
it.
"""
