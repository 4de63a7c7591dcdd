"""Merge rules, one file each.

- rdsc: the formula printed in the paper; replace: what its released code computes; mean: the average
- keep_first, keep_last: one of the window's layers as it is
- fit: the first layer, its last projection solved on text
"""
