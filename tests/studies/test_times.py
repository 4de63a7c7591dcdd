"""How long a study takes: what each cell adds."""

import pytest

from swm.plan import MergePlan
from swm.studies.grids import Grid
from swm.studies.times import study_seconds
from swm.workspace.estimate import estimate_run
from tests.reporting.test_compare import FACTS
from tests.studies.run_cases import SMALL

COST = {"layers_ms": 6.0, "rest_ms": 2.0, "forward_tokens_per_second": 500.0, "training_tokens_per_second": 900.0}


def seconds(tmp_path, **changes):
    return study_seconds(FACTS, COST, Grid(**{**SMALL, "planners": ["sleb"], "rules": [], **changes}), tmp_path)


@pytest.mark.parametrize("timed", [False, True])
def test_a_control_adds_one_merge_one_healing_and_one_evaluation_and_no_timing(tmp_path, timed):
    added = seconds(tmp_path, time=timed) - seconds(tmp_path, time=timed, control=False)
    recovery = Grid(**SMALL).recovery
    needs = estimate_run(FACTS, COST, MergePlan(6), recovery, SMALL["limit"], tmp_path, tasks=0, evaluations=1).seconds
    assert added == pytest.approx(needs["merge"] + needs["heal"] + needs["evaluate"])


def test_each_shape_is_timed_once(tmp_path):
    token = 8.0 / 1000
    for planners in (["sleb"], ["sleb", "random"]):
        added = seconds(tmp_path, planners=planners, time=True) - seconds(tmp_path, planners=planners, time=False)
        assert added == pytest.approx(2 * (10 + 2 * 9 * 33 * token))  # two depths


def test_without_rates_the_time_is_unknown(tmp_path):
    assert study_seconds(FACTS, None, Grid(**SMALL), tmp_path) == 0
