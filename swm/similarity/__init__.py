"""How similar layers are: tensors in, numbers out.

- blocks: blocks of similar layers, and a sentence about a pair
- gram: Gram matrices of all layers, their centring and products
- layers: the similarity of all layer pairs of a model, summed over batches of text
- measure: what to measure: metric, layer output or update, kind of sample, text; imports no torch
- metrics/: similarity metrics, one file each
"""
