"""Grids of methods and depths, running them, their rows.

- grids: grids of methods and depths, declared in assets/studies.yaml
- rows: the table of a study: means over seeds, differences to one method
- run: runs what a grid asks for and is not there yet
- times: how long a study takes
"""
