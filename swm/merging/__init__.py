"""Applying a plan: in memory, with fitted layers, by width, from disk to disk.

- apply: applies a plan to a model in memory
- fit: rule `fit`: solves the end of a merged layer to reproduce the output of its window
- merged_layer: a layer of a merged model: the layer that it starts from, and what differs
- projection: what can be solved at the end of a layer: a linear map, a norm after it, experts
- scale: rule `scale`: gives the state after a merged layer its former size, folded into the layers above
- solve: solves it so that the layer's output comes near to a target
- stored: tensors in safetensors files: locating, reading and copying them
- stream: merges from disk to disk, one parameter at a time
- width: width pruning: attention heads (whole key-value groups) and MLP channels, the same number in every layer
- rules/: merge rules, one file each
"""
