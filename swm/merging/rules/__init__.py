"""Merge rules, one file each.

- rdsc: the formula in the paper; replace: what its released code computes; mean: the average
- keep_first, keep_last: one of the window's layers, unchanged
- fit: the first layer, its last projection solved by least squares on text
- scale: the first layer, and a factor for the state after it, measured on text
"""
