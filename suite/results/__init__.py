"""Results on disk: records of finished stages, the store that keeps them, locks and their holders, what checks and compares.

Imports rooms below it for what they write. Everything that reads a result reads it through here.
"""
