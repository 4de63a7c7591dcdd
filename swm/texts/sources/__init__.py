"""Texts that can be chosen by name, one file each.

- lambada, squad, coqa: bundled; instructions: the bundled recovery text
- hub: Hugging Face hub data sets with a short name
"""
