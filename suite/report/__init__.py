"""Records as tables, figures, plots, verdicts on the paper's claims and one HTML page.

Imports every room below it, but not the grid. The command line alone imports it.
"""
