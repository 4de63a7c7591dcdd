"""How long a study takes: what each cell adds."""

import pytest

from swm.plan import MergePlan, Window
from swm.studies.grids import Grid, TextsGrid, ThresholdGrid
from swm.studies.times import study_seconds, whole_study_seconds
from swm.workspace.estimate import ability_tokens, estimate_run, path_seconds, planner_seconds, profile_seconds
from tests.reporting.test_compare import FACTS
from tests.studies.run_cases import SMALL

COST = {"layers_ms": 6.0, "rest_ms": 2.0, "forward_tokens_per_second": 500.0, "training_tokens_per_second": 900.0}


def seconds(tmp_path, **changes):
    return study_seconds(FACTS, COST, Grid(**{**SMALL, "planners": ["sleb"], "rules": [], **changes}), tmp_path)


@pytest.mark.parametrize("timed", [False, True])
def test_a_control_adds_one_merge_one_healing_and_one_evaluation_and_no_timing(tmp_path, timed):
    added = seconds(tmp_path, time=timed) - seconds(tmp_path, time=timed, control=False)
    recovery = Grid(**SMALL).recovery
    needs = estimate_run(FACTS, COST, MergePlan(6), recovery, SMALL["limit"], tmp_path, tasks=(), evaluations=1).seconds
    assert added == pytest.approx(needs["merge"] + needs["heal"] + needs["evaluate"])


def test_each_shape_is_timed_once(tmp_path):
    token = 8.0 / 1000
    for planners in (["sleb"], ["sleb", "random"]):
        added = seconds(tmp_path, planners=planners, time=True) - seconds(tmp_path, planners=planners, time=False)
        assert added == pytest.approx(
            2 * (5 + 2 * FACTS["size_bytes"] / (400 * 2**20) + 2 * 16 * 33 * token)
        )  # two depths


def test_abilities_are_measured_before_healing_and_after(tmp_path):
    one = profile_seconds(FACTS, COST, 3, 20)
    assert one > 0
    for heal, models in (([], 2), (["sleb"], 5)):  # two depths; healed, each of them twice, and the control
        asked = {"abilities": "facts,logic,reading", "requests": 20}
        added = seconds(tmp_path, heal=heal, **asked) - seconds(tmp_path, heal=heal)
        assert added == pytest.approx(models * one)
    more = ability_tokens(6, 20) - ability_tokens(3, 20)
    assert profile_seconds(FACTS, COST, 6, 20) - one == pytest.approx(more / COST["training_tokens_per_second"])


def test_without_rates_the_time_is_unknown(tmp_path):
    assert study_seconds(FACTS, None, Grid(**SMALL), tmp_path) == 0
    assert whole_study_seconds(FACTS, None, Grid(**SMALL), tmp_path, 1280)[0] == 0


def test_a_study_searches_once_for_each_planner_and_depth_and_once_for_each_rule(tmp_path):
    grid = Grid(**{**SMALL, "planners": ["sleb", "laco"], "rules": ["rdsc", "mean"]})
    total, missing = whole_study_seconds(FACTS, COST, grid, tmp_path, 1280)
    depths = {cell.layers for cell in grid.cells(FACTS, COST) if cell.method == "sleb"}
    assert len(depths) == 2
    searches = sum(planner_seconds(FACTS, COST, 1280, "sleb", layers) for layers in depths)
    searches += 2 * path_seconds(FACTS, COST, 1280)
    assert total - study_seconds(FACTS, COST, grid, tmp_path) == pytest.approx(searches)
    assert missing == ["the search by LaCo"]
    grid = Grid(**{**SMALL, "planners": ["sleb"], "rules": [], "loss": ["5%"]})
    assert whole_study_seconds(FACTS, COST, grid, tmp_path, 1280)[1] == ["the plans within a loss"]


def test_studies_of_thresholds_and_texts_are_foretold_as_well(tmp_path):
    scored = {"rules": ["rdsc", "mean"], "scored_at": [0.9, 0.8, 0.7], "limit": 10}
    shorter, longer = (
        whole_study_seconds(FACTS, COST, ThresholdGrid(**scored, **low), tmp_path, 1280)[0]
        for low in ({}, {"from": 0.5})
    )
    evaluation = estimate_run(
        FACTS, COST, MergePlan(6, (Window(0, 1),)), None, 10, tmp_path, tasks=["hellaswag"], evaluations=1
    ).seconds["evaluate"]
    assert shorter == pytest.approx(6 * evaluation)
    assert longer - shorter == pytest.approx(2 * path_seconds(FACTS, COST, 1280))
    one, two = (
        whole_study_seconds(FACTS, COST, TextsGrid("cka", texts), tmp_path, 1280)[0]
        for texts in (["task:boolq"], ["task:boolq", "task:piqa"])
    )
    assert two == 2 * one > 2 * 1280 / COST["forward_tokens_per_second"]
