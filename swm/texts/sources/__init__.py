"""Texts that can be chosen by name, one file each.

- lambada, squad, coqa: bundled; instructions: the bundled recovery text
- hub: data sets of the Hugging Face hub that have a short name here
"""
