"""Plans of models with several kinds of layers can be built, saved and generate, whoever makes them."""

from contextlib import suppress

import pytest
import torch
from transformers import AutoModelForCausalLM

from swm.errors import PlanError
from swm.merging.apply import apply_plan
from swm.merging.fit import apply_fitted_plan
from swm.models.layer_facts import kinds_of
from swm.plan import dropped_plan
from swm.planners.needed import needed_layers
from swm.planners.plan_with import plan_with
from tests.conftest import tiny_model

HYBRIDS = {
    "bamba": {
        "mamba_chunk_size": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1, 4],
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "mlp", "attention", "mlp", "mamba", "mlp"],
        "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv", "full_attention", "conv"]},
    "gpt_neox_japanese": {},  # its last layer alone has a bias
    "qwen2": {},
}  # fmt: skip
ATTENTION = {"bamba": {1, 4}, "nemotron_h": {2}, "lfm2": {1, 4}}
PLANNERS = ("best", "sleb", "shortgpt", "angular", "random")


def text(seed, count=3):
    return torch.randint(3, 250, (count, 16), generator=torch.Generator().manual_seed(seed))


def works(model, tmp_path):
    """Whether plain transformers loads the saved model and writes with it."""
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    return reloaded.generate(text(0)[:1], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 19)


@pytest.mark.parametrize("family", HYBRIDS)
def test_needed_are_the_layers_without_which_transformers_cannot_write(family):
    model = tiny_model(family, layers=6, **HYBRIDS[family])
    expected = [ATTENTION[family]] if family in ATTENTION else []
    assert [set(group) for group in needed_layers(model, kinds_of(model))] == expected


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("family", HYBRIDS)
def test_a_plan_gives_a_model_that_plain_transformers_writes_with(family, planner, tmp_path):
    model, made = tiny_model(family, layers=6, **HYBRIDS[family]), []
    for layers in (5, 3) if planner == "best" else (3,):
        with suppress(PlanError):  # no such plan, or no config describes it: said before anything is merged
            plan = plan_with(planner, model, text(1), layers, budget=12, fit_tokens=lambda count: text(2, 12))
            fit = plan.rule == "fit"
            made.append(apply_fitted_plan(model, plan, text(2, 12)) if fit else apply_plan(model, plan))
    assert all(works(smaller, tmp_path) for smaller in made)
    assert made or planner not in ("best", "sleb")


def test_without_attention_it_would_not():
    """What the tests above avoid is real."""
    model = tiny_model("bamba", layers=6, **HYBRIDS["bamba"])
    with pytest.raises(ValueError, match="Attention"):
        apply_plan(model, dropped_plan(6, {1, 4})).generate(text(0)[:1], max_new_tokens=3, pad_token_id=0)
