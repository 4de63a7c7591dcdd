"""Experiments and runs on disk: records, states, people, recipe, estimate.

- changes: which settings differ when an existing run is requested again
- controls: the control of a healed run: the original, healed in the same way
- estimate: time, memory and disk that a run needs, before it starts
- experiments: experiments as folders of JSON
- housekeeping: copies, renames and deletes whole experiments and runs
- origin: what chose a plan's windows, with its publication
- people: who acts, and whether what they act on is theirs
- reading: reads our JSON files, cached until they change
- recipe: a run in one file; mergekit's form of a plan
- records: one pydantic model per JSON file of experiments, runs and states
- result_records: one pydantic model per JSON file with results or plans
- runs: runs: one plan's life inside an experiment, as files on disk
- shared_home: whether locks of a home that several machines use hold on all of them; the lock of names
- state: the progress of a stage, and whether its process is alive
- task_answers: answers to task questions on disk
- tracked: folders with a state: one job at a time, read-only if bundled
- units: bytes and seconds in readable units
- targets: how many layers meet a memory, a speed or a number of parameters
- training_memory: what a training keeps in memory, from sizes and settings
"""
