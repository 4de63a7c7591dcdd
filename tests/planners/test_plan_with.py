"""Tests of swm.planners.plan_with."""

import math

import numpy as np
import pytest
import torch

from swm.errors import PlanError, SettingsError
from swm.merging.fit import WindowFitter
from swm.plan import MergePlan, Window
from swm.planners.plan_with import plan_with
from swm.planners.taylor import taylor_importances
from swm.search.plan_loss import PlanLoss
from swm.stages.plan_by import plan_by
from tests.conftest import tiny_model
from tests.planners.planners_cases import own_loss, without


def quiet(model, layers):
    """Layers that add nothing to the residual stream."""
    for layer in layers:
        for projection in (model.model.layers[layer].self_attn.o_proj, model.model.layers[layer].mlp.down_proj):
            torch.nn.init.zeros_(projection.weight)
    return model


def gone(plan):
    left = {w.first if plan.rule == "keep_first" else w.last for w in plan.kept_layers()}
    return set(range(plan.layer_count)) - left


@torch.no_grad()
def every_state(model, tokens):
    """Input of the first layer and output of each, by transformers and one hook: its last entry has the final norm."""
    seen = []
    handle = model.model.layers[-1].register_forward_hook(lambda m, args, result: seen.append(result))
    states = model(tokens, output_hidden_states=True).hidden_states[:-1]
    handle.remove()
    last = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
    return [state.numpy().astype(float) for state in (*states, last)]


def test_shortgpt_drops_the_layers_that_turn_the_state_least(tokens):
    assert gone(plan_with("shortgpt", quiet(tiny_model(layers=6), (2, 4)), tokens, 4)) == {2, 4}
    model = tiny_model(layers=6)
    states = every_state(model, tokens)
    cosines = [
        np.mean(np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
        for a, b in zip(states, states[1:], strict=False)
    ]
    assert gone(plan_with("shortgpt", model, tokens, 4)) == {int(layer) for layer in np.argsort(cosines)[-2:]}


def test_angular_drops_the_run_whose_ends_are_nearest_at_the_last_token(tokens):
    assert gone(plan_with("angular", quiet(tiny_model(layers=6), (2, 3)), tokens, 4)) == {2, 3}
    model = tiny_model(layers=6)
    states = [state[:, -1] for state in every_state(model, tokens)]

    def angle(a, b):
        cosine = np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        return np.mean(np.arccos(cosine)) / math.pi

    angles = [angle(states[start], states[start + 3]) for start in range(4)]
    start = int(np.argmin(angles))
    assert gone(plan_with("angular", model, tokens, 3)) == {start, start + 1, start + 2}


def test_one_shot_perplexity_drops_what_costs_least_alone(tokens):
    model = tiny_model(layers=6)
    losses = [own_loss(without(model, {layer}, 6), tokens) for layer in range(6)]
    cheapest = sorted(range(6), key=losses.__getitem__)[:2]
    if set(cheapest) == {0, 5}:
        pytest.fail("choose another seed: this plan cannot be said")
    assert gone(plan_with("perplexity", model, tokens, 4)) == set(cheapest)


def test_sleb_measures_again_after_each_drop(tokens):
    model = tiny_model(layers=6, seed=3)
    dropped = set()
    for _ in range(3):
        left = [layer for layer in range(1, 5) if layer not in dropped]  # as its code does, the ends stay
        dropped.add(min(left, key=lambda layer: own_loss(without(model, dropped | {layer}, 6), tokens)))
    assert gone(plan_with("sleb", model, tokens, 3)) == dropped


def test_taylor_is_weight_times_gradient_and_spares_the_ends(tokens):
    model = tiny_model(layers=9)
    found = taylor_importances(model, tokens)
    assert not any(p.requires_grad and p.grad is not None for p in model.parameters())
    model.requires_grad_(True)
    model(input_ids=tokens, labels=tokens).loss.backward()
    for layer, value in zip(model.model.layers, found, strict=True):
        expected = sum(float((p.detach() * p.grad).abs().sum()) for p in layer.parameters() if p.ndim == 2)
        assert value == pytest.approx(expected, rel=1e-4)
    middle = min((4, 5, 6), key=found.__getitem__)
    assert gone(plan_with("taylor", model, tokens, 8)) == {middle}
    assert gone(plan_with("taylor", model, tokens, 6)) == {4, 5, 6}
    with pytest.raises(PlanError, match="can drop at most 3 of 9 layers"):
        plan_with("taylor", model, tokens, 5)


def test_random_is_seeded_and_keeps_the_first_layer(model, tokens):
    plans = {plan_with("random", tiny_model(layers=12), tokens, 8, seed) for seed in range(20)}
    assert len(plans) > 10
    assert all(plan.layers_left == 8 and 0 not in gone(plan) for plan in plans)
    assert plan_with("random", model, tokens, 3, 5) == plan_with("random", model, tokens, 3, 5)


def test_random_keeps_what_the_model_needs():
    model, tokens = tiny_model(layers=6), torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(1))
    plans = {plan_with("random", model, tokens, 2, seed, needed=[{2, 4}]) for seed in range(40)}
    assert {*map(frozenset, map(MergePlan.base_layers, plans))} == {frozenset({0, 2}), frozenset({0, 4})}


def test_unknown_planner_is_refused(experiment, model, tokens):
    with pytest.raises(SettingsError, match="'chess' is not a planner. Choose one of: best, angular"):
        plan_by(experiment, "chess", 3)
    with pytest.raises(SettingsError, match="'chess' is not a planner"):
        plan_with("chess", model, tokens, 3)


def test_best_plans_a_model_in_memory_on_text_of_its_own(model, tokens):
    text = torch.randint(0, 300, (40, 16), generator=torch.Generator().manual_seed(5))
    asked = []
    plan = plan_with("best", model, tokens, 3, budget=3, fit_tokens=lambda count: asked.append(count) or text)
    loss = PlanLoss(model, tokens, WindowFitter(model, text).merged)
    losses = {layer: loss(MergePlan(4, (Window(layer - 1, layer),), "fit")) for layer in (1, 2, 3)}
    assert asked == [4096, 24_576, 24_576 * 4 // 3]
    assert plan.rule == "fit"
    assert plan.windows[0].last in sorted(losses, key=losses.get)[:3]
    assert plan == plan_with("best", model, tokens, 3, budget=3, fit_tokens=lambda count: text)
    with pytest.raises(SettingsError, match="--budget 2 is out of range: leaving 3 of 4 layers needs at least 3 plans"):
        plan_with("best", model, tokens, 3, budget=2)


def test_a_time_limit_is_refused_where_each_process_would_end_elsewhere(model, tokens, monkeypatch):
    monkeypatch.setattr("swm.models.processes.world_size", lambda: 2)
    with pytest.raises(SettingsError, match="choose a budget, or start a single process"):
        plan_with("best", model, tokens, 3, seconds=5.0)
