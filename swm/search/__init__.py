"""The sliding-window search: walks, the threshold path, the scores of windows and plans.

- find: the search at one threshold, and the exact threshold path
- kept_path: an experiment's threshold path on disk, whether it is still valid, and what its plans' models write
- known_target: the plan for a target, as far as it is known on disk
- plan_loss: the loss of a plan's model on calibration text, without building that model
- threshold_path: every plan for every threshold, as a table of similarities
- tried: losses of plans that planners tried, kept so that a search goes on where it stopped
- vocabulary: a part of a large vocabulary that stands for all of it
- walk: one walk of the search: its positions, and where it ends
- window_score: how similar a model with merged windows stays to the original
"""
