"""Sums of merged layers in half precision, and which layers a plan looks at."""

import pytest
import torch

from swm.errors import ModelError, PlanError
from swm.merging.apply import (
    MergedLayer,
    apply_plan,
    can_merge,
    check_plan,
    check_window,
    merge_window,
    merged_tensor,
    projection_names,
)
from swm.models.decoder import find_decoder
from swm.plan import MergePlan, Window
from tests.conftest import WEIGHT_RULES, tiny_model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_of_half_precision_are_summed_in_float32_and_rounded_once(dtype):
    # 8 bits of bfloat16 hold neither 128.5 nor 127.5 / 3, on the way to the mean of 1, 256 and 1.
    one, large = torch.ones(2, 2, dtype=dtype), torch.full((2, 2), 256.0, dtype=dtype)
    assert merged_tensor([one, large, one], "mean").eq(86).all()
    # 1 + (256 - 1) + (1 - 1), and 1 + (1 - 1) + (256 - 1) + (256 - 1): 511 is 512 in bfloat16.
    assert merged_tensor([one, large, one], "rdsc").eq(256).all()
    expected = torch.tensor(511.0).to(dtype)
    found = merged_tensor([one, one, large, large], "rdsc")
    assert found.dtype == dtype
    assert found.eq(expected).all()


@pytest.mark.parametrize("rule", ["rdsc", "mean", "replace"])
@pytest.mark.parametrize("layers", [2, 3, 5])
def test_random_weights_merge_to_the_formula_in_float64(rule, layers):
    tensors = [torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(layers)]
    w = [tensor.double() for tensor in tensors]
    expected = {
        "rdsc": w[0] + sum(later - w[0] for later in w[1:]),
        "mean": sum(w) / layers,
        "replace": w[-1],
    }[rule]
    torch.testing.assert_close(merged_tensor(tensors, rule).double(), expected, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(tensor, before.float()) for tensor, before in zip(tensors, w, strict=True))


def test_a_rule_that_needs_text_makes_no_layer_from_weights_alone():
    with pytest.raises(ValueError, match="Rule fit needs text"):
        merged_tensor([torch.ones(1), torch.ones(1)], "fit")
    with pytest.raises(ValueError, match="Rule fit needs text"):
        apply_plan(tiny_model(), MergePlan(4, (Window(1, 2),), "fit"))


def test_merged_weights_are_not_trained_and_those_left_alone_as_before():
    model = tiny_model()
    small = apply_plan(model, MergePlan(4, (Window(1, 3),), "mean"))
    first, merged = find_decoder(small).layers
    for name, parameter in merged.named_parameters():
        assert parameter.requires_grad == ("norm" in name)
    assert all(parameter.requires_grad for parameter in first.parameters())


def wide_layer(model):
    config = type(model.config)(hidden_size=32, intermediate_size=48)
    return type(find_decoder(model).layers[0].mlp)(config)


@pytest.mark.parametrize("odd", [0, 3])
@pytest.mark.parametrize("rule", WEIGHT_RULES)
def test_layers_outside_the_window_may_have_any_shape(odd, rule):
    model = tiny_model()
    layers = find_decoder(model).layers
    layers[odd].mlp = wide_layer(model)
    check_window(layers, Window(1, 2), rule)
    assert can_merge(layers, Window(1, 2), rule)
    assert merge_window(layers, Window(1, 2), rule).base == (2 if rule == "keep_last" else 1)


@pytest.mark.parametrize(("odd", "named"), [(1, "layers 1 and 2"), (2, "layers 1 and 2"), (3, "layers 1 and 3")])
def test_a_window_of_different_shapes_names_the_first_layer_that_differs(odd, named):
    model = tiny_model()
    layers = find_decoder(model).layers
    layers[odd].mlp = wide_layer(model)
    with pytest.raises(PlanError, match=f"Cannot merge window 1-3: {named} differ in shape or type"):
        merge_window(layers, Window(1, 3), "mean")
    assert not can_merge(layers, Window(1, 3), "rdsc")
    assert not can_merge(layers, Window(1, 3), "replace")
    assert can_merge(layers, Window(1, 3), "keep_first")
    assert merge_window(layers, Window(1, 3), "keep_last") == MergedLayer(3)


def test_quantised_weights_are_refused_only_where_they_are_added_up():
    model = tiny_model()
    for layer in find_decoder(model).layers[1:3]:
        layer.mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(64, 32, dtype=torch.int8), requires_grad=False)
    layers = find_decoder(model).layers
    with pytest.raises(ModelError, match=r"mlp\.up_proj\.weight is torch\.int8"):
        can_merge(layers, Window(1, 2), "mean")
    assert can_merge(layers, Window(1, 2), "keep_first")


def test_projections_are_all_that_modules_with_a_matrix_own():
    layer = find_decoder(tiny_model("gpt2", layers=1)).layers[0]
    expected = [f"{module}.{kind}" for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
                for kind in ("weight", "bias")]  # fmt: skip
    assert sorted(projection_names(layer)) == sorted(expected)
    linear = torch.nn.Linear(3, 2)
    assert projection_names(linear) == ["weight", "bias"]  # a module's own, without a dot
    assert projection_names(torch.nn.LayerNorm(3)) == []


def test_the_config_of_an_empty_plan_says_nothing_new_and_of_another_its_layer_count():
    model = tiny_model()
    assert check_plan(model, MergePlan(4)) == {}
    assert check_plan(model, MergePlan(4, (Window(0, 2),))) == {"num_hidden_layers": 2}


def test_merged_layers_that_are_given_take_the_place_of_the_rules():
    model = tiny_model()
    weight = torch.full((64, 32), 0.5)
    made = []

    def make(window):
        made.append(window)
        return MergedLayer(window.first, {"mlp.up_proj.weight": weight})

    small = apply_plan(model, MergePlan(4, (Window(0, 1), Window(2, 3)), "mean"), make)
    assert made == [Window(0, 1), Window(2, 3)]
    for layer, base in zip(find_decoder(small).layers, (0, 2), strict=True):
        assert layer.mlp.up_proj.weight.data_ptr() == weight.data_ptr()
        original = find_decoder(model).layers[base]
        assert layer.mlp.gate_proj.weight.data_ptr() == original.mlp.gate_proj.weight.data_ptr()
    assert [layer.self_attn.layer_idx for layer in find_decoder(small).layers] == [0, 1]
    assert [layer.self_attn.layer_idx for layer in find_decoder(model).layers] == [0, 1, 2, 3]
