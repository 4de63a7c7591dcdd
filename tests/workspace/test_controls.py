"""Which run is another one's control."""

from dataclasses import asdict

import pytest

from swm.errors import ExperimentError
from swm.plan import MergePlan, WidthCut, Window
from swm.settings import ExperimentSettings, preset_settings
from swm.workspace.controls import control_of, planned_control
from swm.workspace.experiments import Experiment
from tests.reporting.test_compare import FACTS, scores


@pytest.fixture
def experiment():
    return Experiment.create("e", ExperimentSettings("some-model"), FACTS)


def healed(experiment, name, windows=(), text="a", **changes):
    run = experiment.create_run(name, MergePlan(6, tuple(Window(*pair) for pair in windows)))
    run.remember(merge={"parameters": 800, "size_bytes": 3200})
    run.remember(recovery={**asdict(preset_settings("quick", **changes)), "examples_hash": text})
    return run


def test_a_control_is_the_original_with_the_same_healing(experiment):
    run = healed(experiment, "first", [(1, 3)])
    assert control_of(run) is None
    healed(experiment, "other-seed", seed=2)
    healed(experiment, "more-steps", steps=240)
    healed(experiment, "other-text", text="b")
    healed(experiment, "merged-as-well", [(1, 2)])
    assert control_of(run) is None
    healed(experiment, "same", repair="none")  # nothing is merged, so there is nothing to repair
    assert control_of(run).name == "same"
    assert control_of(control_of(run)) is None
    assert control_of(experiment.run("baseline")) is None


def test_a_model_cut_in_width_is_no_control(experiment):
    run = healed(experiment, "first", [(1, 3)])
    narrow = experiment.create_run("narrow", MergePlan(6, width=WidthCut(0.2)))
    narrow.remember(merge={}, recovery=run.settings["recovery"])
    assert not narrow.is_control
    assert control_of(run) is None


def test_older_files_lack_later_settings_and_hashes(experiment):
    run = healed(experiment, "first", [(1, 3)])
    old = {name: value for name, value in run.settings["recovery"].items() if name not in ("adapt", "examples_hash")}
    healed(experiment, "control").remember(recovery=old)
    assert control_of(run).name == "control"
    experiment.run("control").remember(recovery={**old, "adapt": "near"})
    assert control_of(run) is None


def test_of_two_controls_the_evaluated_one_counts(experiment):
    run = healed(experiment, "first", [(1, 3)])
    healed(experiment, "one")
    healed(experiment, "two").save("scores", scores(20.0, 0.5, 0.5))
    assert control_of(run).name == "two"


def test_a_control_is_planned_once_under_a_free_name(experiment):
    run = healed(experiment, "first", [(1, 3)])
    experiment.create_run("control", MergePlan(6, (Window(0, 1),)))  # the user's own
    control, settings = planned_control(run)
    assert (control.name, control.merges_nothing, settings) == ("control-2", True, preset_settings("quick"))
    assert not control.is_control  # before it is healed, it is just the original
    assert planned_control(run)[0].name == "control-2"  # not started yet, so it is taken up
    control.remember(merge={}, recovery=run.settings["recovery"])
    assert planned_control(run)[0].name == "control-2"  # finished
    other = healed(experiment, "second", [(1, 3)], seed=5)
    assert planned_control(other)[0].name == "control-3"
    assert planned_control(other)[1].seed == 5


def test_what_is_not_healed_needs_no_control(experiment):
    plain = experiment.create_run("plain", MergePlan(6, (Window(1, 3),)))
    control = healed(experiment, "control")
    for run in (plain, experiment.run("baseline")):
        with pytest.raises(ExperimentError, match="is not healed yet, so there is nothing to compare with a control"):
            planned_control(run)
    with pytest.raises(ExperimentError, match="Run control is itself a control"):
        planned_control(control)
