import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from swm.cli.main import main
from swm.errors import PlanError, SettingsError
from swm.merging.apply import apply_plan
from swm.merging.fit import WindowFitter, apply_fitted_plan
from swm.models.decoder import find_decoder
from swm.plan import MergePlan, Window
from swm.planners.drops import DropLoss, beam_drops, dropped_plan
from swm.planners.laco import laco_plan
from swm.planners.plan_with import plan_with
from swm.planners.taylor import taylor_importances
from swm.registry import PLANNERS
from swm.search.kept_path import kept_path
from swm.search.plan_loss import PlanLoss
from swm.settings import FIT_TOKENS, ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.loading import fit_tokens_of, load_original
from swm.stages.plan import plan_for
from swm.stages.plan_by import plan_by
from swm.stages.search import search_path
from tests.conftest import tiny_model
from tests.product.test_families import FAMILIES, made


def quiet(model, layers):
    """Layers that add nothing to the residual stream."""
    for layer in layers:
        for projection in (model.model.layers[layer].self_attn.o_proj, model.model.layers[layer].mlp.down_proj):
            torch.nn.init.zeros_(projection.weight)
    return model


def without(model, dropped, count):
    """The model with layers taken out of its list, for transformers' own loss."""
    small = apply_plan(model, MergePlan(count))
    decoder = find_decoder(small)
    kept = [layer for index, layer in enumerate(decoder.layers) if index not in dropped]
    setattr(decoder.parent, decoder.attribute, torch.nn.ModuleList(kept))
    small.config.num_hidden_layers = len(kept)
    return small


@torch.no_grad()
def own_loss(model, tokens):
    return float(model(input_ids=tokens, labels=tokens, use_cache=False).loss)


def gone(plan):
    left = {w.first if plan.rule == "keep_first" else w.last for w in plan.kept_layers()}
    return set(range(plan.layer_count)) - left


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


def test_laco_merges_from_the_top_and_goes_on_below_a_merge():
    # 10 layers, windows of 3. From the top: 7-9 is alike enough, then 4-6 is not, 3-5 is; below it nothing is.
    alike = {((), (7, 9)): 0.9, (((7, 9),), (4, 6)): 0.5, (((7, 9),), (3, 5)): 0.8}
    tried = []

    def similarity(above, window):
        tried.append((above, window))
        return alike.get((tuple((w.first, w.last) for w in above), (window.first, window.last)), 0.1)

    plan = laco_plan(10, 6, similarity, lambda done, total: None)
    assert plan == MergePlan(10, (Window(3, 5), Window(7, 9)), "rdsc")
    assert all(window.first >= 1 for _, window in tried)
    assert {len(window) for _, window in tried} == {3, 5}  # windows of 4 or 6 never leave 6 layers
    assert len(tried) == len(set(tried))
    assert laco_plan(10, 8, similarity, lambda done, total: None).windows == (Window(7, 9),)
    with pytest.raises(PlanError, match="LaCo cannot leave 9 of 10 layers with windows of 3 to 6 layers"):
        laco_plan(10, 9, similarity, lambda done, total: None)
    with pytest.raises(PlanError, match="and a similarity above 0"):
        laco_plan(10, 8, lambda above, window: -0.1, lambda done, total: None)


def test_laco_takes_the_highest_threshold_of_all_sizes():
    # 6 of 10 layers: two windows of 3 at 0.4, or one of 5 at 0.6.
    def similarity(above, window):
        return {3: 0.4, 5: 0.6}[len(window)] if len(above) < 2 else 0.0

    assert laco_plan(10, 6, similarity, lambda done, total: None).windows == (Window(5, 9),)


def test_laco_tries_every_threshold_that_changes_its_walk():
    alike = {Window(7, 9): 0.804, Window(6, 8): 0.808, Window(5, 7): 0.802}  # all accepted at 0.80

    def similarity(above, window):
        return 0.5 if above else alike.get(window, 0.5)

    assert laco_plan(10, 8, similarity, lambda done, total: None).windows == (Window(6, 8),)


def test_random_is_seeded_and_keeps_the_first_layer(model, tokens):
    plans = {plan_with("random", tiny_model(layers=12), tokens, 8, seed) for seed in range(20)}
    assert len(plans) > 10
    assert all(plan.layers_left == 8 and 0 not in gone(plan) for plan in plans)
    assert plan_with("random", model, tokens, 3, 5) == plan_with("random", model, tokens, 3, 5)


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


@pytest.mark.parametrize("kind", FAMILIES)
def test_loss_of_a_plan_is_transformers_own(kind, tokens):
    model = made(kind)
    loss = PlanLoss(model, tokens)
    for plan in (MergePlan(6), MergePlan(6, (Window(1, 2), Window(4, 5))), MergePlan(6, (Window(0, 3),), "keep_last")):
        assert loss(plan) == pytest.approx(own_loss(apply_plan(model, plan), tokens), abs=1e-4)


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


@pytest.fixture
def experiment(model_folder, text_file, home):
    return create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 4, 32))


@pytest.mark.parametrize("planner", [name for name in PLANNERS if name not in ("taylor", "laco")])
def test_each_planner_plans_and_is_asked_once(planner, experiment, monkeypatch):
    data = plan_by(experiment, planner, 3, 20)
    plan = MergePlan.from_dict(data)
    assert plan.layers_left == 3
    assert data["perplexity"] > 1
    assert data["perplexity_original"] > 1
    monkeypatch.setattr("swm.stages.plan_by._found_plan", None)
    assert data.items() <= plan_by(experiment, planner, 3, 20).items()
    other = plan_by(experiment, planner, 3, 20, rule="mean")
    experiment.save_planned(planner, 3, {**data, "version": 1})  # found by an earlier release
    assert experiment.planned(planner, 3) is None
    assert MergePlan.from_dict(other) == replace(plan, rule="mean")


def test_best_is_no_worse_on_new_text_than_fitting_any_single_drop(experiment):
    data = plan_by(experiment, "best", 3, 100)
    model, tokenizer = load_original(experiment)
    rows = fit_tokens_of(experiment, tokenizer, 4 * FIT_TOKENS // 3)
    judge, text = rows[: len(rows) // 4], rows[len(rows) // 4 :]
    losses = {
        drop: own_loss(apply_fitted_plan(model, replace(dropped_plan(4, {drop}), rule="fit"), text), judge)
        for drop in (1, 2, 3)
    }
    assert data["windows"] == [[min(losses, key=losses.get) - 1, min(losses, key=losses.get)]]


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
        (["--planner", "sleb", "--threshold", "0.9"], "needs to know how many layers"),
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
    assert asked == [4096, 24_576 * 4 // 3]
    assert plan.rule == "fit"
    assert plan.windows[0].last in sorted(losses, key=losses.get)[:3]
    assert plan == plan_with("best", model, tokens, 3, budget=3, fit_tokens=lambda count: text)
    with pytest.raises(SettingsError, match="--budget 2 is out of range: leaving 3 of 4 layers needs at least 3 plans"):
        plan_with("best", model, tokens, 3, budget=2)


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
