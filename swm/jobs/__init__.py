"""Stages in child processes, and sweeps of many runs.

- cells: running one cell of a sweep: a command in a child process, restarted if it is killed
- cluster: jobs on a Ray cluster, by its job submission API
- child: starts, monitors and cancels a stage in a child process
- end_with_parent: runs a command that ends when its parent process ends
- needs: the memory that a command needs, for engines that place jobs by it
- on_node: runs a job on a node of a cluster, and writes down how it ended if it could not do that itself
- ray_cluster: runs the cells of a sweep as tasks on a Ray cluster
- sweep: a sweep's folder and the state of its runs
- sweep_file: a sweep's file, and the command of each of its runs
- tracking: the state of a running stage: progress, time left, heartbeat, and how it ended
- workers: runs the unfinished cells of a sweep, on this machine or on Ray
"""
