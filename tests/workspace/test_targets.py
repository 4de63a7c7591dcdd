"""Targets: read as people write them, and held against real models and their real caches."""

import json
from dataclasses import replace

import pytest
import torch

import swm.stages.measure as measure
from swm.errors import PlanError, SettingsError
from swm.merging.apply import apply_plan
from swm.models.decoder import parameter_count, size_bytes
from swm.models.load import _cached_numbers, config_facts
from swm.plan import MergePlan, dropped_plan
from swm.registry import PLANNERS
from swm.workspace.experiments import Experiment
from swm.workspace.targets import (
    SPEED,
    cache_bytes,
    count_from,
    loss_from,
    most_layers,
    parameters_left,
    parameters_of,
    size_from,
    weights_bytes,
)
from tests.conftest import tiny_model
from tests.product.test_families import FAMILIES, made


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (size_from, "6GiB", 6 * 2**30),
        (size_from, "1.5 gb", 1.5e9),
        (size_from, "900MiB", 900 * 2**20),
        (count_from, "5.5B", 5.5e9),
        (count_from, "120m", 120e6),
        (count_from, "1000", 1000),
        (loss_from, "5%", 1.05),
        (loss_from, "20 %", 1.2),
        (size_from, ".5GiB", 2**29),
    ],
)
def test_amounts_as_people_write_them(read, text, value):
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (size_from, "6"), (size_from, "-6GiB"), (size_from, "GiB"), (size_from, "0GiB"), (size_from, "6 bananas"),
        (size_from, "٣GiB"), (loss_from, "٥%"),
        (count_from, "5.5GiB"), (count_from, ""), (count_from, "nan"), (count_from, "0"),
        (loss_from, "5"), (loss_from, "0%"), (loss_from, "-5%"), (loss_from, "five"),
    ],
)  # fmt: skip
def test_amounts_that_are_none_are_refused(read, text):
    with pytest.raises(SettingsError, match="is not"):
        read(text)


def cached_bytes(cache):
    """Bytes of all keys and values that transformers keeps."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_is_the_one_that_transformers_keeps(family, tmp_path):
    model = made(family)
    model.save_pretrained(tmp_path)
    facts = config_facts(str(tmp_path))
    with torch.no_grad():
        kept = cached_bytes(model(torch.randint(0, 300, (2, 6)), use_cache=True).past_key_values)
    assert facts["cache_bytes_per_token"] > 0
    assert cache_bytes(facts, facts["layers"], 12) == kept


def test_the_cache_of_other_configs_is_right_or_unknown():
    from transformers import AutoConfig

    falcon = {"num_attention_heads": 128, "hidden_size": 8192}
    assert _cached_numbers(AutoConfig.for_model("falcon", **falcon, multi_query=True)) == 2 * 64
    assert _cached_numbers(AutoConfig.for_model("deepseek_v3")) == 0
    assert _cached_numbers(AutoConfig.for_model("gemma4_text")) >= 0  # its layers differ


def test_what_is_left_is_that_of_the_merged_model(tmp_path):
    model = made("llama")
    model.save_pretrained(tmp_path)
    facts = config_facts(str(tmp_path))
    small = apply_plan(model, dropped_plan(6, {2, 4}))
    assert parameters_left(facts, 4) == parameter_count(small)
    assert weights_bytes(facts, 4) == pytest.approx(size_bytes(small))


DENSE_FIRST = {
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
HEAVY_FIRST = {**DENSE_FIRST, "intermediate_size": 512, "moe_intermediate_size": 8, "n_routed_experts": 2}


@pytest.mark.parametrize("settings", [DENSE_FIRST, HEAVY_FIRST])
def test_layers_of_several_sizes_count_as_what_they_are(settings, tmp_path, tokenizer, text_file, home, swm):
    """Parameters of a plan's model against those of the model; a target against the one that is written."""
    model = tiny_model("deepseek_v3", layers=6, **settings)
    for folder in (model, tokenizer):
        folder.save_pretrained(tmp_path)
    facts = config_facts(str(tmp_path))
    sizes = set()
    for dropped in ({0}, {5}, {0, 1}, {2, 3}, {1, 2, 4}, {0, 3, 5}):
        plan = dropped_plan(6, dropped)
        sizes.add(parameter_count(apply_plan(model, plan)))
        assert (
            parameters_of(facts, plan)
            == parameter_count(apply_plan(model, plan))
            >= parameters_left(facts, 6 - len(dropped))
        )
    assert swm("create", "e", "--model", tmp_path, "--texts", text_file, "--count", 4, "--length", 32)[0] == 0
    for target in sorted(sizes)[1:-1:2]:
        code, out, told = swm("plan", "e", "--planner", "shortgpt", "--parameters", target, "--json")
        if code:
            assert "does not meet the target" in told
        else:
            assert parameter_count(apply_plan(model, MergePlan.from_dict(json.loads(out)))) <= target


def test_the_most_layers_that_meet_it():
    facts = {
        "layers": 10,
        "parameters": 1000,
        "parameters_per_layer": 80,
        "size_bytes": 2000,
        "cache_bytes_per_token": 3,
    }
    assert most_layers(facts, "parameters", 700) == 6  # 200 + 6 * 80 = 680
    assert most_layers(facts, "memory", 1400, cache_tokens=0) == 6  # 2 bytes each
    assert most_layers(facts, "memory", 1400, cache_tokens=10) == 5  # 400 + 5 * 190 = 1350
    cost = {"layers_ms": 8.0, "rest_ms": 2.0}
    assert most_layers(facts, "speed", 1.25, cost) == 7  # 10 / (5.6 + 2)
    assert most_layers(facts, "speed", 9.0, cost) is None
    assert most_layers(facts, "layers", 4) == 4


@pytest.fixture
def small(model_folder, text_file, home, swm):
    assert swm("create", "e", "--model", model_folder, "--texts", text_file, "--count", 4, "--length", 32)[0] == 0
    return swm


def test_targets_on_the_command_line(small, model_folder):
    facts = config_facts(str(model_folder))
    count = f"{parameters_left(facts, 3) / 1e3 + 0.01:.3f}K"
    for arguments in (
        ("--planner", "sleb", "--parameters", count),
        ("--planner", "sleb", "--memory", f"{weights_bytes(facts, 3) / 2**20 + 0.001:.4f}MiB", "--cache-tokens", 0),
        ("--parameters", count),
        ("--planner", "sleb", "--loss", "400%"),
    ):
        code, out, told = small("plan", "e", *arguments)
        assert code == 0, (arguments, told)
        assert "2 of 4 layers" in out if "--loss" in arguments else "3 of 4 layers" in out, (arguments, out)


def test_a_speed_is_measured_when_a_target_needs_it(small, home):
    assert not Experiment.open("e").cost()
    code, _, told = small("plan", "e", "--planner", "sleb", "--speedup", 1.05)
    assert code == 0, told
    cost = Experiment.open("e").cost()
    assert min(cost["layers_ms"], cost["rest_ms"]) > 0
    Experiment.open("e").save_cost({**cost, "layers_ms": 8.0, "rest_ms": 2.0})
    # 10 ms for 4 layers; 3 layers take 8 ms, 1.25 times as fast; 2 take 6 ms, 1.67 times
    for speed, layers in ((1.2, 3), (1.3, 2)):
        assert f"{layers} of 4 layers" in small("plan", "e", "--planner", "sleb", "--speedup", speed)[1]


def test_a_speed_that_cannot_be_measured_is_told(small, monkeypatch):
    monkeypatch.setattr(measure, "keeps_cache", lambda model, prompt: False)
    code, _, told = small("plan", "e", "--planner", "sleb", "--speedup", 1.05)
    assert code == 1
    assert "needs the original's speed, which cannot be measured" in told


def test_fewer_layers_serve_where_a_planner_cannot_leave_the_most(small, model_folder, monkeypatch):
    facts = config_facts(str(model_folder))

    def picky(request):
        if request.layers == 3:
            raise PlanError("not 3")
        return dropped_plan(4, {1, 2})

    monkeypatch.setitem(PLANNERS._all(), "random", replace(PLANNERS["random"], find=picky))
    code, out, told = small("plan", "e", "--planner", "random", "--parameters", parameters_left(facts, 3))
    assert code == 0, told
    assert "2 of 4 layers" in out
    code, _, told = small("plan", "e", "--planner", "random", "--layers", 3)
    assert code == 1
    assert "not 3" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--speedup", 0.9), "--speedup 0.9 is out of range"),
        (("--memory", "lots"), "is not a size"),
        (("--memory", "1GiB"), "already meets this target"),
        (("--memory", "1KiB"), "Not even 2 of 4 layers"),
        (("--layers", 3, "--cache-tokens", 5), "--cache-tokens needs --memory"),
        (("--loss", "5"), "is not a loss"),
        (("--planner", "sleb", "--loss", "5%", "--keep-period"), "cannot be combined with --within or --loss"),
    ],
)
def test_targets_that_cannot_be_met_or_read(small, arguments, message):
    code, _, told = small("plan", "e", *arguments)
    assert code == 1
    assert message in told


def test_a_speed_is_met_by_the_plan_that_is_shown_with_it():
    """24 of 30 layers are 1.1957 times as fast, which every page rounds to 1.20."""
    facts, cost = {"layers": 30}, {"layers_ms": 8.19, "rest_ms": 1.81}
    shown = f"{(8.19 + 1.81) / (8.19 * 24 / 30 + 1.81):.2f}"
    assert shown == "1.20"
    assert most_layers(facts, SPEED, 1.2, cost) == 24
    assert most_layers(facts, SPEED, 1.21, cost) == 23
