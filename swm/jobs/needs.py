"""The memory that a command needs, for engines that place jobs by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from swm.errors import JobError, SwmError
from swm.plan import MergePlan, Window
from swm.settings import SETTINGS, RecoverySettings, changed_setting, preset_settings
from swm.workspace.estimate import stage_needs
from swm.workspace.experiments import Experiment
from swm.workspace.tracked import Tracked

WHOLE = ("export", "time", "answer", "control", "repeat", "study")  # commands that need all weights at once
WHOLE_PLANNERS = ("best", "taylor")  # planners that do
STAGES = {  # that a command runs, where it is none itself
    "run": ("merge", "recover", "evaluate"),
    "plan": ("search",),
    "export": ("merge",),
    "time": ("merge",),
    "answer": ("evaluate",),
}


def needed_bytes(target: Tracked | None, arguments: Sequence[str], largest: float = 0.0) -> int:
    """About the memory that `python -m swm ARGUMENTS` needs: its stage's, or the largest of those that it runs.

    Args:
        target: that the command works on; None finds it by the arguments. 0 for a sweep, which only starts others.
        largest: memory of the largest place where it could run, in bytes; 0 is not known. What can read a model's
            layers from disk as they run asks for no more than that.
    """
    experiment: Any = getattr(target, "experiment", target)
    if target is None and len(arguments) > 1:
        with suppress(SwmError):  # then the command says why
            experiment = Experiment.open(arguments[1])
    facts = getattr(experiment, "model_facts", None)
    if facts is None:
        return 0
    plan = getattr(target, "plan", None) or MergePlan(facts["layers"], (Window(0, max(1, facts["layers"] // 5)),))
    needs = stage_needs(facts, None, plan, recovery_in(arguments), None, experiment.settings.token_count)
    stages = STAGES.get(arguments[0], (arguments[0],))
    if "--no-recovery" in arguments:
        stages = tuple(stage for stage in stages if stage != "recover")
    own = [need for need in needs if need.stage.partition(",")[0] in stages] or needs
    whole = needs_all_at_once(arguments, plan)
    return max(
        need.memory_bytes if whole(need.stage) or not largest else min(need.memory_bytes, int(largest)) for need in own
    )


def needs_all_at_once(arguments: Sequence[str], plan: MergePlan) -> Callable[[str], bool]:
    """Whether a stage of a command needs its memory at once, since it cannot read layers from disk as they run."""
    options = dict(pairwise(arguments))
    narrows = bool(plan.width.ratio) or options.get("--width", "0") != "0"
    whole = narrows or arguments[0] in WHOLE or options.get("--planner", "") in WHOLE_PLANNERS
    return lambda stage: whole or stage == "recover"


def recovery_in(arguments: Sequence[str]) -> RecoverySettings:
    """The recovery that a command's options ask for; the usual one if they are wrong, which the command says."""
    words = [word for text in arguments for word in (text.split("=", 1) if text[:2] == "--" else (text,))]
    options = [(flag[2:], value) for flag, value in pairwise(words) if flag[:2] == "--"]
    changes = [value if name == "set" else f"{name}={value}" for name, value in options]
    known = [text for text in changes if text.partition("=")[0].replace("-", "_") in SETTINGS]
    with suppress(SwmError):
        return preset_settings(dict(options).get("preset", "quick"), **dict(map(changed_setting, known)))
    return preset_settings("quick")


def check_room(needed: int, largest: float) -> None:
    """Raise JobError if the largest node of a cluster, in bytes of memory, cannot hold a job; 0 is not known."""
    if largest and needed > largest:
        raise JobError(
            f"The stage needs about {needed / 2**30:,.1f} GiB of memory, but the cluster's largest node offers "
            f"{largest / 2**30:,.1f} GiB. Choose --dtype bfloat16, a smaller batch or shorter texts, or add a larger "
            "node."
        )
