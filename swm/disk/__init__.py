"""What everything that reads or writes stands on: this machine's files, memory and names.

- files: where things are on disk; files and folders written whole or not at all; full and lost disks
- machine: free memory, and out-of-memory kills
- names: names of experiments and runs, and the bundled examples
"""
