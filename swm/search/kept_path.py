"""The threshold path of an experiment as it is kept on disk, and whether it can be relied on."""

from __future__ import annotations

from typing import Any

from swm.errors import ExperimentError, SettingsError
from swm.plan import Window, pairs
from swm.registry import MERGE_RULES
from swm.search.threshold_path import SEARCH_VERSION, ThresholdPath
from swm.workspace.experiments import Experiment
from swm.workspace.files import read_json
from swm.workspace.records import check_record
from swm.workspace.result_records import PathFile

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
    experiment.write(f"path/{path.rule}.json", path_data(path))


def path_data(path: ThresholdPath) -> dict[str, Any]:
    """What path/<rule>.json holds."""
    plain = ("rule", "layer_count", "low", "high", "protect_last", "scoring", "difference", "version", "text_hash")
    return {
        **{name: getattr(path, name) for name in plain},
        "layer_runs": round(path.layer_runs, 1),
        "perplexities": [
            {"windows": pairs(windows), "perplexity": value} for windows, value in path.perplexities.items()
        ],
        "similarities": [
            {
                "above": pairs(above),
                "window": [window.first, window.last],
                "similarity": value,
                **({"at_most": True} if (above, window) in path.bounds else {}),
                **({"exact": True} if (above, window) in path.sure else {}),
            }
            for (above, window), value in path.similarities.items()
        ],
    }


def path_from(data: dict[str, Any], where: str = "The path") -> ThresholdPath:
    """The path that a file holds.

    Raises:
        ExperimentError: if the data are of another kind. SettingsError: if its rule is unknown.
    """
    file: PathFile = check_record(data, "path", where)
    MERGE_RULES.check(file.rule)
    path = ThresholdPath(file.layer_count, file.rule, file.low, file.high, file.protect_last)
    path.scoring, path.difference, path.layer_runs = file.scoring, file.difference, file.layer_runs
    path.version, path.text_hash = file.version, file.text_hash
    path.perplexities = {_windows(one.windows): one.perplexity for one in file.perplexities}
    for tried in file.similarities:
        key = _windows(tried.above), Window(*tried.window)
        path.similarities[key] = tried.similarity
        path.bounds.update([key] if tried.at_most else [])
        path.sure.update([key] if tried.exact else [])
    return path


def _windows(pairs: list[list[int]]) -> tuple[Window, ...]:
    return tuple(Window(*pair) for pair in pairs)


def _doubt_about(experiment: Experiment, path: ThresholdPath) -> str:
    tokens = experiment.settings.count * experiment.settings.length
    if path.version < SEARCH_VERSION and tokens <= MOST_TOKENS_AT_ONCE:
        return "an earlier release could give windows the scores of others when all texts ran together"
    if path.text_hash != experiment.text_hash and path.text_hash and experiment.text_hash:
        return "it was computed on another calibration text"
    return ""


def _path_on_disk(experiment: Experiment, rule: str) -> ThresholdPath | None:
    where = experiment.folder / "path" / f"{rule}.json"
    if not where.is_file():
        return None
    try:
        path = path_from(read_json(where), str(where))
    except SettingsError as error:
        raise ExperimentError(f"{where} is damaged ({error}). Delete it and search again.") from None
    if (path.layer_count, path.rule) != (experiment.layer_count, rule):
        raise ExperimentError(
            f"{where} is damaged (it is of {path.layer_count} layers and rule {path.rule}). Delete it and search again."
        )
    return path
