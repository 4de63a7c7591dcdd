"""An experiment's threshold path on disk, whether it is still valid, and what its plans' models write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swm.disk.files import read_json
from swm.errors import ExperimentError, SettingsError, UnknownNameError
from swm.plan import Window, pairs
from swm.registry import MERGE_RULES
from swm.search.threshold_path import SEARCH_VERSION, ThresholdPath
from swm.settings import SAMPLE_PROMPTS, SAMPLE_TOKENS
from swm.workspace.experiments import Experiment
from swm.workspace.reading import uninstalled_message
from swm.workspace.records import check_record
from swm.workspace.result_records import PathFile

MOST_TOKENS_AT_ONCE = 32_768  # the most that the first release ran in one pass, on any device


def kept_path(experiment: Experiment, rule: str) -> ThresholdPath | None:
    """The threshold path as far as it has been computed; None if there is none or it is outdated."""
    path = _path_on_disk(experiment, rule)
    return None if path is None or _why_outdated(experiment, path) else path


def outdated_path(experiment: Experiment, rule: str) -> str:
    """Why the path of a rule on disk is outdated and must be recomputed; empty if it is valid."""
    path = _path_on_disk(experiment, rule)
    return _why_outdated(experiment, path) if path else ""


def save_path(experiment: Experiment, path: ThresholdPath) -> None:
    """Write the path, as far as it has been computed, to path/<rule>.json."""
    experiment.write(f"path/{path.rule}.json", path_data(path))


def path_data(path: ThresholdPath) -> dict[str, Any]:
    """The content of path/<rule>.json."""
    fields = ("rule", "layer_count", "low", "high", "protect_last", "scoring", "difference", "version", "text_hash")
    return {
        **{name: getattr(path, name) for name in fields},
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
    """The threshold path read from a file's data.

    Raises:
        ExperimentError: if the data are not a valid path. SettingsError: if its rule is unknown.
    """
    file: PathFile = check_record(data, "path", where)
    MERGE_RULES.check(file.rule)
    path = ThresholdPath(file.layer_count, file.rule, file.low, file.high, file.protect_last)
    path.scoring, path.difference, path.layer_runs = file.scoring, file.difference, file.layer_runs
    path.version, path.text_hash = file.version, file.text_hash
    path.perplexities = {_windows(row.windows): row.perplexity for row in file.perplexities}
    for row in file.similarities:
        key = _windows(row.above), Window(*row.window)
        path.similarities[key] = row.similarity
        path.bounds.update([key] if row.at_most else [])
        path.sure.update([key] if row.exact else [])
    return path


def _windows(pairs: list[list[int]]) -> tuple[Window, ...]:
    return tuple(Window(*pair) for pair in pairs)


def _why_outdated(experiment: Experiment, path: ThresholdPath) -> str:
    tokens = experiment.settings.token_count
    if path.version < SEARCH_VERSION and tokens <= MOST_TOKENS_AT_ONCE:
        return "an earlier release could mix up the scores of windows when it ran all texts in one pass"
    if path.text_hash != experiment.text_hash and path.text_hash and experiment.text_hash:
        return "it was computed on a different calibration text"
    return ""


def _path_on_disk(experiment: Experiment, rule: str) -> ThresholdPath | None:
    file = experiment.folder / "path" / f"{rule}.json"
    if not file.is_file():
        return None
    try:
        path = path_from(read_json(file), str(file))
    except UnknownNameError as error:
        raise ExperimentError(uninstalled_message(file, error)) from None
    except SettingsError as error:
        raise ExperimentError(f"{file} is damaged ({error}). Delete it and search again.") from None
    if (path.layer_count, path.rule) != (experiment.layer_count, rule):
        raise ExperimentError(
            f"{file} is damaged: it is for {path.layer_count} layers and rule {path.rule}, expected "
            f"{experiment.layer_count} and {rule}. Delete it and search again."
        )
    return path


@dataclass
class KeptAnswers:
    """Greedy continuations of `prompts` by up to `tokens` tokens, with one rule.

    Attributes:
        of: windows of a plan -> one continuation for each prompt, none if its model cannot generate; the
            original's under ().
    """

    rule: str
    prompts: tuple[str, ...] = SAMPLE_PROMPTS
    tokens: int = SAMPLE_TOKENS
    of: dict[tuple[Window, ...], list[str]] = field(default_factory=dict)


def kept_answers(experiment: Experiment, rule: str) -> KeptAnswers:
    """The answers kept so far; none from other prompts or, for a rule that needs text, from another text."""
    MERGE_RULES.check(rule)
    kept = KeptAnswers(rule)
    data = experiment.read(f"answers/{rule}.json")
    if not data or (tuple(data["prompts"]), data["tokens"]) != (kept.prompts, kept.tokens):
        return kept
    if MERGE_RULES[rule].needs_text and data.get("text_hash", "") != experiment.text_hash:
        return kept
    kept.of = {tuple(Window(*pair) for pair in plan["windows"]): plan["answers"] for plan in data["plans"]}
    return kept


def original_answers(experiment: Experiment) -> list[str]:
    """What the original was found to write, with whichever rule; empty if that is not known."""
    found = (kept_answers(experiment, rule).of.get((), []) for rule in MERGE_RULES)
    return next((answers for answers in found if answers), [])


def save_answers(experiment: Experiment, kept: KeptAnswers) -> None:
    """Write the answers to answers/<rule>.json."""
    plans = [{"windows": pairs(windows), "answers": answers} for windows, answers in kept.of.items()]
    data = {"prompts": list(kept.prompts), "tokens": kept.tokens, "text_hash": experiment.text_hash, "plans": plans}
    experiment.write(f"answers/{kept.rule}.json", data)
