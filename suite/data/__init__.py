"""Data sets by name, their readers and transforms, and the batches that a network sees.

Imports the tables and the leaves. Training, analysis and inference take their images
from here.
"""
