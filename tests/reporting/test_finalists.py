"""How sure a choice is: the intervals against scipy's, computed again from the same texts."""

import math

import pytest
import torch
from scipy import stats

from swm.cli.main import main
from swm.evaluation.perplexity import perplexity
from swm.merging.apply import apply_plan
from swm.merging.fit import apply_fitted_plan
from swm.plan import MergePlan, Window
from swm.planners.plan_with import plan_with
from swm.registry import PLANNERS
from swm.reporting.finalists import finalists_sentence, halves_sentence, text_matters
from swm.search.kept_path import kept_answers
from swm.settings import FIT_TOKENS, ExperimentSettings, SearchOptions
from swm.stages.create import create_experiment
from swm.stages.loading import calibration_of, load_original
from swm.stages.plan_by import plan_by
from swm.workspace.experiments import Experiment
from tests.conftest import tiny_model
from tests.pages.test_pages import opened
from tests.planners.planners_cases import own_loss


@pytest.mark.parametrize("seed", [0, 1])
def test_other_plans_are_compared_on_the_same_held_out_texts(seed):
    model = tiny_model(layers=6, seed=seed, initializer_range=0.3)
    generator = torch.Generator().manual_seed(seed)
    tokens, rows = (torch.randint(0, 300, (count, 24), generator=generator) for count in (4, 40))
    asked, found = [], {}
    plan = plan_with(
        "best", model, tokens, 4, budget=30, fit_tokens=lambda count: asked.append(count) or rows, finalists=found
    )
    assert FIT_TOKENS * 4 // 3 in asked
    assert found["texts"] == 10
    assert len(found["others"]) >= 2

    def losses(plan):
        fitted = apply_fitted_plan(model, plan, rows[10:]) if plan.rule == "fit" else apply_plan(model, plan)
        return perplexity(fitted, rows[:10])["losses"]

    chosen = losses(plan)
    for other in found["others"]:
        windows = tuple(Window(*pair) for pair in other["windows"])
        changes = [b - a for a, b in zip(chosen, losses(MergePlan(6, windows, other["rule"])), strict=True)]
        assert math.log(other["ratio"]) == pytest.approx(sum(changes) / 10, abs=1e-5)
        interval = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
        assert [math.log(other["low"]), math.log(other["high"])] == pytest.approx([*interval], abs=1e-5)
        assert other["ratio"] >= 1
    assert found["others"] == sorted(found["others"], key=lambda other: other["ratio"])


def other(ratio, low, high, *windows):
    return {"windows": [list(pair) for pair in windows], "ratio": ratio, "low": low, "high": high}


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], ""),
        (
            [other(1.05, 1.01, 1.09, (3, 4)), other(1.2, 1.1, 1.3, (2, 3))],
            "On 64 held-out texts the next best plan has 1.050 [1.010, 1.090] times its perplexity: 3-4.",
        ),
        (
            [other(1.003, 0.99, 1.02, (3, 4), (7, 9)), other(1.2, 1.1, 1.3, (2, 3))],
            "One other plan is as good as far as 64 held-out texts can tell, before healing: 3-4 7-9 (1.003 [0.990, "
            "1.020] times). Any of them is a reasonable choice.",
        ),
        (
            [other(1.0 + n / 1000, 0.99, 1.02, (n, n + 1)) for n in range(5)],
            "5 other plans are as good as far as 64 held-out texts can tell, before healing: 0-1 (1.000 [0.990, 1.020] "
            "times); 1-2 (1.001 [0.990, 1.020] times); 2-3 (1.002 [0.990, 1.020] times) and 2 more. Any of them is a "
            "reasonable choice.",
        ),
    ],
)
def test_the_sentence_says_what_the_text_can_tell(others, said):
    assert finalists_sentence({"texts": 64, "others": others}) == said


def test_it_says_which_methods_there_was_no_time_for(model_folder, text_file):
    short = "Time was too short to try what {} would choose as well: allow more minutes."
    late = short.format("Shortened LLaMA PPL (perplexity) and SLEB")
    assert finalists_sentence({"texts": 0, "others": [], "left_out": ["perplexity", "sleb"]}) == late
    compared = [other(1.05, 1.01, 1.09, (3, 4))]
    said = finalists_sentence({"texts": 64, "others": compared, "left_out": ["sleb", "gone in this release"]})
    assert said.endswith(
        "its perplexity: 3-4. Time was too short to try what SLEB would choose as well: allow more minutes."
    )
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 4, 32))
    plan_by(experiment, "best", 2, how=SearchOptions(minutes=1e-6))
    assert Experiment.open("e").planned("best", 2)["finalists"]["left_out"] == ["perplexity", "sleb"]
    test = opened("pages/preview.py", experiment="e", preview_door="target", target_method="best")
    test.number_input(key="target_layers_e").set_value(2).run()
    assert late in [caption.value for caption in test.caption]


def test_a_plan_of_an_older_release_says_nothing():
    assert finalists_sentence(None) == ""


def test_the_plan_keeps_it_and_the_page_shows_it(model_folder, text_file):
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 4, 32))
    data = plan_by(experiment, "best", 2, how=SearchOptions(budget=40))
    said = finalists_sentence(data["finalists"])
    assert said
    assert Experiment.open("e").planned("best", 2)["finalists"] == data["finalists"]
    test = opened("pages/preview.py", experiment="e", preview_door="target", target_method="best")
    test.number_input(key="target_layers_e").set_value(2).run()
    assert said in [caption.value for caption in test.caption]


@pytest.mark.parametrize("planner", ["angular", "shortgpt"])
def test_quick_methods_choose_on_halves_too(planner, model_folder, text_file):
    """Each half's choice is that for an experiment with these texts alone; perplexity is transformers' own."""
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 5, 32))
    model, tokenizer = load_original(experiment)
    tokens = calibration_of(experiment, tokenizer)
    data = plan_by(experiment, planner, 2)
    for half, texts in zip(data["halves"], ([0, 2, 4], [1, 3]), strict=True):
        plan = plan_with(planner, model, tokens[texts], 2)
        assert half["windows"] == plan.to_dict()["windows"]
        assert math.log(half["perplexity"]) == pytest.approx(own_loss(apply_plan(model, plan), tokens), abs=1e-3)
    assert Experiment.open("e").planned(planner, 2)["halves"] == data["halves"]
    assert all(
        half["windows"] != data["windows"] or half["perplexity"] == data["perplexity"] for half in data["halves"]
    )
    assert plan_by(experiment, planner, 2, how=SearchOptions(rule="mean"))["halves"] == []


def test_slow_methods_and_chance_do_not():
    assert {name for name in PLANNERS if PLANNERS[name].halves} == {"angular", "shortgpt", "taylor"}


def half(perplexity, *windows):
    return {"windows": [list(pair) for pair in windows], "perplexity": perplexity}


@pytest.mark.parametrize(
    ("halves", "said", "matters"),
    [
        ([], "", False),
        (
            [half(90.0, (3, 5)), half(90.0, (3, 5))],
            "On each half of the calibration text alone, Deeper layers (angular) chooses the same layers.",
            False,
        ),
        (
            [half(90.0, (3, 5)), half(98.9, (3, 4), (7, 8))],
            "On one half of the calibration text alone, Deeper layers (angular) chooses otherwise: 3-4 7-8 (perplexity "
            "98.9). That matters little here.",
            False,
        ),
        (
            [half(1500.0, (4, 6)), half(80.0, (5, 7))],
            "On each half of the calibration text alone, Deeper layers (angular) chooses otherwise: 4-6 (perplexity "
            "1,500.0) and 5-7 (perplexity 80.0). So another text can lead to a better or a worse plan. Use more text, "
            "or best, which tests its plans.",
            True,
        ),
    ],
)
def test_the_sentence_says_whether_the_text_settles_the_choice(halves, said, matters):
    data = {"planner": "angular", "windows": [[3, 5]], "perplexity": 90.0, "halves": halves}
    assert halves_sentence(data) == said
    assert text_matters(data) == matters


def test_page_and_command_line_say_that_the_text_is_too_little(model_folder, text_file, capsys):
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 4, 32))
    data = plan_by(experiment, "angular", 2)
    other = half(2 * data["perplexity"], (0, 2))
    assert data["windows"] != other["windows"]
    data["halves"] = [half(data["perplexity"], *data["windows"]), other]
    experiment.save_planned("angular", 2, data)
    said = halves_sentence(data)
    main(["plan", "e", "--planner", "angular", "--layers", "2"])
    assert said in capsys.readouterr().out
    test = opened("pages/preview.py", experiment="e", preview_door="target", target_method="angular")
    test.number_input(key="target_layers_e").set_value(2).run()
    assert said in [warning.value for warning in test.warning]


def test_merging_by_a_planner_leaves_out_what_takes_long_and_nobody_asked_for(model_folder, text_file, monkeypatch):
    """The halves cost about as much as choosing did; here that is made to count as long."""
    experiment = create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 4, 32))
    read, asked = [], []
    monkeypatch.setattr("swm.stages.plan_by.plan_with", lambda *a, **k: read.append(len(a[2])) or plan_with(*a, **k))
    monkeypatch.setattr("swm.stages.measure_plan.answer_plans", lambda *_: asked.append(1))
    monkeypatch.setattr("swm.stages.plan_by.BRIEF_SECONDS", 0.0)
    brief = plan_by(experiment, "angular", 2, brief=True)
    assert (read, asked, "halves" in brief) == ([4], [], False)
    whole = plan_by(experiment, "angular", 2)  # as the page asks
    assert (read[1:], len(whole["halves"]), asked) == ([4, 2, 2], 2, [1])
    assert whole["windows"] == brief["windows"]
    assert plan_by(experiment, "angular", 2, brief=True).items() >= whole.items()  # kept
    monkeypatch.setattr("swm.stages.plan_by.BRIEF_SECONDS", 1e9)
    assert len(plan_by(experiment, "shortgpt", 2, brief=True)["halves"]) == 2  # takes but seconds


def test_what_a_brief_search_left_out_is_made_up_for_once(model_folder, text_file, monkeypatch):
    experiment = create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 1, 32))
    for planner in ("shortgpt", "sleb"):
        plan_by(experiment, planner, 2, brief=True)
        plan = MergePlan.from_dict(plan_by(experiment, planner, 2))
        assert kept_answers(experiment, plan.rule).of[plan.windows]
    monkeypatch.setattr("swm.stages.plan_by.plan_with", None)  # would fail: one text has no halves, so nothing lacks
    monkeypatch.setattr("swm.stages.plan_by.measure_plan", None)
    for planner in ("shortgpt", "sleb"):
        assert plan_by(experiment, planner, 2)["layers_left"] == 2
