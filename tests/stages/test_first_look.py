"""What `create --measure` leaves: both maps, and a plan where that is quick."""

import pytest

import swm.stages.first_look as stage
from swm.cli.main import main
from swm.errors import PlanError
from swm.search.kept_path import kept_answers, kept_path
from swm.workspace.experiments import Experiment


@pytest.fixture
def created(model_folder, text_file, home):
    def create(name, *more):
        place = ["--model", str(model_folder), "--texts", str(text_file), "--count", "3", "--length", "32"]
        main(["create", name, *place, *more])
        return Experiment.open(name)

    return create


@pytest.mark.parametrize(("threshold", "merges"), [(0.9, False), (0.5, True)])
def test_the_first_plan_is_the_one_that_a_search_finds(threshold, merges, created, monkeypatch):
    monkeypatch.setattr(stage, "DEFAULT_THRESHOLD", threshold)
    seen, measured = [], stage.measure_experiment

    def noted(experiment, *rest, **how):
        seen.append((experiment.metrics_measured(), kept_path(experiment, "rdsc") is not None, experiment.cost()))
        return measured(experiment, *rest, **how)

    monkeypatch.setattr(stage, "measure_experiment", noted)
    experiment = created("quick", "--measure")
    assert experiment.state().status == "done"
    assert seen == [([], False, None), (["cka_skip4"], True, None)]  # the map, the plan, and then all else
    assert experiment.metrics_measured() == ["cka_skip4", "cka"]
    assert experiment.cost()["forward_tokens_per_second"] > 0
    step = kept_path(experiment, "rdsc").plan_at(threshold)
    assert bool(step.plan.windows) == merges
    other = created("slow")
    main(["search", "slow", "--from", "0.45", "--no-answers"])
    searched = kept_path(other, "rdsc")
    assert searched.plan_at(threshold).plan == step.plan
    for windows in ((), step.plan.windows):
        assert kept_path(experiment, "rdsc").perplexities[windows] == searched.perplexities[windows]
        assert kept_answers(experiment, "rdsc").of[windows]


@pytest.mark.parametrize("why", ["slow", PlanError("Windows cannot merge."), MemoryError("out of memory")])
def test_a_plan_that_would_take_long_or_cannot_be_found_is_left_out(why, created, monkeypatch):
    def none(*rest, **how):
        raise why

    if why == "slow":
        monkeypatch.setattr(stage, "PLAN_SECONDS", -1.0)
    else:
        monkeypatch.setattr(stage, "plan_for", none)
    experiment = created("none", "--measure")
    assert experiment.state().status == "done"
    assert experiment.metrics_measured() == ["cka_skip4", "cka"]
    assert kept_path(experiment, "rdsc") is None
