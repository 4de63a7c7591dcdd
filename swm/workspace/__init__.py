"""Experiments and runs on disk: names, records, files written whole, recipe, estimate.

- changes: in which settings a run asked for again differs
- estimate: time, memory and disk of a run before it starts
- experiments: experiments as folders of JSON
- files: where things are on disk; files written whole or not at all
- machine: free memory here, and kills for want of it
- names: names of experiments and runs, and those that ship
- origin: what chose a plan's windows, with its publication
- reading: reads our JSON files, each once for each time it was written
- recipe: a run in one file; mergekit's form of a plan
- records: a model for each JSON file of experiments, runs and states
- result_records: a model for each JSON file with results
- runs: runs: one plan's life inside an experiment, as files on disk
- state: where a stage is, and whether its process lives
- tracked: folders with a state: one job at a time, read-only where they ship
- units: bytes and seconds as people read them
"""
