"""Tests of swm.planners.planners."""

from dataclasses import replace

import pytest

from swm.cli.main import main
from swm.merging.apply import apply_plan
from swm.plan import MergePlan, Window
from swm.registry import PLANNERS
from swm.search.kept_path import kept_path
from swm.search.plan_loss import PlanLoss
from swm.settings import SearchOptions
from swm.stages.plan import plan_for
from swm.stages.plan_by import plan_by
from swm.stages.search import search_path
from tests.planners.planners_cases import own_loss
from tests.product.test_families import FAMILIES, made

TWENTY = SearchOptions(budget=20)


@pytest.mark.parametrize("kind", FAMILIES)
def test_loss_of_a_plan_is_transformers_own(kind, tokens):
    model = made(kind)
    loss = PlanLoss(model, tokens)
    for plan in (MergePlan(6), MergePlan(6, (Window(1, 2), Window(4, 5))), MergePlan(6, (Window(0, 3),), "keep_last")):
        assert loss(plan) == pytest.approx(own_loss(apply_plan(model, plan), tokens), abs=1e-4)


@pytest.mark.parametrize("planner", [name for name in PLANNERS if name not in ("taylor", "laco")])
def test_each_planner_plans_and_is_asked_once(planner, experiment, monkeypatch):
    data = plan_by(experiment, planner, 3, how=TWENTY)
    plan = MergePlan.from_dict(data)
    assert plan.layers_left == 3
    assert data["perplexity"] > 1
    assert data["perplexity_original"] > 1
    monkeypatch.setattr("swm.stages.plan_by._found_plan", None)
    assert data.items() <= plan_by(experiment, planner, 3, how=TWENTY).items()
    other = plan_by(experiment, planner, 3, how=replace(TWENTY, rule="mean"))
    experiment.save_planned(planner, 3, {**data, "version": 1})  # found by an earlier release
    assert experiment.planned(planner, 3) is None
    assert MergePlan.from_dict(other) == replace(plan, rule="mean")


def test_planners_from_the_command_line(experiment, capsys):
    main(["plan", "e", "--planner", "shortgpt", "--layers", "3"])
    assert "3 of 4 layers" in capsys.readouterr().out
    main(["merge", "e", "small", "--planner", "sleb", "--ratio", "0.25", "--rule", "mean"])
    run = experiment.run("small")
    assert run.plan.rule == "mean"
    assert run.plan.layers_left == 3
    assert run.has_model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--planner", "sleb", "--layers", "3", "--budget", "9"], "only applies to --planner best"),
        (["--planner", "best", "--layers", "2", "--budget", "5"], "needs at least 6 plans"),
        (["--planner", "sleb", "--threshold", "0.9"], "chooses the layers itself, as --threshold does"),
        (["--planner", "sleb", "--layers", "1"], "--layers 1 is out of range: the model has 4 layers"),
        (["--planner", "best", "--layers", "3", "--budget", "0"], "--budget 0 is out of range"),
        (["--planner", "taylor", "--layers", "3"], "can drop at most 0 of 4 layers"),
    ],
)
def test_planners_tell_of_what_they_cannot_do(experiment, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "e", *arguments])
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err


def test_a_plan_with_a_depth_needs_no_whole_path_and_is_searched_once(experiment, monkeypatch):
    whole = search_path(experiment, "keep_first", 0.5, precision="exact")
    depth = max(step.plan.layers_left for step in whole.intervals() if step.plan.windows)
    (experiment.folder / "path" / "keep_first.json").unlink()
    step = plan_for(experiment, layers=depth, rule="keep_first", precision="exact")
    assert step == whole.plan_with_layers(depth)
    perplexities = kept_path(experiment, "keep_first").perplexities
    assert () in perplexities
    assert len(perplexities) < len(whole.perplexities)
    monkeypatch.setattr("swm.stages.plan.search_path", None)
    assert plan_for(experiment, layers=depth, rule="keep_first") == step
