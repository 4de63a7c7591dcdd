"""What is said of a run that is asked for with other settings, word by word."""

from dataclasses import asdict, replace

import pytest

from swm.errors import ExperimentError
from swm.plan import MergePlan, WidthCut, Window
from swm.settings import PRESETS, ExperimentSettings
from swm.workspace.changes import limit_changes, plan_changes, recovery_changes, refuse
from swm.workspace.experiments import Experiment

QUICK = replace(PRESETS["quick"], steps=7)


@pytest.fixture
def run():
    facts = {"architecture": "LlamaForCausalLM", "layers": 6, "width": 8, "dtype": "float32"}
    facts |= {"parameters": 1000, "parameters_per_layer": 100, "size_bytes": 4000}
    return Experiment.create("mine", ExperimentSettings("some-model"), facts).create_run(
        "a", MergePlan(6, (Window(1, 3),))
    )


def said(changes):
    return [str(change) for change in changes]


def test_of_a_plan_each_part_that_differs_is_said():
    old = MergePlan(6, (Window(0, 1), Window(2, 4)), "mean", WidthCut(0.25, "taylor"))
    assert plan_changes(old, old) == []
    assert said(plan_changes(old, MergePlan(6))) == [
        "windows: 0-1, 2-4 (requested: none)",
        "rule: mean (requested: rdsc)",
        "width: 0.25 by taylor (requested: none)",
    ]


def test_a_run_that_was_never_healed_can_be_healed_in_any_way(run):
    assert recovery_changes(run, None) == []
    assert recovery_changes(run, QUICK) == []


def test_a_healed_run_asked_for_without_healing_says_what_it_had(run):
    run.remember(recovery=asdict(QUICK))
    assert said(recovery_changes(run, None)) == ["healing: quick, 7 steps (requested: none)"]
    assert recovery_changes(run, QUICK) == []
    assert said(recovery_changes(run, replace(QUICK, learning_rate=0.5, rank=4))) == [
        "rank: 16 (requested: 4)",
        "learning-rate: 0.002 (requested: 0.5)",
    ]


def test_a_healing_that_has_only_begun_holds_its_settings_but_can_be_left_out(run):
    run.remember(recovery_started=asdict(QUICK))
    assert recovery_changes(run, None) == []
    assert said(recovery_changes(run, replace(QUICK, steps=8))) == ["steps: 7 (requested: 8)"]


def test_settings_that_an_older_run_does_not_know_are_not_compared(run):
    known = asdict(QUICK)
    del known["rank"]
    run.remember(recovery={**known, "gone": 1})
    assert recovery_changes(run, replace(QUICK, rank=4)) == []


def test_a_limit_that_differs_is_said_and_none_is_a_limit_too(run):
    assert limit_changes(run, 5) == []  # nothing was measured
    run.save("scores", {"tasks": {}, "perplexity": {}, "limit": None})
    assert limit_changes(run, None) == []
    assert said(limit_changes(run, 5)) == ["limit: none (requested: 5)"]
    run.save("scores", {"tasks": {}, "perplexity": {}, "limit": 40})
    assert limit_changes(run, 40) == []
    assert said(limit_changes(run, None)) == ["limit: 40 (requested: none)"]


def test_changes_are_refused_by_name_and_none_are_not(run):
    refuse(run, [])
    changes = [*plan_changes(run.plan, MergePlan(6, (), "mean"))]
    with pytest.raises(ExperimentError) as error:
        refuse(run, changes)
    assert str(error.value) == (
        "Run a exists with other settings: windows: 1-3 (requested: none); rule: rdsc (requested: mean). "
        "Pass --again to replace its model and results, or choose another run name."
    )
