"""The command line: a module for each group of commands, and the options that several
of them take.

Imports every room. Nothing imports it but `python -m suite`.
"""
