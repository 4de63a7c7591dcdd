"""The threshold path of an experiment as it is kept on disk, and whether it can be relied on."""

from __future__ import annotations

from swm.errors import ExperimentError, SettingsError
from swm.search.threshold_path import SEARCH_VERSION, ThresholdPath
from swm.workspace.experiments import Experiment

MOST_TOKENS_AT_ONCE = 32_768  # that the first release ran in one pass, on any device


def kept_path(experiment: Experiment, rule: str) -> ThresholdPath | None:
    """The threshold path as far as it has been computed; one that cannot be relied on counts as none."""
    path = _path_on_disk(experiment, rule)
    return None if path is None or _doubt_about(experiment, path) else path


def outdated_path(experiment: Experiment, rule: str) -> str:
    """Why the kept path of a rule cannot be relied on and has to be computed anew; empty if it can."""
    path = _path_on_disk(experiment, rule)
    return _doubt_about(experiment, path) if path else ""


def save_path(experiment: Experiment, path: ThresholdPath) -> None:
    """Write the path, as far as it has been computed, to path/<rule>.json."""
    experiment.write(f"path/{path.rule}.json", path.to_dict())


def _doubt_about(experiment: Experiment, path: ThresholdPath) -> str:
    tokens = experiment.settings.count * experiment.settings.length
    if path.version < SEARCH_VERSION and tokens <= MOST_TOKENS_AT_ONCE:
        return "an earlier release could give windows the scores of others when all texts ran together"
    if path.text_hash != experiment.text_hash and path.text_hash and experiment.text_hash:
        return "it was computed on another calibration text"
    return ""


def _path_on_disk(experiment: Experiment, rule: str) -> ThresholdPath | None:
    data = experiment.read(f"path/{rule}.json")
    if data is None:
        return None
    try:
        path = ThresholdPath.from_dict(data)
        if (path.layer_count, path.rule) != (experiment.layer_count, rule):
            raise ValueError(f"it is of {path.layer_count} layers and rule {path.rule}")
        return path
    except (KeyError, TypeError, ValueError, AttributeError, SettingsError) as error:
        raise ExperimentError(
            f"{experiment.folder / 'path' / rule}.json is damaged ({error}). Delete it and search again."
        ) from None
