"""The smallest plan within a loss, against trying every depth."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.errors import PlanError
from swm.progress import UNLIKE
from swm.search.kept_path import kept_path
from swm.stages.plan_within import smallest_within
from swm.workspace.experiments import Experiment


@given(st.lists(st.floats(0.0, 0.3), min_size=2, max_size=40), st.floats(1.01, 4.0))
def test_the_search_finds_what_trying_every_depth_finds(rises, factor):
    perplexity = [10.0]
    for rise in rises:
        perplexity.append(perplexity[-1] * (1 + rise))
    layers, asked, reports = len(perplexity), [], []

    def planned(left, progress):
        asked.append(left)
        progress(0, 0, "loading")
        progress(1, 2, "halfway")
        assert 2 <= left < layers
        return {"left": left, "perplexity": perplexity[layers - left], "perplexity_original": 10.0}

    within = [removed for removed in range(1, layers - 1) if perplexity[removed] <= factor * 10.0]
    if within:
        assert smallest_within(factor, layers, planned, lambda *report: reports.append(report))["left"] == layers - max(
            within
        )
    else:
        with pytest.raises(PlanError, match=r"has at most .* Allow a larger loss, or"):
            smallest_within(factor, layers, planned)
    assert len(asked) == len(set(asked)) <= 2 * layers.bit_length()
    assert all(0 <= done <= total == UNLIKE for done, total, _ in reports)
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)


@pytest.fixture
def study(swm, model_folder, text_file):
    for command in (
        ("create", "e", "--model", model_folder, "--texts", text_file, "--count", "3", "--length", "32"),
        ("search", "e", "--rule", "keep_first", "--from", "0.01"),
    ):
        code, _, message = swm(*command)
        assert code == 0, message
    return Experiment.open("e")


def test_a_path_gives_its_smallest_plan_within(swm, study):
    path = kept_path(study, "keep_first")
    perplexities = sorted(value / path.perplexities[()] for windows, value in path.perplexities.items() if windows)
    for factor in (perplexities[0] * 1.0001, perplexities[-1] * 1.0001):
        if factor <= 1:
            continue
        code, out, message = swm("plan", "e", "--rule", "keep_first", "--within", factor, "--json")
        assert code == 0, message
        plan = json.loads(out)
        most = factor * path.perplexities[()]
        within = [step.plan for step in path.intervals() if step.plan.windows and step.perplexity <= most]
        assert plan["layers_left"] == min(one.layers_left for one in within)
        assert plan["perplexity"] <= most


def test_a_planner_stays_within_and_a_smaller_plan_of_it_does_not(swm, study):
    code, out, message = swm("plan", "e", "--planner", "sleb", "--within", "1.5", "--json")
    assert code == 0, message
    plan = json.loads(out)
    assert plan["perplexity"] <= 1.5 * plan["perplexity_original"]
    if plan["layers_left"] > 2:
        smaller = json.loads(swm("plan", "e", "--planner", "sleb", "--layers", plan["layers_left"] - 1, "--json")[1])
        assert smaller["perplexity"] > 1.5 * smaller["perplexity_original"]
    assert study.planned("sleb", plan["layers_left"])


def test_what_cannot_be_is_refused_in_a_sentence(swm, study):
    for value in ("1", "0.5", "nan", "inf"):
        code, _, message = swm("plan", "e", "--within", value)
        assert (code, "--within" in message, "above 1" in message) == (1, True, True)
    code, _, message = swm("plan", "e", "--rule", "keep_first", "--within", "1.0000001")
    assert code in (0, 1)
    assert code == 0 or "Allow a larger loss, or" in message
    assert swm("plan", "e", "--within", "1.2", "--layers", "3")[0] == 2


def test_a_run_can_be_merged_within_a_loss(swm, study):
    code, _, message = swm("merge", "e", "r", "--planner", "shortgpt", "--within", "9")
    assert code == 0, message
    plan = study.planned("shortgpt", study.run("r").plan.layers_left)
    assert plan["perplexity"] <= 9 * plan["perplexity_original"]
