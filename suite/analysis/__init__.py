"""What trained networks look like inside: the paper's Table 1, Figures 2 and 3, and its
propositions.

Imports data, the leaves and `models`. The grid and the report use its numbers.
"""
