"""How similar layers are: tensors in, numbers out.

- blocks: blocks of similar layers, and a sentence about a pair
- gram: Gram matrices of all layers, their centring and products
- layers: the similarity of all layer pairs of a model, summed over batches of text
- measure: what is measured: a metric, a part of the layers, the samples, a text. No torch
- metrics/: measures of how similar layers are, one file each
"""
