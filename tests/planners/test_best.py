"""The planner `best`: never behind the methods whose plans it tries, resumed where it stopped, held to a time."""

import math
import random
import shutil
import string
import time
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import swm.planners.best as best
from swm.errors import Cancelled, JobError, SettingsError
from swm.evaluation.perplexity import perplexity
from swm.merging.apply import apply_plan
from swm.merging.fit import WindowFitter, apply_fitted_plan
from swm.models.decoder import find_decoder
from swm.models.load import load_tokenizer
from swm.plan import MergePlan, Window
from swm.planners.drops import beam_drops
from swm.planners.plan_with import plan_with
from swm.registry import PLANNERS
from swm.reporting.known_plans import known_plans
from swm.search.plan_loss import PlanLoss
from swm.search.tried import TriedPlans
from swm.settings import ExperimentSettings, SearchOptions
from swm.stages.create import create_experiment
from swm.stages.loading import calibration_of
from swm.stages.measure_plan import measure_plan
from swm.stages.merge import merge_run
from swm.stages.plan_by import plan_by
from tests.conftest import tiny_model
from tests.planners.planners_cases import own_loss
from tests.product.test_families import FAMILIES, made

FORTY = SearchOptions(budget=40)


def texts(count, seed, length=24):
    return torch.randint(0, 300, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["llama", "olmo2", "mixtral"])
@pytest.mark.parametrize("seed", [1, 2])
def test_best_is_not_behind_any_method_whose_plans_it_tries(family, seed):
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "mixtral" else {}
    model = tiny_model(family, layers=7, seed=seed, **settings)
    tokens, rows = texts(4, seed), texts(60, seed + 10)
    plan = plan_with("best", model, tokens, 4, budget=20, fit_tokens=lambda count: rows)
    losses = {"fit": PlanLoss(model, tokens, WindowFitter(model, rows).merged), "keep_last": PlanLoss(model, tokens)}
    held = len(rows) // 4

    def loss(plan):
        return losses[plan.rule](plan)

    def in_full(plan):
        fitted = plan.rule == "fit"
        smaller = apply_fitted_plan(model, plan, rows[held:]) if fitted else apply_plan(model, plan)
        return perplexity(smaller, rows[:held])["value"]

    own, own_loss = in_full(plan), loss(plan)
    for name in best.RIVALS:
        rival = plan_with(name, model, tokens, 4)
        if 0 in rival.base_layers():
            rival = MergePlan(7, rival.windows, "fit")
        # it lost on calibration text, or was fitted in full and lost on held-out text
        assert own_loss <= loss(rival) + 1e-6 or own <= in_full(rival) + 1e-6


@pytest.mark.parametrize("seed", [3, 4])
def test_a_rival_that_drops_the_first_layer_wins_where_that_costs_nothing(seed):
    model = tiny_model(layers=6, seed=seed)
    layers = find_decoder(model).layers
    with torch.no_grad():
        for name, weights in layers[0].named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weights.zero_()  # the layer adds nothing
    written = model.generate(
        texts(12, 5, 2), pad_token_id=0, max_new_tokens=22, do_sample=False
    )  # the most certain text of the model
    plan = plan_with("best", model, written, len(layers) - 1, fit_tokens=lambda count: written)
    assert (plan.windows, plan.rule) == ((Window(0, 1),), "keep_last")
    assert plan_with("perplexity", model, written, len(layers) - 1) == plan
    smaller = apply_plan(model, plan)
    assert perplexity(smaller, written)["value"] == pytest.approx(perplexity(model, written)["value"], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_best_plans_every_family(family):
    losses = {}
    plan = plan_with(
        "best", made(family), texts(2, 0), 4, budget=9, fit_tokens=lambda count: texts(12, 3), losses=losses
    )
    assert plan.layers_left == 4
    assert len(losses["fit"]) >= 9


def test_a_rival_that_is_better_wins(monkeypatch):
    model, tokens, rows = tiny_model(layers=6), texts(4, 0), texts(60, 3)
    found = plan_with("best", model, tokens, 4, budget=40, fit_tokens=lambda count: rows)
    other = frozenset({4, 5}) if found.windows[0].first != 3 else frozenset({1, 2})
    monkeypatch.setattr(best, "beam_drops", lambda *arguments: [other])
    monkeypatch.setattr(best, "RIVALS", ("rival",))
    rival = MergePlan(6, found.windows, "keep_first")
    monkeypatch.setitem(best.PLANNERS._all(), "rival", type("Rival", (), {"find": staticmethod(lambda request: rival)}))
    assert plan_with("best", model, tokens, 4, budget=40, fit_tokens=lambda count: rows) == found


def test_a_search_that_was_interrupted_goes_on_where_it_stopped(experiment, monkeypatch):
    tried = []
    plain = PlanLoss.__call__
    monkeypatch.setattr(PlanLoss, "__call__", lambda self, plan: tried.append(plan) or plain(self, plan))
    whole = plan_by(experiment, "best", 2, how=FORTY)
    all_tried = list(tried)
    (experiment.folder / "tried.json").unlink()
    (experiment.folder / "plans" / "best-2.json").unlink()
    tried.clear()

    def stop(done, total, text):
        if len(tried) == len(all_tried) // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        plan_by(experiment, "best", 2, stop, how=FORTY)
    before = len(tried)
    kept = TriedPlans(experiment).losses
    assert sum(map(len, kept.values())) >= before - 1
    again = plan_by(experiment, "best", 2, how=FORTY)
    assert again["windows"] == whole["windows"]
    assert len(tried) <= len(all_tried) + 2  # the one that was under way, and the plan's own measurement
    tried.clear()
    plan_by(experiment, "best", 3, how=FORTY)
    fresh = [plan for plan in tried if plan.windows and plan.layers_left == 3]
    assert len(fresh) <= 2  # single layers were all tried on the way to 2


def test_losses_of_another_text_are_not_used(experiment):
    plan_by(experiment, "sleb", 3)
    assert TriedPlans(experiment).losses["dropped"]
    experiment.text_hash = "another"
    assert TriedPlans(experiment).losses == {}


@pytest.mark.parametrize("words", [900, 6000])
def test_the_plan_s_perplexity_is_that_of_the_model_that_is_merged(words, model_folder, tmp_path, home):
    """With two windows; also where the text is too short for others to compare plans on. By plain transformers."""
    text = tmp_path / "long.txt"
    draw = random.Random(3)
    text.write_text("\n\n".join(" ".join(draw.choices(string.ascii_lowercase, k=40)) for _ in range(words // 40)))
    experiment = create_experiment("long", ExperimentSettings(str(model_folder), str(text), 3, 24))
    data = plan_by(experiment, "best", 2, how=FORTY)
    run = experiment.create_run("r", MergePlan.from_dict(data))
    merge_run(run)
    merged = AutoModelForCausalLM.from_pretrained(run.model_folder)
    tokens = calibration_of(experiment, load_tokenizer(str(model_folder)))
    assert math.log(data["perplexity"]) == pytest.approx(own_loss(merged, tokens), abs=2e-3)
    assert data["fitted_in_full"]


def test_the_best_plan_tried_at_every_depth_is_a_known_one(experiment):
    plan_by(experiment, "best", 2, how=FORTY)
    losses = TriedPlans(experiment).losses
    fitted = next(found for kind, found in losses.items() if kind.startswith("fit"))
    known = {(plan.method, plan.plan.rule, plan.plan.layers_left): plan for plan in known_plans(experiment)}
    for removed in (1, 2):
        lowest = min(loss for layers, loss in fitted.items() if len(layers) == removed)
        plan = known["best", "fit", 4 - removed]
        assert frozenset(range(4)) - {*plan.plan.base_layers()} in [
            layers for layers in fitted if len(layers) == removed
        ]
        assert plan.perplexity == pytest.approx(math.exp(lowest), rel=2e-3)  # measured once more when it was found
    # what the chart says is what measuring the plan says
    one = known["best", "fit", 3]
    assert measure_plan(experiment, one.plan)["perplexity"] == pytest.approx(one.perplexity, rel=5e-3)


@pytest.mark.parametrize("content", ["{", '{"version": 1, "text_hash": "x", "losses": {"dropped": {"": 1.0}}}'])
def test_a_damaged_file_of_what_was_tried_is_left_aside(experiment, content):
    (experiment.folder / "tried.json").write_text(content)
    assert plan_by(experiment, "sleb", 3)["layers_left"] == 3
    assert plan_by(experiment, "best", 4)["layers_left"] == 4  # nothing to drop
    assert TriedPlans(experiment).losses["dropped"]


def test_what_was_tried_is_not_written_to_an_experiment_that_is_gone(experiment):
    plan_by(experiment, "sleb", 3)
    tried = TriedPlans(experiment)
    shutil.rmtree(experiment.folder)
    with pytest.raises(JobError, match="was deleted or renamed"):
        tried.save()
    assert not experiment.folder.exists()


def test_a_time_limit_holds_where_much_is_known():
    def loss(dropped):
        if len(dropped) > 1:
            time.sleep(0.01)
        return float(sum(dropped))

    start = time.monotonic()
    beam_drops(range(1, 60), 3, loss, 3, best._by_time(start + 0.3))
    assert time.monotonic() - start < 0.8


@pytest.mark.parametrize(("seconds", "most"), [(0.3, 60), (60.0, 400)])
def test_a_time_limit_bounds_what_is_tried(seconds, most):
    tried = []

    def loss(dropped):
        time.sleep(0.005)
        tried.append(dropped)
        return float(sum(dropped)) + len(tried) % 3

    start = time.monotonic()
    found = beam_drops(range(1, 15), 6, loss, 3, best._by_time(start + seconds))
    assert len(found[0]) == 6
    assert 14 + 3 * 5 <= len(tried) <= most
    assert time.monotonic() - start < max(2 * seconds, 14 * 0.02 + 0.5)


def test_minutes_are_kept_with_the_plan_and_exclude_a_budget(experiment, swm):
    code, out, _ = swm("plan", "e", "--planner", "best", "--layers", 3, "--minutes", 0.01)
    assert not code
    data = experiment.planned("best", 3)
    assert data["minutes"] == 0.01
    assert "budget" not in data
    assert "3 of 4 layers" in out
    for arguments, message in (
        (("--planner", "best", "--minutes", 1, "--budget", 50), "takes the place of --budget"),
        (("--planner", "best", "--minutes", -1), "out of range"),
        (("--planner", "sleb", "--minutes", 1), "only applies to --planner best"),
    ):
        code, _, told = swm("plan", "e", "--layers", 3, *arguments)
        assert code
        assert message in told


def test_out_of_time_the_plan_of_lowest_loss_is_taken_without_a_full_fit(tokens, monkeypatch):
    monkeypatch.setattr("swm.merging.fit.apply_fitted_plan", None)
    losses = {}
    plan = plan_with("best", tiny_model(layers=6), tokens, 4, losses=losses, seconds=1e-6)
    dropped = frozenset(range(6)) - set(plan.base_layers())
    assert losses["fit"][dropped] == min(loss for layers, loss in losses["fit"].items() if len(layers) == 2)


@pytest.mark.parametrize(
    ("seconds", "in_time"), [(24, []), (29, ["perplexity"]), (39, ["perplexity"]), (41, ["perplexity", "sleb"])]
)
def test_the_slow_rivals_have_a_fifth_of_the_time(tokens, monkeypatch, seconds, in_time):
    """By a clock that only losses move: perplexity tries 6 sets of layers, then SLEB 3 that are not known yet."""
    now, found, usual = [0.0], {}, PlanLoss.__call__
    monkeypatch.setattr(best.time, "monotonic", lambda: now[0])

    def slow(self, plan):
        now[0] += 1
        return usual(self, plan)

    monkeypatch.setattr(PlanLoss, "__call__", slow)
    for name in best.RIVALS:
        planner = PLANNERS[name]

        def find(request, planner=planner):
            plan = found[planner.name] = planner.find(request)
            return plan

        monkeypatch.setitem(PLANNERS._entries, name, replace(planner, find=find))
    losses, finalists = {}, {}
    plan_with("best", tiny_model(layers=6), tokens, 4, losses=losses, seconds=seconds, finalists=finalists)
    assert list(found) == ["angular", "shortgpt", *in_time]
    assert finalists.get("left_out", []) == [name for name in ("perplexity", "sleb") if name not in in_time]
    for plan in found.values():
        dropped = frozenset(range(6)) - set(plan.base_layers())
        assert dropped in losses["dropped" if 0 in dropped else "fit"]


def test_losses_are_shared_between_planners_in_memory(tokens):
    model, losses = tiny_model(), {}
    plan_with("perplexity", model, tokens, 3, losses=losses)
    singles = dict(losses["dropped"])
    assert len(singles) == 4
    plan_with("sleb", model, tokens, 3, losses=losses)
    assert losses["dropped"].items() >= singles.items()


def test_a_budget_too_small_is_still_refused(model, tokens):
    with pytest.raises(SettingsError, match="needs at least"):
        plan_with("best", model, tokens, 2, budget=2)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_text_of_a_row_or_two_is_enough_to_fit_and_to_compare_on(rows):
    model, tokens = tiny_model(layers=5), texts(rows, 3, 64)
    finalists = {}
    plan = plan_with("best", model, tokens, 3, budget=30, finalists=finalists)
    assert plan.layers_left == 3
    assert finalists["others"] == []  # one held-out text gives no interval
    assert finalists["perplexity"] > 1
