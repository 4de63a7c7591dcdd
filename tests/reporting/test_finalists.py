"""How sure a choice is: the intervals against scipy's, computed again from the same texts."""

import math

import pytest
import torch
from scipy import stats

from swm.evaluation.perplexity import perplexity
from swm.merging.fit import apply_fitted_plan
from swm.plan import MergePlan, Window
from swm.planners.plan_with import plan_with
from swm.reporting.finalists import finalists_sentence
from swm.settings import FIT_TOKENS, ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.plan_by import plan_by
from swm.workspace.experiments import Experiment
from tests.conftest import tiny_model
from tests.pages.test_pages import opened


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

    def losses(windows):
        fitted = apply_fitted_plan(model, MergePlan(6, windows, "fit"), rows[10:])
        return perplexity(fitted, rows[:10])["losses"]

    chosen = losses(plan.windows)
    for other in found["others"]:
        changes = [
            b - a for a, b in zip(chosen, losses(tuple(Window(*pair) for pair in other["windows"])), strict=True)
        ]
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
            "1.020] times). Any of them is a fair choice.",
        ),
        (
            [other(1.0 + n / 1000, 0.99, 1.02, (n, n + 1)) for n in range(5)],
            "5 other plans are as good as far as 64 held-out texts can tell, before healing: 0-1 (1.000 [0.990, 1.020] "
            "times); 1-2 (1.001 [0.990, 1.020] times); 2-3 (1.002 [0.990, 1.020] times) and 2 more. Any of them is a "
            "fair choice.",
        ),
    ],
)
def test_the_sentence_says_what_the_text_can_tell(others, said):
    assert finalists_sentence({"texts": 64, "others": others}) == said


def test_a_plan_of_an_older_release_says_nothing():
    assert finalists_sentence(None) == ""


def test_the_plan_keeps_it_and_the_page_shows_it(model_folder, text_file):
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 4, 32))
    data = plan_by(experiment, "best", 2, 40)
    said = finalists_sentence(data["finalists"])
    assert said
    assert Experiment.open("e").planned("best", 2)["finalists"] == data["finalists"]
    test = opened("pages/preview.py", experiment="e", preview_door="target", target_method="best")
    test.number_input(key="target_layers_e").set_value(2).run()
    assert said in [caption.value for caption in test.caption]
