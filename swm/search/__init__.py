"""The sliding-window search: walks, the threshold path, the scores of windows and plans.

- find: the search at one threshold, and the exact threshold path
- kept_path: the threshold path of an experiment as it is kept on disk, and whether it can be relied on
- plan_loss: the loss of a plan's model on calibration text, without making that model
- threshold_path: every plan for every threshold, as a table of similarities
- walk: one walk of the search: positions, and where it ends
- window_score: how similar a model with merged windows stays to the original
"""
