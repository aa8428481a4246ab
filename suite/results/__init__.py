"""Results on disk: records of finished stages and the store that keeps them, who holds
what, what checks and compares.

Imports rooms below it for what they write. Everything that reads a result reads it
through here.
"""
