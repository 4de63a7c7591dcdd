"""Rule `scale`: the folded model is held against plain transformers with the state multiplied between its layers."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from swm.errors import NoScaleError, SettingsError
from swm.merging.apply import apply_plan
from swm.merging.fit import WindowFitter, fitted_layers
from swm.merging.merged_layer import MergedLayer
from swm.merging.scale import Writes, check_scales, folded, magnitude_factor
from swm.merging.stream import stream_merge
from swm.models.decoder import find_decoder
from swm.models.load import load_model, save_model
from swm.plan import MergePlan, Window, dropped_plan, parse_windows
from swm.progress import no_progress
from swm.reporting.formats.card import model_card
from swm.search.plan_loss import PlanLoss
from swm.search.window_score import WindowScorer, text_cosines
from swm.settings import SKIPPED_TOKENS, ExperimentSettings, preset_settings
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run
from swm.stages.recover import recover_run
from swm.stages.run import run_pipeline
from tests.conftest import tiny_model
from tests.product.test_families import FAMILIES, LAYERS, made

WITHOUT_NORM_BEFORE = {"olmo2"}  # attention and MLP read the state as it is
FACTORS = {Window(0, 1): 1.7, Window(3, 4): 0.6}


def texts(count=6, length=24, seed=0):
    return torch.randint(0, 300, (count, length), generator=torch.Generator().manual_seed(seed))


def hidden_of(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def times(factor):
    def hook(module, args, output):
        return output * factor if isinstance(output, torch.Tensor) else (output[0] * factor, *output[1:])

    return hook


@torch.no_grad()
def states_of(model, tokens):
    """The state after each layer, in the model's own forward pass."""
    seen = []
    layers = find_decoder(model).layers
    handles = [layer.register_forward_hook(lambda m, a, out: seen.append(hidden_of(out).clone())) for layer in layers]
    model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def logits_with_factors(model, tokens, factors):
    """Logits of a model whose state is multiplied after some layers."""
    layers = find_decoder(model).layers
    handles = [layers[layer].register_forward_hook(times(factor)) for layer, factor in factors.items()]
    logits = model(tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def larger_embedding(model):
    """Beside larger states, what norms add to the mean square is nothing: folding is then exact."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    return model


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_NORM_BEFORE))
def test_folded_factors_do_what_multiplied_states_do(family):
    model, tokens = larger_embedding(made(family)), texts()
    plan = MergePlan(LAYERS, tuple(FACTORS), "scale")
    folded = apply_plan(model, plan, lambda window: MergedLayer(window.first, factor=FACTORS[window]))
    dropped = apply_plan(model, MergePlan(LAYERS, tuple(FACTORS), "keep_first"))
    expected = logits_with_factors(dropped, tokens, {0: 1.7, 2: 0.6})
    unscaled = logits_with_factors(dropped, tokens, {})
    with torch.no_grad():
        found = folded(tokens, use_cache=False).logits
    assert (found - expected).norm() <= 2e-3 * (expected - unscaled).norm()
    assert [*folded.state_dict()] == [*dropped.state_dict()]  # no new parameters: plain transformers loads it


def noisy(model, by=0.3):
    """Random models have attention that adds little, norms of ones and no biases: change them all."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(by * weight.std().nan_to_num(0.1).clamp(min=0.05) * torch.randn_like(weight))
    return model


def relative_error(model, windows=None):
    """How far the folded model is from one with multiplied states, over what multiplying changes."""
    plan, tokens = MergePlan(LAYERS, windows or tuple(FACTORS), "scale"), texts()
    factors = dict(zip(plan.windows, (1.7, 0.6), strict=False))
    folded = apply_plan(model, plan, lambda window: MergedLayer(window.first, factor=factors[window]))
    dropped = apply_plan(model, replace(plan, rule="keep_first"))
    places = {place: factors[window] for place, window in enumerate(plan.kept_layers()) if window in factors}
    expected = logits_with_factors(dropped, tokens, places)
    with torch.no_grad():
        found = folded(tokens, use_cache=False).logits
    return float((found - expected).norm() / (expected - logits_with_factors(dropped, tokens, {})).norm())


@pytest.mark.parametrize("silent", [("self_attn.o_proj", "mlp.down_proj"), ("self_attn.o_proj",), ("mlp.down_proj",)])
@pytest.mark.parametrize("layer", [0, 2, 5])
def test_layers_that_add_nothing_do_not_hide_what_others_add(silent, layer):
    model = larger_embedding(made("llama"))
    for name in silent:
        find_decoder(model).layers[layer].get_submodule(name).weight.data.zero_()
    assert relative_error(model) < 2e-3


def test_a_first_token_with_a_huge_state_hides_nothing():
    model = made("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[:8] *= torch.tensor([3000.0, 9, 9, 9, 9, 9, 9, 9])[:, None]
        for layer in find_decoder(model).layers:
            layer.self_attn.o_proj.weight *= 0.3
    for index in range(LAYERS):
        assert Writes(model).of(index) == {"self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0}


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_NORM_BEFORE))
def test_what_is_found_does_not_depend_on_weights_being_fresh(family):
    assert relative_error(noisy(larger_embedding(made(family)))) < 2e-3


def test_gated_experts_are_divided_as_well():
    model = tiny_model("qwen2_moe", layers=LAYERS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                       shared_expert_intermediate_size=32)  # fmt: skip
    assert "mlp.shared_expert.down_proj.weight" in Writes(model).of(1)
    assert relative_error(larger_embedding(model)) < 2e-3


def test_a_model_without_a_norm_at_the_end_is_refused():
    options = {"ffn_dim": 64, "word_embed_proj_dim": 32, "_remove_final_layer_norm": True}
    with pytest.raises(NoScaleError, match="no norm follows the last one"):
        check_scales(tiny_model("opt", layers=LAYERS, **options))


@pytest.mark.parametrize("family", sorted(WITHOUT_NORM_BEFORE))
def test_layers_that_read_the_state_without_a_norm_are_refused(family):
    with pytest.raises(NoScaleError, match="they read it without a norm. Choose rule or repair fit"):
        check_scales(made(family))


@pytest.mark.parametrize("gate", [1, 3, 10, 30, 100, 300])
@pytest.mark.parametrize("large", [False, True])
def test_an_activation_that_is_nearly_linear_does_not_pass_for_a_norm(large, gate):
    model = larger_embedding(made("olmo2")) if large else made("olmo2")
    with torch.no_grad():
        for layer in find_decoder(model).layers:
            layer.mlp.gate_proj.weight *= gate  # the larger, the nearer is the activation to one without curvature
    try:
        error = relative_error(model)
    except NoScaleError:
        assert gate < 300
        return
    assert gate >= 100
    assert error < 2e-3


class NormByHand(torch.nn.Module):
    """A norm whose epsilon is no attribute of a module."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-5)


@pytest.mark.parametrize("norm", ["its own", NormByHand, lambda weight: torch.nn.RMSNorm(len(weight), 1e-5)])
@pytest.mark.parametrize("family", ["llama", "olmo", "qwen3"])
def test_norms_whose_epsilon_counts_are_norms_wherever_it_is_kept(family, norm):
    model = tiny_model(family, layers=LAYERS, initializer_range=0.02)  # olmo: epsilon in a call alone
    for layer in find_decoder(model).layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            if norm != "its own":
                setattr(layer, name, norm(torch.ones(layer.mlp.down_proj.out_features)))
    check_scales(model)


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        ("llama", {"self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0}),
        ("gemma2", {"post_attention_layernorm.weight": 1, "post_feedforward_layernorm.weight": 1}),
        ("gpt2", dict.fromkeys(("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"), 0)),
        ("falcon", {"self_attention.dense.weight": 0, "mlp.dense_4h_to_h.weight": 0}),
        ("mixtral", {"self_attn.o_proj.weight": 0, "mlp.experts.down_proj": 0}),
    ],
)
def test_what_a_layer_adds_is_found(family, parameters):
    assert Writes(made(family)).of(2) == parameters


def test_layers_with_something_else_in_their_sum_are_refused(monkeypatch):
    model = tiny_model()
    layer = type(find_decoder(model).layers[0])
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, hidden, *a, **k: 1.5 * forward(self, hidden, *a, **k))
    with pytest.raises(NoScaleError, match="what they add to it is not a sum of linear maps, experts and norms"):
        check_scales(model)


def test_layers_that_share_weights_are_refused():
    model = made("llama")
    layers = find_decoder(model).layers
    layers[4].self_attn.o_proj = layers[1].self_attn.o_proj
    with pytest.raises(NoScaleError, match="they share weights"):
        check_scales(model)


def test_the_factor_is_the_ratio_of_mean_lengths_without_the_first_tokens():
    targets, states = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0)).split(8, dim=-1)
    targets = targets.clone()
    targets[:, :SKIPPED_TOKENS] *= 1000
    wanted, own = (np.linalg.norm(part.numpy()[:, SKIPPED_TOKENS:], axis=-1).mean() for part in (targets, states))
    assert magnitude_factor(targets, states) == pytest.approx(wanted / own, rel=1e-6)


@pytest.mark.parametrize("windows", ["0-1,3-4", "1-3", "0-2,4-5"])
def test_each_state_has_its_former_size_after_the_layers_below_were_scaled(windows):
    model, tokens = made("llama"), texts()
    plan = MergePlan(LAYERS, parse_windows(windows), "scale")
    made_layers = fitted_layers(model, plan, tokens, how="scale")
    original, factors = states_of(model, tokens), {}
    dropped = apply_plan(model, replace(plan, rule="keep_first"))
    for layer, window in enumerate(plan.kept_layers()):
        if len(window) == 1:
            continue
        handles = [find_decoder(dropped).layers[n].register_forward_hook(times(f)) for n, f in factors.items()]
        own = states_of(dropped, tokens)[layer]
        for handle in handles:
            handle.remove()
        factors[layer] = magnitude_factor(original[window.last], own)
        assert made_layers[window].factor == pytest.approx(factors[layer], rel=1e-5)
        assert made_layers[window].parameters == {}
    assert len(factors) == len(plan.windows)


def test_dropped_lowest_layers_scale_the_embedding():
    model, tokens = larger_embedding(made("llama")), texts()
    plan = dropped_plan(LAYERS, {0, 1, 5})
    layers = fitted_layers(model, plan, tokens, how="scale")
    below = layers[plan.windows[0]]
    embedded = model.get_input_embeddings()(tokens)
    assert below.factor == pytest.approx(magnitude_factor(states_of(model, tokens)[1], embedded.detach()), rel=1e-5)
    found = apply_plan(model, plan, layers.__getitem__)
    dropped = apply_plan(model, plan)
    embedding = dropped.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(below.factor * embedding.weight)  # the dropped model shares it with others
    window = plan.windows[1]
    expected = logits_with_factors(dropped, tokens, {plan.kept_layers().index(window): layers[window].factor})
    with torch.no_grad():
        assert torch.allclose(found(tokens).logits, expected, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_searches_see_the_model_that_is_merged(family):
    model, tokens, other = made(family), texts(4), texts(4, seed=1)
    fitter = WindowFitter(model, other, "scale")
    windows = (Window(1, 2), Window(4, 5))
    plan = MergePlan(LAYERS, windows, "scale")
    merged = apply_plan(model, plan, fitter.merged)
    with torch.no_grad():
        loss = float(merged(tokens, labels=tokens).loss)
    assert PlanLoss(model, tokens, fitter.merged)(plan) == pytest.approx(loss, rel=2e-3)
    states = [part.base_model(tokens)[0].detach() for part in (merged, model)]
    expected = float(text_cosines(*states).mean())
    score = WindowScorer(model, tokens, "scale", merged=fitter.merged).score(windows[1:], windows[0])
    assert score == pytest.approx(expected, abs=2e-3)
    assert fitter.merged(windows[0]).factor != pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_disk_to_disk_gives_the_same_bits(family, dtype, tokenizer, tmp_path):
    source = tmp_path / "source"
    made(family).to(dtype).save_pretrained(source)
    tokenizer.save_pretrained(source)
    model, own = load_model(str(source))
    plan = MergePlan(LAYERS, tuple(FACTORS), "scale")
    layers = fitted_layers(model, plan, texts(), how="scale")
    stream_merge(str(source), plan, tmp_path / "streamed", made=folded(model, plan, layers))
    save_model(apply_plan(model, plan, layers.__getitem__), own, tmp_path / "memory")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("streamed", "memory"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_is_merged_by_the_rule_and_repaired_with_it(model_folder, text_file):
    study = create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 4, 16))
    small = {"steps": 1, "batch": 1, "length": 16, "held_out": 1, "save_every": 1, "texts": str(text_file)}
    for rule in ("scale", "rdsc"):
        run = study.create_run(rule, MergePlan(4, (Window(1, 2),), rule))
        merge_run(run)
        before = load_file(run.model_folder / "model.safetensors")["model.layers.2.mlp.down_proj.weight"]
        own = load_model(str(model_folder))[0].model.layers[3].mlp.down_proj.weight.detach()
        assert torch.equal(before, own) == (rule == "rdsc")  # the layer above is divided
        if rule == "scale":
            factor = own.flatten()[0] / before.flatten()[0]
            assert torch.allclose(before * factor, own, rtol=1e-5)
        with pytest.raises(SettingsError, match="Choose --target original, or another rule and repair"):
            recover_run(run, preset_settings("quick", **small, repair="scale", target="hidden"))
        recover_run(run, preset_settings("quick", **{**small, "learning_rate": 1e-8}, repair="scale"))
        assert run.settings["recovery"]["repaired"] == "scale"
        after = load_file(run.model_folder / "model.safetensors")["model.layers.2.mlp.down_proj.weight"]
        ratio = after / own
        assert ratio.std() < 1e-3  # one factor for all, and next to nothing learnt
        assert abs(float(ratio.mean()) - 1) > 1e-3


def test_hidden_states_of_another_size_are_no_target_and_nothing_is_lost(model_folder, text_file):
    study = create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 4, 16))
    run = study.create_run("one", MergePlan(4, (Window(1, 2),), "scale"))
    settings = preset_settings("quick", target="hidden", texts=str(text_file), length=16, batch=1, held_out=1)
    with pytest.raises(SettingsError, match="leave them in another size"):
        run_pipeline(run, 2, settings, no_progress)
    assert run.stage == "planned"


@pytest.mark.parametrize(
    ("rule", "repaired", "says"),
    [
        ("fit", "fit", "least squares"),
        ("fit", "scale", "the size that it has"),
        ("scale", "fit", "least squares"),
        ("rdsc", "scale", "the size that it has"),
        ("scale", None, "the size that it has"),
        ("fit", "none", "least squares"),
        ("keep_first", "none", ""),
    ],
)
def test_the_card_says_what_was_done(rule, repaired, says, model_folder, text_file):
    study = create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 4, 16))
    run = study.create_run("one", MergePlan(4, (Window(1, 2),), rule))
    recovery = preset_settings("quick")
    if repaired is not None:
        run.remember(recovery={**asdict(recovery), "repaired": repaired})
    told = model_card(run)
    assert ("least squares" in told, "the size that it has" in told) == ("least" in says, "the size" in says)
