"""Export formats, one file each.

- transformers: a folder that plain transformers loads, with model card and recipe
- gguf: one file for llama.cpp and ollama
- recipe: input of `swm repeat`; card: the model card; mergekit: the plan as a mergekit config
"""
