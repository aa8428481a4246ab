"""The types of a record's two halves: what each stage is asked for, and what it finds.

Imports nothing of the suite. Every other room but the tables may import it.
"""
