"""Forms in which a run leaves the program, one file each.

- transformers: a folder that plain transformers loads, with model card and recipe
- recipe: what `swm repeat` makes the run again from; card: the model card; mergekit: the plan for mergekit
"""
