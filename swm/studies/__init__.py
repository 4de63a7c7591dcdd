"""Grids of methods and depths, running them, their rows.

- abilities: what each method keeps and gives up
- findings: what the scores of a study can tell apart
- grids: grids of methods and depths, declared in assets/studies.yaml
- grid_files: files of grids: read, checked, written as YAML
- rows: the table of a study: means over seeds, differences from one method
- run: runs the unfinished cells of a grid
- times: how long a study takes
"""
