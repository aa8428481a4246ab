"""The paper's experiments as plain data: table1.toml to table4.toml, and the one loader
that reads them.

Imports leaves alone. Every other room may import it.
"""
