"""The benchmark suite: train, export, check, time and tabulate the networks of the
paper."""
