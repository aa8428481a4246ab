"""A table as stages, and whoever does them: plan, estimate, run, claims, workers, Ray,
Slurm and status.

Imports every room below it, but not the report. The command line alone imports it.
"""
