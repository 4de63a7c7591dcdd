"""How similar layers are: tensors in, numbers out.

- blocks: blocks and bands of similar layers, and sentences about them and about a pair
- gram: Gram matrices of all layers, their centring and products
- layers: the similarity of all layer pairs of a model, summed over batches of text
- measure: what to measure: metric, layer output or update, kind of sample, text; imports no torch
- parts: how much a layer's attention and its MLP each change the hidden state
- metrics/: similarity metrics, one file each
"""
