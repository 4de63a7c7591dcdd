"""Applying a plan: in memory, with fitted layers, by width, from disk to disk.

- apply: applies a plan to a model in memory
- fit: rule `fit`: solves a merged layer's last projection by least squares
- stored: tensors in safetensors files: locating, reading and copying them
- stream: merges from disk to disk, one parameter at a time
- width: width pruning: attention heads (whole key-value groups) and MLP channels, the same number in every layer
- rules/: merge rules, one file each
"""
