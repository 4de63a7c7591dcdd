"""What is shown: the table of runs, charts, the preview's data, the HTML report, exported models.

- abilities: what each layer does, in numbers and in a sentence
- ability_charts: figures of abilities by layer, and of what models lost
- charts: plotly figures for pages and report
- compare_charts: plotly figures that compare models
- commands: the commands that reproduce an experiment or a run
- compare: reads a row for each run of an experiment
- differences: how a model differs from another, with intervals over documents and seeds
- export: exports a run's model with its model card and recipe
- figures: the comparison of runs, every figure listed once, for terminal, pages, report, model card and CSV
- finalists: how sure a planner's choice is, in words
- glossary: what each number means, in one sentence
- headline: the run that pages lead with
- heatmaps: heat maps of layer similarity
- html: Jinja environment of the HTML report and the model card
- judged: rows with differences from original and control, and verdicts
- key_figures: the numbers behind a run's verdict
- known_plans: every plan whose perplexity is known, and their chart
- names: how runs and their stages are called
- numbers: how numbers are written, each with its interval
- palette: colours of pages, charts and report
- pictures: SVG pictures of the HTML report
- preview: every plan of a threshold path with its numbers, as data for the browser
- report: one self-contained HTML page for stakeholders
- row: the typed row of a run at one stage, with its differences and its verdict
- seeds: runs that differ only in the seed of their healing, as one row
- study_charts: plotly figures for studies
- verdict: what a model gained and cost, in words
"""
