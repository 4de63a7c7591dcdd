"""Sliding-Window Merging: see which layers of a language model are redundant, merge them, heal and compare.

The stages are plain functions in `swm.stages`; `python -m swm` runs each of them.
"""

__version__ = "0.1.0"
