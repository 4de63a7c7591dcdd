"""The smallest plan within a loss, against trying every depth."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.errors import PlanError
from swm.progress import UNLIKE
from swm.search.kept_path import kept_path, save_path
from swm.stages.plan_within import GIVEN_UP, smallest_within
from swm.workspace.experiments import Experiment


@given(
    st.lists(st.floats(0.0, 0.3), min_size=2, max_size=40),
    st.floats(1.01, 4.0),
    st.sets(st.integers(1, 40), max_size=GIVEN_UP - 1),
)
def test_the_search_finds_what_trying_every_depth_finds(rises, factor, impossible):
    perplexity = [10.0]
    for rise in rises:
        perplexity.append(perplexity[-1] * (1 + rise))
    layers, asked, reports = len(perplexity), [], []

    def planned(left, progress):
        asked.append(left)
        progress(0, 0, "loading")
        progress(1, 2, "halfway")
        assert 2 <= left < layers
        if layers - left in impossible:
            raise PlanError(f"cannot leave {left}")
        return {"left": left, "perplexity": perplexity[layers - left], "perplexity_original": 10.0}

    possible = [removed for removed in range(1, layers - 1) if removed not in impossible]
    within = [removed for removed in possible if perplexity[removed] <= factor * 10.0]
    if within:
        assert smallest_within(factor, layers, planned, lambda *report: reports.append(report))["left"] == layers - max(
            within
        )
    else:
        with pytest.raises(
            PlanError, match=r"cannot leave" if not possible and layers > 2 else r"has at most .* Allow a larger"
        ):
            smallest_within(factor, layers, planned)
    assert len(asked) == len(set(asked)) <= 2 * layers.bit_length() + len(impossible)
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


def test_a_method_that_cannot_leave_every_number_of_layers_is_asked_for_the_next(swm, study):
    code, out, message = swm("plan", "e", "--planner", "laco", "--within", "1e9", "--json")
    assert code == 0, message
    assert json.loads(out)["layers_left"] == 2  # of four; three are refused
    assert "LaCo cannot leave 3" in swm("plan", "e", "--planner", "laco", "--layers", "3")[2]


def test_a_path_in_bfloat16_gives_the_plan_that_it_chose(swm, study):
    """Its similarities are measured again: the one that ends an interval would be rejected at that threshold."""
    code, _, message = swm("search", "e", "--rule", "keep_last", "--from", "0.01", "--precision", "exact")
    assert code == 0, message
    path = kept_path(study, "keep_last")
    exact, original = path.intervals(), path.perplexities[()]
    for key, similarity in path.similarities.items():
        path.similarities[key] = similarity + 3e-4
    path.scoring = "bfloat16"
    for factor in sorted({max(1.0001, 1.0001 * step.perplexity / original) for step in exact if step.plan.windows}):
        save_path(study, path)
        code, out, message = swm("plan", "e", "--rule", "keep_last", "--within", factor, "--json")
        assert code == 0, message
        plan = json.loads(out)
        within = [step for step in exact if step.plan.windows and step.perplexity <= factor * original]
        least = min(within, key=lambda step: (step.plan.layers_left, step.perplexity))
        assert plan["windows"] == least.plan.to_dict()["windows"]
        assert plan["similarity"] == pytest.approx(least.similarity, abs=1e-6)


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
