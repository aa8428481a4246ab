"""Train and test one or several networks: the step, its kernels and memory,
checkpoints, and what makes a run fail.

Imports data, the tables and the leaves. The grid trains through it; results read its
checkpoints.
"""
