"""Plans after which every layer is of the kind that llama.cpp takes it for by its place."""

import math
import random
from itertools import combinations

import pytest
import torch

from swm.cli.main import main
from swm.errors import PlanError
from swm.llama_cpp.families import period_broken
from swm.merging.apply import apply_plan
from swm.models.layer_pattern import placed_kinds
from swm.plan import MergePlan, Window
from swm.planners.drops import beam_drops, can_keep_places, lowest_layers
from swm.planners.plan_with import plan_with
from swm.registry import PLANNERS
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from tests.conftest import in_pairs, tiny_model

PATTERNED = {
    "gemma2": {"head_dim": 8, "sliding_window": 8, "layers": 10},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "layers": 15},
    "smollm3": {"no_rope_layer_interval": 4, "layers": 10},
}


def keeps(kinds, dropped):
    left = [kind for layer, kind in enumerate(kinds) if layer not in dropped]
    return left == kinds[: len(left)]


def leaves(kinds, droppable, left):
    return any(keeps(kinds, chosen) for chosen in combinations(droppable, len(kinds) - left))


@pytest.mark.parametrize("seed", range(20))
def test_the_lowest_sum_among_all_sets_that_keep_the_places(seed):
    rng = random.Random(seed)
    kinds = ["s" if (layer + 1) % rng.choice((2, 3, 4)) else "f" for layer in range(rng.randint(4, 11))]
    drop = rng.randint(1, len(kinds) - 1)
    values = [rng.choice((math.inf, rng.random(), rng.random(), rng.random())) for _ in kinds]
    droppable = [layer for layer, value in enumerate(values) if math.isfinite(value)]
    sets = [set(chosen) for chosen in combinations(droppable, drop) if keeps(kinds, chosen)]
    if not sets:
        numbers = [n for n in range(len(kinds) - 1, 1, -1) if leaves(kinds, droppable, n)]
        with pytest.raises(PlanError, match=f"can leave {', '.join(map(str, numbers)) or 'no other number of'} layers"):
            lowest_layers(values, drop, kinds)
        with pytest.raises(PlanError):
            beam_drops(droppable, drop, lambda dropped: 0.0, kinds=kinds)
        return
    best = min(sum(values[layer] for layer in chosen) for chosen in sets)
    assert sum(values[layer] for layer in lowest_layers(values, drop, kinds)) == pytest.approx(best)
    some = {rng.randrange(len(kinds)) for _ in range(2)}
    assert can_keep_places(kinds, some, drop, droppable) == any(some <= chosen for chosen in sets)
    found = beam_drops(droppable, drop, lambda dropped: sum(values[layer] for layer in dropped), 2, 40, kinds=kinds)
    assert all(set(dropped) in sets for dropped in found)
    wide = beam_drops(droppable, drop, lambda dropped: sum(values[layer] for layer in dropped), 10_000, kinds=kinds)
    assert sum(values[layer] for layer in wide[0]) == pytest.approx(best)


@in_pairs(("family", "planner"), PATTERNED, [planner for planner in PLANNERS if planner not in ("best", "laco")])
def test_every_planner_leaves_a_model_that_llama_cpp_runs(family, planner, tokens):
    assert amiss_in(family, planner, tokens) == (0, [], [])


@pytest.mark.parametrize("planner", ["best", "laco"])  # cannot fit other families' layers; finds nothing in them
def test_other_planners_leave_one_of_smollm3(planner, tokens):
    assert amiss_in("smollm3", planner, tokens) == (0, [], [])


def amiss_in(family, planner, tokens):
    """How many layers too many a planner leaves, and what breaks the pattern in the model's config and in the plan."""
    model = tiny_model(family, **PATTERNED[family])
    count = len(placed_kinds(model.config))
    layers = count - {"gemma2": 4, "gemma3_text": 6, "smollm3": 4}[family]
    plan = plan_with(planner, model, tokens, layers, budget=100, keep_period=True)
    smaller = apply_plan(model, MergePlan(count, plan.windows, "keep_first"))
    return plan.layers_left - layers, period_broken(smaller.config), plan.out_of_place(placed_kinds(model.config))


def test_without_it_planners_break_the_pattern_and_other_families_are_not_held_to_any(tokens):
    model = tiny_model("gemma2", **PATTERNED["gemma2"])
    broken = [plan_with(name, model, tokens, 7).out_of_place(placed_kinds(model.config)) for name in ("sleb", "random")]
    assert any(broken)
    llama = tiny_model()
    assert plan_with("sleb", llama, tokens, 3, keep_period=True) == plan_with("sleb", llama, tokens, 3)


def test_a_pattern_of_the_model_s_own_is_not_one_to_keep_to():
    assert placed_kinds(tiny_model("smollm3", no_rope_layer_interval=3).config) == []
    assert placed_kinds(tiny_model("llama").config) == []


def test_from_the_command_line_to_the_saved_plan(tmp_path, tokenizer, text_file, home, capsys):
    torch.manual_seed(0)
    tiny_model("gemma2", **PATTERNED["gemma2"]).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    experiment = create_experiment("e", ExperimentSettings(str(tmp_path / "m"), str(text_file), 4, 32))
    kinds = experiment.model_facts["layer_kinds"]
    assert kinds == ["sliding attention", "full attention"] * 5
    main(["plan", "e", "--planner", "sleb", "--layers", "7"])
    assert "keep_period" not in experiment.planned("sleb", 7)
    main(["merge", "e", "held", "--planner", "sleb", "--layers", "6", "--keep-period"])
    capsys.readouterr()
    assert experiment.planned("sleb", 6)["keep_period"] is True
    run = experiment.run("held")
    assert run.plan.out_of_place(kinds) == []
    assert run.origin["settings"]["keep_period"] is True


def test_it_needs_a_planner_and_a_rule_that_keeps_the_same_layers(tmp_path, tokenizer, text_file, home, swm):
    tiny_model("gemma2", **PATTERNED["gemma2"]).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    create_experiment("e", ExperimentSettings(str(tmp_path / "m"), str(text_file), 4, 32))
    code, _, errors = swm("plan", "e", "--layers", "7", "--keep-period")
    assert code
    assert "--keep-period needs --planner" in errors
    code, _, errors = swm("plan", "e", "--planner", "sleb", "--layers", "7", "--keep-period")
    assert code
    assert "It can leave 8, 6, 4, 2 layers" in errors
    layers = ("--planner", "shortgpt", "--layers", "9", "--keep-period")  # the last layer goes: its window is 8-9
    assert "windows 8-9" in swm("plan", "e", *layers)[1]
    code, _, errors = swm("plan", "e", *layers, "--rule", "keep_last")
    assert code
    assert "keeps other layers than shortgpt chose" in errors


def test_places_are_counted_in_the_merged_model():
    kinds = ["s", "f"] * 3
    assert MergePlan(6, (Window(1, 3),)).out_of_place(kinds) == []
    assert MergePlan(6, (Window(1, 2),)).out_of_place(kinds) == [2, 3, 4]
    assert MergePlan(6, (Window(1, 2),), "keep_last").out_of_place(kinds) == [1, 2, 3, 4]
    assert MergePlan(6, (Window(1, 2),)).out_of_place([]) == []
