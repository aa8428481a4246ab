"""An exported network in ONNX Runtime or torch: does it still compute the network, how
fast is it, and why.

Imports results, training, data, export and below. The grid, the report and the command
line import it.
"""
