"""Each rule against its formula written out by hand, and the promises of apply_plan on tiny real models."""

import json
import subprocess
import sys

import pytest
import torch

from swm.errors import ModelError, PlanError, SettingsError
from swm.merging.apply import apply_plan, merge_window, projection_names
from swm.models.decoder import find_decoder
from swm.models.load import save_model
from swm.models.save import check_reload
from swm.plan import MergePlan, Window, base_layer
from tests.conftest import WEIGHT_RULES, tiny_model

PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
PROJECTIONS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def weight(layer, name):
    return layer.get_submodule(name).weight


def expected(rule, w):
    """The merged weight of layers 1, 2, 3 as FORMULA, from a dict of weights by layer."""
    return {
        "rdsc": w[1] + (w[2] - w[1]) + (w[3] - w[1]),
        "replace": w[3],
        "mean": (w[1] + w[2] + w[3]) / 3,
        "keep_first": w[1],
        "keep_last": w[3],
    }[rule]


@pytest.mark.parametrize("rule", WEIGHT_RULES)
def test_rule_gives_its_formula_for_every_projection(rule):
    model = tiny_model(layers=5)
    layers = find_decoder(model).layers
    small = apply_plan(model, MergePlan(5, (Window(1, 3),), rule))
    merged = find_decoder(small).layers[1]
    for name in PROJECTIONS:
        wanted = expected(rule, {i: weight(layers[i], name) for i in (1, 2, 3)})
        torch.testing.assert_close(weight(merged, name), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", WEIGHT_RULES)
def test_norms_come_from_the_base_layer(rule):
    model = tiny_model(layers=4)
    for index, layer in enumerate(find_decoder(model).layers):
        layer.input_layernorm.weight.data.fill_(float(index))
    small = apply_plan(model, MergePlan(4, (Window(0, 2),), rule))
    base = 2 if rule == "keep_last" else 0
    assert base_layer(Window(0, 2), rule) == base
    assert find_decoder(small).layers[0].input_layernorm.weight.eq(base).all()


def test_biases_follow_their_projection():
    model = tiny_model("qwen2", layers=3)
    for index, layer in enumerate(find_decoder(model).layers):
        layer.self_attn.q_proj.bias.data.fill_(10.0**index)
    small = apply_plan(model, MergePlan(3, (Window(0, 2),), "rdsc"))
    # 1 + (10 - 1) + (100 - 1)
    assert find_decoder(small).layers[0].self_attn.q_proj.bias.eq(109).all()


def test_mean_divides_by_the_number_of_layers():
    # The released ablation forgets to: then three equal layers would give three times their weights.
    model = tiny_model(layers=4)
    layers = find_decoder(model).layers
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    merged = merge_window(layers, Window(0, 2), "mean")
    for name in projection_names(layers[0]):
        tensor = layers[0].get_parameter(name)
        torch.testing.assert_close(merged.parameters[name], tensor)


def test_for_two_layers_the_printed_formula_equals_the_released_code():
    layers = find_decoder(tiny_model()).layers
    printed, released = (merge_window(layers, Window(1, 2), rule).parameters for rule in ("rdsc", "replace"))
    assert printed.keys() == released.keys()
    for name in printed:
        torch.testing.assert_close(printed[name], released[name])


def test_for_three_layers_they_differ():
    layers = find_decoder(tiny_model()).layers
    printed, released = (merge_window(layers, Window(0, 2), rule).parameters for rule in ("rdsc", "replace"))
    assert not torch.allclose(printed["mlp.up_proj.weight"], released["mlp.up_proj.weight"])


@pytest.mark.parametrize("rule", WEIGHT_RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_rows_at_a_time_give_the_same_bits(rule, dtype, monkeypatch):
    layers = find_decoder(tiny_model(layers=6).to(dtype)).layers
    whole = [merge_window(layers, Window(first, 5), rule) for first in (4, 3, 1)]
    monkeypatch.setattr("swm.merging.apply.BLOCK_NUMBERS", 70)  # two rows of the narrower matrices, one of the others
    for merged, first in zip(whole, (4, 3, 1), strict=True):
        parts = merge_window(layers, Window(first, 5), rule)
        assert parts.base == merged.base
        assert parts.parameters.keys() == merged.parameters.keys()
        assert all(torch.equal(parts.parameters[name], merged.parameters[name]) for name in merged.parameters)


def test_empty_plan_changes_no_logit(model, tokens):
    assert torch.equal(apply_plan(model, MergePlan(4))(tokens).logits, model(tokens).logits)


def test_the_given_model_is_not_changed(model, tokens):
    before = model(tokens).logits
    apply_plan(model, MergePlan(4, (Window(0, 1), Window(2, 3)), "mean"))
    assert torch.equal(model(tokens).logits, before)
    assert model.config.num_hidden_layers == len(find_decoder(model).layers) == 4


def test_untouched_tensors_are_shared_not_copied(model):
    small = apply_plan(model, MergePlan(4, (Window(0, 2),)))
    own = {p.data_ptr() for p in model.parameters()}
    copied = [name for name, p in small.named_parameters() if p.data_ptr() not in own]
    assert copied
    assert all(name.startswith("model.layers.0.") for name in copied)


def test_plan_for_another_model_is_refused(model):
    with pytest.raises(PlanError, match="for 5 layers, but the model has 4"):
        apply_plan(model, MergePlan(5, (Window(1, 2),)))


def test_window_across_layers_of_different_shape_is_refused(model):
    layers = find_decoder(model).layers
    layers[2].mlp = type(layers[2].mlp)(type(model.config)(hidden_size=32, intermediate_size=48))
    with pytest.raises(PlanError, match="layers 1 and 2 differ in shape"):
        apply_plan(model, MergePlan(4, (Window(1, 2),)))
    assert apply_plan(model, MergePlan(4, (Window(0, 1),))).config.num_hidden_layers == 3


def test_quantised_weights_are_refused(model):
    layer = find_decoder(model).layers[1]
    layer.mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(64, 32, dtype=torch.int8), requires_grad=False)
    find_decoder(model).layers[2].mlp.up_proj.weight = layer.mlp.up_proj.weight
    with pytest.raises(ModelError, match=r"quantised .*int8"):
        merge_window(find_decoder(model).layers, Window(1, 2), "mean")


def test_unknown_rule_is_refused(model):
    with pytest.raises(SettingsError, match="'sum' is not a merge rule"):
        merge_window(find_decoder(model).layers, Window(1, 2), "sum")


RELOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
AutoTokenizer.from_pretrained(sys.argv[1])
ids = torch.tensor(json.loads(sys.argv[2]))
with torch.no_grad():
    cached = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=True)
    plain = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
    print(json.dumps([model(ids).logits[0, -1].tolist(), cached.tolist(), plain.tolist()]))
"""


@pytest.mark.parametrize("rule", ["rdsc", pytest.param("keep_last", marks=pytest.mark.long)])
@pytest.mark.cold
def test_saved_model_loads_with_plain_transformers_in_a_fresh_process(model, tokenizer, tokens, tmp_path, rule):
    small = apply_plan(model, MergePlan(4, (Window(1, 2),), rule))
    save_model(small, tokenizer, tmp_path / "small")
    assert check_reload(tmp_path / "small", small, tokens) == 0
    arguments = [sys.executable, "-c", RELOAD, str(tmp_path / "small"), json.dumps(tokens[:1].tolist())]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    logits, cached, plain = json.loads(printed.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(logits), small(tokens[:1]).logits[0, -1], rtol=1e-5, atol=1e-5)
    assert cached == plain
    assert len(cached[0]) == tokens.shape[1] + 8
