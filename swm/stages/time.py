"""Times a run, alternately with the original."""

from __future__ import annotations

import time
from typing import Any

from swm.errors import SettingsError
from swm.evaluation.speed import throughput, time_models
from swm.models.decoder import check_length
from swm.progress import Progress, no_progress
from swm.stages.loading import calibration_of, conditions_for, load_original, load_run
from swm.workspace.runs import BASELINE, Run

NEW_TOKENS = 32  # generated to time a model


def time_run(run: Run, new_tokens: int = NEW_TOKENS, progress: Progress = no_progress) -> dict[str, Any]:
    """Latency, speed and memory of a run, measured alternately with the original; written to both timing.json files."""
    if not 2 <= new_tokens <= 10_000:
        raise SettingsError(f"--tokens {new_tokens} is out of range. Choose 2 to 10,000.")
    progress(0, 0, "loading the models")
    original, tokenizer = load_original(run.experiment)
    prompt = calibration_of(run.experiment, tokenizer)[:1, :64]
    check_length(original.config, prompt.shape[1] + new_tokens)
    pair = [original] if run.is_baseline else [original, load_run(run)[0]]
    start = time.time()
    timings = time_models(pair, prompt, new_tokens, on_progress=progress)
    progress(0, 0, "throughput by batch size")
    for timing, rates in zip(timings, throughput(pair, prompt), strict=True):
        timing["throughput"] = rates
    conditions = conditions_for(run.experiment, original, start)
    data = {**timings[-1], "conditions": conditions}
    if not run.is_baseline:
        data["baseline"] = timings[0]
        run.experiment.run(BASELINE).save("timing", {**timings[0], "conditions": conditions})
    run.save("timing", data)
    return data


def take_timing(run: Run) -> bool:
    """Whether the run is timed, if need be by copying from another run with equal layers and parameters.

    Equal shapes are equally fast, so two measurements would only show how exact they are.
    """
    if run.timing():
        return True
    original = run.experiment.run(BASELINE).timing() or {}
    for other in [] if run.is_baseline else run.experiment.runs():
        timing = other.timing() or other.timing_before_recovery() or {}
        if _shape(run) == _shape(other) and _as_now(timing) == _as_now({**original, "new_tokens": NEW_TOKENS}):
            run.save("timing", {"timed_as": other.name, **timing})
            return True
    return False


def _shape(run: Run) -> tuple[int, int]:
    return run.plan.layers_left, run.settings.get("merge", {}).get("parameters", 0)


def _as_now(timing: dict[str, Any]) -> tuple[Any, ...]:
    """The conditions under which a measurement can stand for another."""
    return tuple(timing.get(name) for name in ("new_tokens", "device", "dtype", "threads"))
