"""Plans of models with several kinds of layers can be built, saved and generate, whoever makes them."""

from contextlib import suppress

import pytest
import torch
from transformers import AutoModelForCausalLM

from swm.errors import PlanError
from swm.merging.apply import apply_plan
from swm.merging.fit import apply_fitted_plan
from swm.models.load import load_model
from swm.models.offload import is_offloaded
from swm.plan import dropped_plan
from swm.planners.needed import needed_layers
from swm.planners.plan_with import plan_with
from swm.search.kept_path import kept_path
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from tests.conftest import in_pairs, tiny_model

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
NEEDED = {**ATTENTION, "gpt_neox_japanese": {5}}  # whose config gives the last layer a bias, whichever that is
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
    expected = [NEEDED[family]] if family in NEEDED else []
    assert [set(group) for group in needed_layers(model)] == expected


@in_pairs(("family", "planner"), HYBRIDS, PLANNERS)
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


@pytest.fixture
def hybrid(tmp_path, tokenizer, text_file, home):
    """An experiment with a model of 6 layers, of which 1 and 4 are attention."""
    tiny_model("bamba", layers=6, **HYBRIDS["bamba"]).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return create_experiment("e", ExperimentSettings(str(tmp_path / "model"), str(text_file), 4, 32))


@pytest.mark.parametrize("command", ["plan", "merge", "run"])
def test_windows_that_leave_no_attention_are_refused_at_once(command, hybrid, swm):
    run = [] if command == "plan" else ["r"]
    code, _, told = swm(command, "e", *run, "--windows", "0-1,3-4", "--rule", "keep_first")
    assert (code, "needs one of the layers 1, 4 to write text" in told) == (1, True), told
    assert [run.name for run in hybrid.runs()] == ["baseline"]
    code, _, told = swm("plan", "e", "--windows", "0-1", "--rule", "keep_first")
    assert code == 0, told


def test_an_experiment_of_an_earlier_release_asks_the_model(hybrid, swm):
    data = hybrid.read("experiment.json")
    facts = {name: fact for name, fact in data["model_facts"].items() if name != "needed_layers"}
    hybrid.write("experiment.json", {**data, "model_facts": facts})
    code, _, told = swm("plan", "e", "--windows", "0-1,3-4", "--rule", "keep_first")
    assert (code, "needs one of the layers 1, 4 to write text" in told) == (1, True), told


def test_no_threshold_leaves_a_model_that_cannot_write(hybrid, swm):
    """Held against transformers, for every plan of the path; without knowing what is needed, some could not."""
    code, _, told = swm("search", "e", "--rule", "keep_first", "--from", "0.1")
    assert code == 0, told
    model = tiny_model("bamba", layers=6, **HYBRIDS["bamba"])
    plans = [step.plan for step in kept_path(hybrid, "keep_first").intervals()]
    assert min(plan.layers_left for plan in plans) <= 3
    for plan in plans:
        apply_plan(model, plan).generate(text(0)[:1], max_new_tokens=3, pad_token_id=0)


def test_what_is_needed_is_found_where_weights_lie_on_disk(tmp_path, tokenizer, monkeypatch):
    model = tiny_model("bamba", layers=6, **HYBRIDS["bamba"])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("swm.models.load.room_here", lambda: {"cpu": 160_000})
    spread = load_model(str(tmp_path / "model"), offload=True)[0]
    assert is_offloaded(spread)
    assert [set(group) for group in needed_layers(spread)] == [ATTENTION["bamba"]]
