"""Results on disk: records of finished stages, the store that keeps them, and the commands that check and compare them.

Imports rooms below it for what they write. Everything that reads a result reads it through here.
"""
