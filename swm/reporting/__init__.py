"""What is shown: the table of runs, charts, the preview's data, the HTML report, exported models.

- arguments: the command line's options that give a plan or a recovery
- charts: plotly figures that pages and report share
- commands: the commands that repeat an experiment or a run
- compare: one table of an experiment's runs: what each is, what it scores, and the difference to the original
- csv_table: the comparison of runs as comma-separated values
- export: exports a run's model with its model card and recipe
- html: Jinja's environment and plotly figures for the HTML report
- palette: colours that pages, charts and report share
- preview: every plan of a threshold path with its numbers, for the browser
- report: one self-contained HTML page for stakeholders
- study_charts: plotly figures of studies
- table: the comparison of runs as text, for terminal, page, report and model card
"""
