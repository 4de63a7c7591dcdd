"""What the preview draws against the path itself and against pencil."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.plan import MergePlan, Window
from swm.reporting.preview import path_view, plan_view
from swm.search.find import threshold_path
from swm.search.kept_path import KeptAnswers
from swm.search.threshold_path import ThresholdPath, known_similarity
from swm.similarity.blocks import pair_sentence, similar_patches
from tests.search.test_find import seeded_score

FACTS = {"parameters": 1_000_000, "parameters_per_layer": 50_000, "size_bytes": 100 * 2**20}


def test_every_threshold_finds_its_plan_in_the_view():
    path = threshold_path(9, seeded_score(5), 0.3)
    view = path_view(path, FACTS)
    assert len({str(plan["windows"]) for plan in view["plans"]}) == len(view["plans"])
    for i in range(300):
        threshold = 0.3001 + 0.6999 * i / 299
        low, high, index, similarity = next(s for s in view["steps"] if s[0] < threshold <= s[1])
        step = path.plan_at(threshold)
        assert view["plans"][index]["windows"] == [[w.first, w.last] for w in step.plan.windows]
        assert (low, high, similarity) == (step.low, step.high, f"{step.similarity:.4f}")


@given(st.integers(0, 10_000), st.lists(st.floats(10, 40), min_size=1, max_size=60), st.booleans())
def test_the_mark_is_on_the_smallest_plan_within_the_loss(seed, perplexities, measured):
    path = threshold_path(7, seeded_score(seed), 0.2)
    steps = path.intervals()
    path.perplexities = {(): 20.0} if measured else {}
    for step, perplexity in zip(steps, perplexities, strict=False):
        if step.plan.windows:
            path.perplexities[step.plan.windows] = perplexity
    view = path_view(path, FACTS)
    allowed = [
        (step.plan.layers_left, path.perplexities[step.plan.windows])
        for step in steps
        if step.plan.windows and path.perplexities.get(step.plan.windows, 99.0) <= 24.0
    ]
    if not measured or not allowed:
        assert view["mark"] is None
    else:
        marked = view["plans"][view["steps"][view["mark"]][2]]
        assert (marked["left"], marked["perplexity"]) == min(allowed)


def test_each_plan_carries_its_own_answers():
    path = threshold_path(6, seeded_score(3), 0.2)
    plans = [step.plan for step in path.intervals()]
    answers = KeptAnswers("rdsc", ("a", "b"), 9, {plan.windows: [str(plan.windows), "x"] for plan in plans[::2]})
    answers.of[()] = ["original", "y"]
    view = path_view(path, FACTS, answers=answers)
    assert (view["prompts"], view["answers"]) == (("a", "b"), ["original", "y"])
    known = 0
    for plan in view["plans"]:
        windows = tuple(Window(*pair) for pair in plan["windows"])
        assert plan["answers"] == answers.of.get(windows)
        known += plan["answers"] is not None
    assert 1 < known < len(view["plans"])
    assert path_view(path, FACTS)["answers"] is None


def test_numbers_of_a_plan_are_as_people_read_them():
    plan = MergePlan(10, (Window(2, 4), Window(6, 7)))
    view = plan_view(plan, FACTS, {"layers_ms": 8.0, "rest_ms": 2.0}, {(): 20.0, plan.windows: 50.0}, 0.91)
    assert view["numbers"] == {
        "Layers": "7 of 10",
        "Parameters": "0.8 M",
        "Weights": "85 MiB",
        "Expected speed": "× 1.32",  # 10 / (8 * 0.7 + 2)
        "Similarity": "0.9100",
        "Perplexity": "50",
    }
    assert view["more"] == {"Parameters": "-15.0 %", "Perplexity": "× 2.50"}
    unknown = plan_view(plan, FACTS)["numbers"]
    assert [unknown[name] for name in ("Expected speed", "Similarity", "Perplexity")] == ["–"] * 3


def test_similarity_of_windows_by_hand_is_known_when_the_search_came_by_them():
    path = ThresholdPath(6)
    path.keep((Window(3, 4),), Window(0, 1), 0.8)
    assert known_similarity(path, MergePlan(6, (Window(0, 1), Window(3, 4)))) == 0.8
    assert known_similarity(path, MergePlan(6, (Window(3, 4),))) is None
    assert known_similarity(path, MergePlan(6)) == 1.0
    path.bounds.add(((Window(3, 4),), Window(0, 1)))
    assert known_similarity(path, MergePlan(6, (Window(0, 1), Window(3, 4)))) is None


def test_patches_are_runs_of_which_every_pair_is_alike():
    matrix = [[1.0] * 6 for _ in range(6)]
    for a, b in ((0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (2, 5), (1, 5)):
        matrix[a][b] = matrix[b][a] = 0.5
    # 0 is unlike all; 1-4 are all alike; 5 is unlike 1 and 2.
    assert similar_patches(matrix, 0.9) == (Window(1, 4),)
    assert similar_patches(matrix, 0.4) == (Window(0, 5),)
    assert similar_patches([[1.0]], 0.9) == ()


def test_a_pair_is_told_with_its_place():
    matrix = [[1, 0.9, 0.2], [0.9, 1, 0.97], [0.2, 0.97, 1]]
    assert pair_sentence(matrix, 0, 1, "CKA").startswith("Layers 0 and 1: CKA 0.9000, rank 2 of 3 pairs.")
    assert "with itself" in pair_sentence(matrix, 1, 1, "CKA")
    assert "nearly the same" in pair_sentence(matrix, 1, 2, "CKA")


def test_expected_numbers_need_a_measured_cost():
    assert plan_view(MergePlan(4), FACTS, {"layers_ms": 1.0, "rest_ms": 1.0})["numbers"]["Expected speed"] == "× 1.00"
    assert pytest.approx(1.0) == known_similarity(ThresholdPath(4), MergePlan(4))
