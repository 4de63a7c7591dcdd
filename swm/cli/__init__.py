"""The command line: its commands and options, and what each command does.

- check: rejects options that contradict each other, before anything runs
- explore: commands that look at models and experiments: models, list, create, measure, search, plan, estimate
- main: the entry point
- make: commands that make models and scores: merge, recover, evaluate, time, run, study, sweep, repeat, demo
- options: the parser: commands, their arguments and help texts
- plans: from a command's options to a plan; what commands share
- show: commands that show, export, cancel or delete: compare, report, export, answer, app, cancel, delete
- watched: a stage run from a terminal, with its state on disk and a progress bar
"""
