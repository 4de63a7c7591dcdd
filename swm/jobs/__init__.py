"""Stages in child processes, and sweeps of many runs.

- cells: running one cell of a sweep: a command in a child process, started again when it was killed
- child: starts, follows and cancels a stage in a child process
- end_with_parent: runs a command that ends with the process that started it
- ray_cluster: runs the cells of a sweep as tasks on a Ray cluster
- sweep: a sweep's folder and the state of its runs
- sweep_file: a sweep's file, and the command of each of its runs
- tracking: the state of a running stage: progress, heartbeat, and how it ended
- workers: runs what a sweep has left, on this machine or on Ray
"""
