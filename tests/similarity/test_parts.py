"""Influence of attention and MLP against the states that hooks see inside each family's layers."""

import pytest
import torch
from torch.nn import functional as F

from swm.models.decoder import find_decoder
from swm.similarity.layers import block_influence
from swm.stages.measure import parts_influence
from tests.conftest import tiny_model

# The module whose input is the state between attention and MLP.
BETWEEN = {
    "llama": "post_attention_layernorm",
    "gpt2": "ln_2",
    "gemma2": "pre_feedforward_layernorm",
    "qwen3_moe": "post_attention_layernorm",
}
SETTINGS = {"qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}}


def turned(before, after, skip):
    return float((1 - F.cosine_similarity(before[:, skip:].double(), after[:, skip:].double(), dim=-1)).mean())


@pytest.mark.parametrize("kind", BETWEEN)
@pytest.mark.parametrize("skip", [0, 3])
@torch.no_grad()
def test_influences_are_those_of_the_states_inside(kind, skip, tokens):
    model = tiny_model(kind, **SETTINGS.get(kind, {}))
    layers, states, hooks = find_decoder(model).layers, {}, []

    def keep(index, name):
        def hook(module, args, kwargs, out=None):
            state = out if out is not None else args[0] if args else kwargs["hidden_states"]
            states[index, name] = state[0] if isinstance(state, tuple) else state

        return hook

    for index, layer in enumerate(layers):
        middle = layer.get_submodule(BETWEEN[kind])
        hooks.append(layer.register_forward_pre_hook(keep(index, "in"), with_kwargs=True))
        hooks.append(middle.register_forward_pre_hook(keep(index, "middle"), with_kwargs=True))
        hooks.append(layer.register_forward_hook(keep(index, "out"), with_kwargs=True))
    model(tokens)
    for hook in hooks:
        hook.remove()
    found = parts_influence(model, tokens, skip)
    for index in range(len(layers)):
        start, middle, end = (states[index, name] for name in ("in", "middle", "out"))
        assert float(found[0][index]) == pytest.approx(turned(start, middle, skip), abs=2e-6)
        assert float(found[1][index]) == pytest.approx(turned(middle, end, skip), abs=2e-6)


@torch.no_grad()
def test_an_mlp_beside_the_attention_is_what_is_added_to_it(tokens):
    model = tiny_model("gpt_neox", use_parallel_residual=True)
    layer, seen = find_decoder(model).layers[1], {}
    hooks = [
        layer.register_forward_pre_hook(lambda m, a, k: seen.update(start=a[0]), with_kwargs=True),
        layer.attention.register_forward_hook(lambda m, a, out: seen.update(added=out[0])),
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    attention, _ = parts_influence(model, tokens)
    assert float(attention[1]) == pytest.approx(turned(seen["start"], seen["start"] + seen["added"], 0), abs=2e-6)


def test_an_attention_that_adds_nothing_leaves_all_to_the_mlp(model, tokens):
    for layer in find_decoder(model).layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    attention, mlp = parts_influence(model, tokens)
    assert attention.abs().max() < 1e-6
    assert mlp.tolist() == pytest.approx(block_influence(model, tokens).tolist(), abs=1e-6)


def test_a_family_without_such_a_part_has_none(tokens):
    model = tiny_model("mamba", state_size=4, time_step_rank=2)
    assert parts_influence(model, tokens) is None
