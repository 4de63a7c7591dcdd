"""What can be typed, and what each command does.

- check: options that contradict each other are refused before anything runs
- explore: commands that look at models and experiments: models, list, create, measure, search, plan, estimate
- main: the entry point
- make: commands that make models and scores: merge, recover, evaluate, time, run, study, sweep, repeat, demo
- options: what can be typed: commands, their arguments and help texts
- plans: the plan that the options of a command name
- show: commands that show, export or end things: compare, report, export, answer, app, cancel, delete
- targets: what several commands share: the experiment they work on, and their result
- watched: a stage run from a terminal: its state on disk, a progress bar
"""
