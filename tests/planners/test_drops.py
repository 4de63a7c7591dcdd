"""Tests of swm.planners.drops."""

import math
from dataclasses import replace

import pytest
import torch

from swm.errors import PlanError
from swm.merging.apply import apply_plan
from swm.merging.fit import WindowFitter, apply_fitted_plan
from swm.plan import MergePlan, Window, dropped_plan
from swm.planners.drops import DropLoss, beam_drops
from swm.search.plan_loss import PlanLoss
from swm.settings import FIT_TOKENS, SearchOptions
from swm.stages.loading import fit_tokens_of, load_original
from swm.stages.plan_by import plan_by
from tests.conftest import tiny_model
from tests.planners.planners_cases import own_loss, without


def test_dropped_layers_are_windows_around_one_that_stays(tokens):
    assert dropped_plan(8, {2, 3, 6}) == MergePlan(8, (Window(1, 3), Window(5, 6)), "keep_first")
    assert dropped_plan(8, {0, 1, 5}) == MergePlan(8, (Window(0, 2), Window(5, 6)), "keep_last")
    assert dropped_plan(8, {0, 1, 5, 7}) == MergePlan(8, (Window(-1, 1), Window(4, 5), Window(6, 7)), "keep_first")
    assert dropped_plan(8, ()) == MergePlan(8, (), "keep_first")
    model = tiny_model(layers=6)
    for dropped in ({1, 2, 5}, {0, 3}, {0, 1, 3, 5}):
        small, expected = apply_plan(model, dropped_plan(6, dropped)), without(model, dropped, 6)
        with torch.no_grad():
            assert torch.equal(small(tokens).logits, expected(tokens, use_cache=False).logits)
    with pytest.raises(PlanError, match="leaves no layer"):
        dropped_plan(4, {0, 1, 2, 3})


def test_a_beam_finds_what_greed_misses_within_its_budget():
    # Alone 1 costs least, but only 2 and 3 go well together.
    costs = {1: 1.0, 2: 2.0, 3: 2.1, 4: 9.0}
    calls = []

    def loss(drops):
        calls.append(drops)
        return 0.5 if drops == {2, 3} else sum(costs[layer] for layer in drops)

    assert beam_drops((1, 2, 3, 4), 2, loss)[0] == {1, 2}
    assert beam_drops((1, 2, 3, 4), 2, loss, width=2)[0] == {2, 3}
    assert beam_drops((1, 2, 3, 4), 0, loss) == [frozenset()]
    calls.clear()
    beam_drops((1, 2, 3, 4), 3, loss, width=2, budget=8)
    assert len(calls) <= 8
    assert frozenset({1, 2}) in calls  # the likeliest are tried, not the first


def test_loss_of_fitted_plans_is_that_of_the_layers_given(tokens):
    model = tiny_model(layers=6)
    merged = WindowFitter(model, torch.randint(0, 300, (20, 16))).merged
    plan = MergePlan(6, (Window(1, 2), Window(4, 5)), "fit")
    expected = own_loss(apply_plan(model, plan, merged), tokens)
    assert PlanLoss(model, tokens, merged)(plan) == pytest.approx(expected, abs=1e-5)
    assert DropLoss(PlanLoss(model, tokens, merged), 6, "fit")(frozenset({2, 5})) == pytest.approx(expected, abs=1e-5)
    assert DropLoss(PlanLoss(model, tokens), 6)(frozenset({0, 5})) == pytest.approx(
        own_loss(without(model, {0, 5}, 6), tokens), abs=1e-5
    )
    assert DropLoss(PlanLoss(model, tokens), 6)(frozenset(range(6))) == math.inf
    assert DropLoss(PlanLoss(model, tokens, merged), 6, "fit")(frozenset({0, 5})) == math.inf


def test_best_is_no_worse_on_new_text_than_fitting_any_single_drop(experiment):
    data = plan_by(experiment, "best", 3, how=SearchOptions(budget=100))
    model, tokenizer = load_original(experiment)
    rows = fit_tokens_of(experiment, tokenizer, 4 * FIT_TOKENS // 3)
    judge, text = rows[: len(rows) // 4], rows[len(rows) // 4 :]
    losses = {
        drop: own_loss(apply_fitted_plan(model, replace(dropped_plan(4, {drop}), rule="fit"), text), judge)
        for drop in (1, 2, 3)
    }
    assert data["windows"] == [[min(losses, key=losses.get) - 1, min(losses, key=losses.get)]]
