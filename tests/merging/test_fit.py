"""The least squares are checked against numpy's, the fitted layer against what its window gave on other texts."""

import numpy as np
import pytest
import torch

from swm.errors import PlanError
from swm.merging.apply import apply_plan
from swm.merging.fit import WindowFitter, apply_fitted_plan
from swm.merging.projection import ending_of
from swm.merging.solve import RIDGES, ridge_solution
from swm.models.decoder import find_decoder
from swm.models.one_layer import OneLayer
from swm.models.replay import Replay
from swm.plan import MergePlan, Window, dropped_plan
from swm.search.window_score import WindowScorer
from tests.conftest import quickly, tiny_model
from tests.product.test_families import FAMILIES, LAYERS, UNLIKE_FAMILIES, made


def texts(count, length=24, seed=0):
    return torch.randint(0, 300, (count, length), generator=torch.Generator().manual_seed(seed))


def inputs_of(model, tokens, layer, module):
    """What a layer gives, and what a module of it is given, in the model's own forward pass."""
    seen = {}
    handles = [
        layer.register_forward_hook(lambda m, a, out: seen.update(out=out[0] if isinstance(out, tuple) else out)),
        module.register_forward_pre_hook(lambda m, a: seen.update(given=a[0])),
    ]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen["out"], seen["given"]


def test_the_weight_solved_is_the_ridge_solution_of_numpy():
    model, tokens = tiny_model(layers=4), texts(8)  # one part: no text apart, the default ridge of 0.1
    fitted = apply_fitted_plan(model, MergePlan(4, (Window(1, 2),), "fit"), tokens)
    layers = find_decoder(model).layers
    before, given = inputs_of(model, tokens, layers[1], layers[1].mlp.down_proj)
    wanted, _ = inputs_of(model, tokens, layers[2], layers[2].mlp.down_proj)
    y, x, z = (t[:, 4:].flatten(0, 1).double().numpy() for t in (before, given, wanted))
    weight = 1 / np.linalg.norm(z, axis=1, keepdims=True)
    a, b = x * weight, (z - y) * weight
    ridge = 0.1 * np.mean(np.sum(a * a, axis=0))
    rows = np.concatenate([a, np.sqrt(ridge) * np.eye(a.shape[1])])
    change = np.linalg.lstsq(rows, np.concatenate([b, np.zeros((a.shape[1], b.shape[1]))]), rcond=None)[0]
    expected = layers[1].mlp.down_proj.weight.double().numpy(force=True) + change.T
    found = find_decoder(fitted).layers[1].mlp.down_proj.weight
    np.testing.assert_allclose(found.numpy(force=True), expected, atol=1e-5)
    assert found.requires_grad is False
    assert not found.is_inference()


def test_only_the_last_projection_of_merged_layers_changes_and_the_original_stays():
    model, plan = tiny_model(layers=6), MergePlan(6, (Window(1, 2), Window(4, 5)), "fit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fitted = apply_fitted_plan(model, plan, texts(8)).state_dict()
    plain = apply_plan(model, MergePlan(6, plan.windows, "keep_first")).state_dict()
    assert {n for n in plain if not torch.equal(plain[n], fitted[n])} == {
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.3.mlp.down_proj.weight",
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_is_lost_already_is_not_changed():
    # The dropped layer added nothing: nothing is lacking.
    model = tiny_model(layers=4)
    for linear in (find_decoder(model).layers[2].self_attn.o_proj, find_decoder(model).layers[2].mlp.down_proj):
        linear.weight.data.zero_()
    fitted = apply_fitted_plan(model, MergePlan(4, (Window(1, 2),), "fit"), texts(200))
    torch.testing.assert_close(fitted(texts(2, seed=5)).logits, model(texts(2, seed=5)).logits)


def test_fitted_layers_come_nearer_to_the_original_on_other_texts():
    model, fresh = tiny_model(layers=6), texts(12, seed=9)
    for windows in ((Window(1, 3),), (Window(0, 1), Window(3, 4))):
        lost = {}
        for rule in ("keep_first", "fit", "rdsc repaired"):
            plan = MergePlan(6, windows, rule.split()[0])
            small = apply_plan(model, plan) if rule == "keep_first" else apply_fitted_plan(model, plan, texts(400))
            with torch.no_grad():
                x, y = (m.base_model(fresh, use_cache=False)[0] for m in (small, model))
            lost[rule] = float((x - y).norm())
        assert lost["fit"] < 0.9 * lost["keep_first"]
        assert lost["rdsc repaired"] < lost["keep_first"] * 1.2


def test_the_ridge_is_chosen_on_texts_apart_where_there_are_enough(monkeypatch):
    tried = []
    from swm.merging.solve import ridge_solution

    monkeypatch.setattr(
        "swm.merging.solve.ridge_solution",
        lambda gram, cross, ridge: tried.append(ridge) or ridge_solution(gram, cross, ridge),
    )
    monkeypatch.setattr("swm.merging.fit.PART_TOKENS", 24)
    apply_fitted_plan(tiny_model(layers=4), MergePlan(4, (Window(1, 2),), "fit"), texts(16))
    assert tried[: len(RIDGES)] == list(RIDGES)
    assert tried[-1] in RIDGES


@pytest.mark.parametrize("room", ["much", "none"])
def test_a_window_fitted_while_searching_is_the_one_fitted_in_a_model(room, monkeypatch):
    if room == "none":
        monkeypatch.setattr("swm.merging.fit.free_bytes_on", lambda device: 0)
    model, tokens, window = tiny_model(layers=6), texts(300), Window(2, 3)
    merged = WindowFitter(model, tokens).merged(window)
    fitted = apply_fitted_plan(model, MergePlan(6, (window,), "fit"), tokens)
    (name, weight), *_ = merged.parameters.items()
    torch.testing.assert_close(find_decoder(fitted).layers[2].get_parameter(name), weight, rtol=0, atol=1e-5)
    scorer = WindowScorer(model, texts(3, seed=3), "fit", merged=WindowFitter(model, tokens).merged)
    assert scorer.score((), window) > WindowScorer(model, texts(3, seed=3), "keep_first").score((), window)


@quickly("family", FAMILIES, UNLIKE_FAMILIES)
def test_every_family_is_fitted_in_bfloat16_as_well(family):
    model, plan, fresh = made(family), MergePlan(LAYERS, (Window(2, 3),), "fit"), texts(6, seed=4)
    exact, fast = (apply_fitted_plan(model, plan, texts(200), fast=fast) for fast in (False, True))
    small = [exact, fast, apply_plan(model, MergePlan(LAYERS, plan.windows, "keep_first"))]
    wanted = Replay(model, fresh).input_of(4)
    fitted, nearly, dropped = (float((Replay(m, fresh).input_of(3) - wanted)[:, 4:].norm()) for m in small)
    assert fitted < dropped
    assert nearly == pytest.approx(fitted, rel=0.01)
    assert {tensor.dtype for tensor in fast.state_dict().values()} == {torch.float32}
    assert any(not torch.equal(one, fast.state_dict()[name]) for name, one in exact.state_dict().items())


def test_a_model_without_its_lowest_layers_is_fitted_above_them():
    model, plan = tiny_model(layers=6), dropped_plan(6, {0, 5})
    assert plan.windows[0].first < 0
    fitted, plain = apply_fitted_plan(model, plan, texts(200)), apply_plan(model, plan)
    assert len(find_decoder(fitted).layers) == 4
    changed = [n for n, weight in plain.state_dict().items() if not torch.equal(weight, fitted.state_dict()[n])]
    assert changed == ["model.layers.3.mlp.down_proj.weight"]
    with torch.inference_mode():
        losses = [float(m(texts(40, seed=9), labels=texts(40, seed=9)).loss) for m in (fitted, plain)]
    assert losses[0] != losses[1]


def test_what_cannot_be_built_is_refused_before_anything_is_fitted(monkeypatch):
    monkeypatch.setattr("swm.merging.fit.Replay", None)
    with pytest.raises(PlanError, match="The plan is for 5 layers"):
        apply_fitted_plan(tiny_model(layers=4), MergePlan(5, (Window(1, 2),), "fit"), texts(16))


def test_solving_takes_no_more_memory_than_it_says():
    peaks = {}
    for width in (256, 1024):
        gram = torch.eye(width, dtype=torch.float64)
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            ridge_solution(gram, gram[:, :8], 0.1)
        held = most = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        peaks[width] = most / (8 * width**2)
    assert peaks[1024] < 2.3  # beside the gram matrix itself, and one more that is held out


def test_the_widest_map_that_ends_in_the_sum_is_found_with_its_factor():
    replay = Replay(made("granite"), texts(2))
    assert ending_of(OneLayer(replay, 1, torch.device("cpu")), replay.input_of(1)).scale == pytest.approx(1.0, abs=1e-3)
    model = tiny_model("granite", layers=3, residual_multiplier=0.25)
    replay = Replay(model, texts(2))
    found = ending_of(OneLayer(replay, 1, torch.device("cpu")), replay.input_of(1))
    assert (found.name, found.scale) == ("mlp.down_proj", pytest.approx(0.25, abs=1e-3))


def test_without_text_the_rule_is_refused(model):
    with pytest.raises(ValueError, match=r"needs text: see swm\.merging\.fit"):
        apply_plan(model, MergePlan(4, (Window(1, 2),), "fit"))
