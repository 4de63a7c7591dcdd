"""Export formats, one file each.

- transformers: a folder that plain transformers loads, with model card and recipe
- recipe: input of `swm repeat`; card: the model card; mergekit: the plan as a mergekit config
"""
