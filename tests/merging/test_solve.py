"""Norms and experts at the end of a layer: held against scipy's optimiser, numpy's least squares and gradients."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from swm.errors import ModelError
from swm.merging.fit import WindowFitter, apply_fitted_plan, check_fits
from swm.merging.projection import Experts, NormedProjection, Projection, ending_of
from swm.merging.solve import GAIN_RIDGE, nearest_before_gain
from swm.models.decoder import find_decoder
from swm.models.hooks import hooked
from swm.models.one_layer import OneLayer
from swm.models.replay import Replay
from swm.plan import MergePlan, Window
from tests.conftest import tiny_model

NORMED = {
    "gemma2": ({"head_dim": 8, "sliding_window": 8}, "post_feedforward_layernorm", 1.0),
    "gemma3_text": ({"head_dim": 8, "sliding_window": 8}, "post_feedforward_layernorm", 1.0),
    "olmo2": ({}, "post_feedforward_layernorm", 0.0),
}
EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
}


def texts(count, length=24, seed=0):
    return torch.randint(0, 300, (count, length), generator=torch.Generator().manual_seed(seed))


def lively(family, **changes):
    """A model whose norms differ from channel to channel, as those of trained models do."""
    model = tiny_model(family, **changes)
    numbers = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += torch.randn(weight.shape, generator=numbers).abs()
    return model


def ending(model, layer=1):
    replay = Replay(model, texts(2))
    return ending_of(OneLayer(replay, layer, torch.device("cpu")), replay.input_of(layer))


@pytest.mark.parametrize("family", NORMED)
def test_a_norm_after_the_projection_is_found_with_what_it_adds_to_its_weight(family):
    settings, name, offset = NORMED[family]
    found = ending(lively(family, **settings))
    assert isinstance(found, NormedProjection)
    assert (found.projection.name, found.name, found.offset) == ("mlp.down_proj", name, offset)
    assert (found.scale, found.eps) == (
        pytest.approx(1.0, abs=1e-3),
        pytest.approx(1e-5 if family == "olmo2" else 1e-6),
    )


def test_the_norm_after_the_mlp_is_taken_also_where_its_factors_are_small():
    model = tiny_model("gemma2", head_dim=8, sliding_window=8)
    for layer in find_decoder(model).layers:
        layer.post_feedforward_layernorm.weight.data.fill_(-0.97)
    assert ending(model).projection.name == "mlp.down_proj"


def test_experts_of_another_form_are_not_taken_for_gated_ones():
    model = tiny_model("gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=8, intermediate_size=32)
    with pytest.raises(ModelError, match="they end neither"):
        ending(model)


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_found_and_dense_layers_beside_them_too(family):
    assert isinstance(ending(tiny_model(family, **EXPERTS[family])), Experts)
    mixed = tiny_model("qwen3_moe", **EXPERTS["qwen3_moe"], mlp_only_layers=[1])
    assert isinstance(ending(mixed, 1), Projection)
    assert isinstance(ending(mixed, 2), Experts)
    check_fits(mixed)


def test_layers_that_end_otherwise_are_refused_before_anything_else(monkeypatch):
    model = tiny_model("olmo2")
    for layer in find_decoder(model).layers:
        layer.post_feedforward_layernorm.forward = lambda states: torch.tanh(states)
    with pytest.raises(ModelError, match="they end neither in a sum with a linear map"):
        check_fits(model)


@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_output_before_the_factors_is_the_optimisers(seed):
    numbers = np.random.default_rng(seed)
    width = 12
    gain = numbers.lognormal(0, 1.5, width) * numbers.choice((-1, 1), width)
    target = numbers.normal(size=width) * 10 ** numbers.uniform(-0.3, 1) * np.abs(gain).mean()

    def error(free):
        unit = free / np.sqrt(np.mean(free**2))
        return np.sum((target - gain * unit) ** 2)

    starts = [numbers.normal(size=width) for _ in range(12)]
    least = min(minimize(error, start, method="BFGS").fun for start in starts)
    found = nearest_before_gain(torch.tensor(target)[None], torch.tensor(gain))[0].numpy()
    assert np.mean(found**2) == pytest.approx(1.0)
    needed = np.mean((target / gain) ** 2) > 1  # otherwise an approximation, see the docstring
    assert error(found) <= least * (1.001 if needed else 1.3) + 1e-6


def seen_by(model, layer, tokens):
    """What the projection is given, the norm's output, and the layer's output, in the model's own forward pass."""
    found = {}
    module = find_decoder(model).layers[layer]
    hooks = [
        module.mlp.down_proj.register_forward_pre_hook(lambda m, args: found.update(given=args[0])),
        module.post_feedforward_layernorm.register_forward_hook(lambda m, args, out: found.update(norm=out)),
        module.register_forward_hook(lambda m, args, out: found.update(out=out[0] if isinstance(out, tuple) else out)),
    ]
    with hooked(hooks), torch.no_grad():
        model(tokens, use_cache=False)
    return {name: states[:, 4:].flatten(0, 1) for name, states in found.items()}


@pytest.mark.parametrize("family", NORMED)
def test_turns_come_as_far_on_other_texts_as_many_steps_along_gradients(family, monkeypatch):
    monkeypatch.setattr("swm.merging.fit.PART_TOKENS", 240)  # many parts, so that some are apart
    model, tokens, fresh = lively(family, layers=4, **NORMED[family][0]), texts(120), texts(20, seed=8)
    layer, offset = find_decoder(model).layers[1], NORMED[family][2]

    def rows(tokens):
        here, there = seen_by(model, 1, tokens), seen_by(model, 2, tokens)
        return here["given"], here["norm"] + there["out"] - here["out"], 1 / there["out"].norm(dim=1, keepdim=True)

    def error(rows, matrix, gain):
        given, target, weight = rows
        given = given @ matrix.T
        given = given * torch.rsqrt(given.square().mean(1, keepdim=True) + 1e-6)
        return (((given * gain - target) * weight) ** 2).sum()

    matrix = layer.mlp.down_proj.weight.detach().clone().requires_grad_()
    gain = (layer.post_feedforward_layernorm.weight.detach() + offset).clone().requires_grad_()
    steps, own = torch.optim.LBFGS([matrix, gain], max_iter=60, line_search_fn="strong_wolfe"), rows(tokens)

    def closure():
        steps.zero_grad()
        loss = error(own, matrix, gain)
        loss.backward()
        return loss

    before = error(rows(fresh), matrix, gain).detach()
    steps.step(closure)
    fitted = find_decoder(apply_fitted_plan(model, MergePlan(4, (Window(1, 2),), "fit"), tokens)).layers[1]
    with torch.no_grad():
        reached = error(rows(fresh), fitted.mlp.down_proj.weight, fitted.post_feedforward_layernorm.weight + offset)
        assert reached < 0.9 * before
        assert reached < 1.05 * error(rows(fresh), matrix, gain)


@torch.no_grad()
def test_the_factors_are_least_squares_of_one_number_each():
    model, tokens = lively("olmo2", layers=4), texts(6)
    fitted = find_decoder(apply_fitted_plan(model, MergePlan(4, (Window(1, 2),), "fit"), tokens)).layers[1]
    here, there = seen_by(model, 1, tokens), seen_by(model, 2, tokens)
    weight = 1 / there["out"].norm(dim=1, keepdim=True)
    target = (here["norm"] + there["out"] - here["out"]) * weight
    given = here["given"] @ fitted.mlp.down_proj.weight.T
    given = given * torch.rsqrt(given.square().mean(1, keepdim=True) + 1e-6) * weight
    former = find_decoder(model).layers[1].post_feedforward_layernorm.weight
    pull = GAIN_RIDGE * float(given.square().sum(0).mean())
    expected = [
        np.linalg.lstsq(
            np.array([*given[:, c].tolist(), pull**0.5])[:, None],
            np.array([*target[:, c].tolist(), pull**0.5 * float(former[c])]),
            rcond=None,
        )[0][0]
        for c in range(given.shape[1])
    ]
    np.testing.assert_allclose(fitted.post_feedforward_layernorm.weight.tolist(), expected, rtol=1e-3)


@torch.no_grad()
def test_a_single_expert_is_solved_as_numpy_solves_it():
    model, tokens = tiny_model("mixtral", layers=4, num_local_experts=1, num_experts_per_tok=1), texts(6)
    fitted = find_decoder(apply_fitted_plan(model, MergePlan(4, (Window(1, 2),), "fit"), tokens)).layers[1]
    states = Replay(model, tokens)
    layer, experts = find_decoder(model).layers[1], find_decoder(model).layers[1].mlp.experts
    seen = []
    with hooked([experts.register_forward_pre_hook(lambda m, args: seen.append(args[0]))]):
        output = states.run(states.input_of(1), 1)
    gate, up = (seen[0] @ experts.gate_up_proj[0].T).chunk(2, dim=-1)
    inputs = (torch.nn.functional.silu(gate) * up).view(6, 24, -1)
    x, out, wanted = (t[:, 4:].flatten(0, 1).double().numpy(force=True) for t in (inputs, output, states.input_of(3)))
    weight = 1 / np.linalg.norm(wanted, axis=1, keepdims=True)
    a, b = x * weight, (wanted - out) * weight
    ridge = 0.1 * np.mean(np.sum(a * a, axis=0))
    rows = np.concatenate([a, np.sqrt(ridge) * np.eye(a.shape[1])])
    change = np.linalg.lstsq(rows, np.concatenate([b, np.zeros((a.shape[1], b.shape[1]))]), rcond=None)[0]
    expected = layer.mlp.experts.down_proj[0].double().numpy(force=True) + change.T
    np.testing.assert_allclose(fitted.mlp.experts.down_proj[0].numpy(force=True), expected, atol=1e-5)


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_together_lower_the_error_on_other_texts(family):
    model, fresh = tiny_model(family, layers=4, **EXPERTS[family]), texts(20, seed=9)
    merged = WindowFitter(model, texts(300)).merged(Window(1, 2))
    (name,) = merged.parameters
    assert name == "mlp.experts.down_proj"
    states = Replay(model, fresh)
    wanted, given = states.input_of(3), states.input_of(1)
    before, after = (states.run(given, 1, changed) - wanted for changed in (None, merged.parameters))
    assert float(after[:, 4:].norm()) < 0.9 * float(before[:, 4:].norm())


def test_an_expert_that_no_token_takes_stays_as_it_is():
    model = tiny_model("mixtral", layers=4, num_local_experts=4, num_experts_per_tok=1)
    for layer in find_decoder(model).layers:
        layer.mlp.gate.weight.data[3] = 0.0
        layer.mlp.gate.weight.data[:3] *= 50  # expert 3 is never the first
    merged = WindowFitter(model, texts(100)).merged(Window(1, 2))
    before = find_decoder(model).layers[1].mlp.experts.down_proj
    changed = [not torch.equal(a, b) for a, b in zip(merged.parameters["mlp.experts.down_proj"], before, strict=True)]
    assert any(changed[:3])
