"""Applying a plan: in memory, with fitted layers, by width, from disk to disk.

- apply: applies a plan to a model in memory
- fit: rule `fit`: a merged layer's last projection solved by least squares
- stored: tensors in safetensors files: where they are, reading one, copying bytes
- stream: merging from disk to disk, one parameter at a time
- width: width pruning: attention heads (whole key-value groups) and MLP channels, the same number in every layer
- rules/: merge rules, one file each
"""
