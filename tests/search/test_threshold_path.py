"""What the threshold path keeps, says and reads again, by pencil on models of four and five layers."""

import json

import pytest

from swm.errors import PlanError, SettingsError
from swm.plan import MergePlan, Window
from swm.search.find import threshold_path
from swm.search.kept_path import path_data, path_from
from swm.search.threshold_path import DOUBT, SEARCH_VERSION, ThresholdPath
from swm.search.walk import Trial

# 4 layers, the top one protected. Up to 0.6 windows 1-2 and 0-2 pass: two layers left. Up to 0.7 only 1-2: three. Above
# that 0-1 is tried and passes up to 0.9: three. Above 0.9 nothing: four.
SIMILARITIES = {"1-2": 0.7, "0-2": 0.6, "0-1": 0.9}


def score(above, window):
    return SIMILARITIES[str(window)]


@pytest.fixture
def path():
    return threshold_path(4, score, 0.5, rule="mean")


def test_each_walk_of_the_path_is_the_one_by_pencil(path):
    found = [(step.plan.windows, step.threshold, step.low, step.high, step.similarity) for step in path.intervals()]
    assert found == [
        ((), 1.0, 0.9, 1.0, 1.0),
        ((Window(0, 1),), 0.9, 0.7, 0.9, 0.9),
        ((Window(1, 2),), 0.7, 0.6, 0.7, 0.7),
        ((Window(0, 2),), 0.6, 0.0, 0.6, 0.6),
    ]
    assert {step.plan.rule for step in path.intervals()} == {"mean"}


def test_a_threshold_inside_an_interval_finds_its_walk_and_is_short(path):
    assert [step.inside for step in path.intervals()] == [0.95, 0.8, 0.65, 0.3]
    for step in path.intervals():
        assert path.plan_at(step.inside).plan == step.plan
        assert min(step.high - step.inside, step.inside - step.low) >= (step.high - step.low) / 4


def test_a_plan_at_a_threshold_is_written_down_with_what_it_was_found_by(path):
    path.perplexities[(Window(0, 1),)] = 21.5
    assert path.plan_at(0.8).to_dict() == {
        "layer_count": 4,
        "layers_left": 3,
        "windows": [[0, 1]],
        "rule": "mean",
        "threshold": 0.8,
        "valid_for": [0.7, 0.9],
        "similarity": 0.9,
        "perplexity": 21.5,
    }
    assert path.plan_at(1.0).to_dict()["perplexity"] is None


def test_every_entry_of_a_path_survives_a_round_trip(path):
    first = next(iter(path.similarities))
    path.bounds, path.sure = {first}, {key for key in path.similarities if key != first}
    path.scoring, path.difference, path.layer_runs = "bfloat16", 0.0007, 123.4
    path.perplexities = {(): 20.0, (Window(0, 1),): 21.5}
    path.text_hash = "abc"
    path.version = SEARCH_VERSION + 1
    written = json.loads(json.dumps(path_data(path)))
    assert path_from(written) == path
    assert (written["low"], written["high"], written["protect_last"]) == (0.5, 1.0, 1)
    assert [row.get("at_most", False) for row in written["similarities"]] == [True, False, False]
    assert [row.get("exact", False) for row in written["similarities"]] == [False, True, True]


def test_a_path_that_an_older_release_wrote_is_read_as_of_the_first_version(path):
    written = path_data(path)
    for name in ("perplexities", "scoring", "layer_runs", "difference", "version", "text_hash"):
        del written[name]
    again = path_from(written)
    assert (again.scoring, again.layer_runs, again.difference, again.version) == ("exact", 0.0, 0.0, 1)
    assert (again.text_hash, again.perplexities) == ("", {})
    assert again.similarities == path.similarities


def test_a_path_of_an_unknown_rule_is_refused(path):
    with pytest.raises(SettingsError, match="'avg' is not a merge rule"):
        path_from(path_data(path) | {"rule": "avg"})


def test_a_new_path_covers_thresholds_from_a_half_to_one_and_protects_the_top_layer():
    path = ThresholdPath(4)
    path.extend(0.55, score)
    assert (path.low, path.high, path.protect_last, path.rule, path.version) == (0.5, 1.0, 1, "rdsc", SEARCH_VERSION)
    assert path.plan_at(0.55).plan == MergePlan(4, (Window(0, 2),), "rdsc")
    assert path.covered() == pytest.approx((0.7 - 0.5) / 0.5)  # above 0.7 the walk needs 0-1


@pytest.mark.parametrize(
    ("low", "layers", "nearest"),
    [
        (0.65, 2, "The nearest depths are 3. "),
        (0.65, 5, "The nearest depths are 4. "),
        (0.5, 1, "The nearest depths are 2. "),
    ],
)
def test_a_depth_that_no_threshold_gives_is_refused_with_the_nearest_ones(low, layers, nearest):
    path = threshold_path(4, score, low)
    expected = f"No threshold from {low:g} to 1 leaves exactly {layers} layers with rule rdsc. {nearest}Choose another"
    with pytest.raises(PlanError) as error:
        path.plan_with_layers(layers)
    assert str(error.value).startswith(expected)


def test_a_depth_between_two_others_is_refused_with_both():
    # 5 layers: 2-3 and 1-3 and 0-3 all pass up to 0.8, so a walk leaves five layers or two.
    path = threshold_path(5, lambda above, window: 0.8 if window.last == 3 else 0.1, 0.5)
    with pytest.raises(PlanError, match="The nearest depths are 2 and 5. Choose another depth"):
        path.plan_with_layers(3)


def test_nearest_depths_of_a_path_that_is_not_whole_are_those_found_so_far():
    path = ThresholdPath(4)
    with pytest.raises(PlanError) as error:
        path.plan_with_layers(2)
    assert "nearest" not in str(error.value)
    path.extend(0.95, score)  # 1-2 and 0-1, which is what walks above 0.7 need
    with pytest.raises(PlanError, match="The nearest depths found so far are 3. "):
        path.plan_with_layers(2)


def test_of_plans_whose_perplexity_is_known_only_in_part_the_most_similar_is_taken(path):
    # Three layers: 0-1 at 0.9 and 1-2 at 0.7.
    assert path.plan_with_layers(3).plan.windows == (Window(0, 1),)
    path.perplexities[(Window(1, 2),)] = 5.0
    assert path.plan_with_layers(3).plan.windows == (Window(0, 1),)
    path.perplexities[(Window(0, 1),)] = 6.0
    assert path.plan_with_layers(3).plan.windows == (Window(1, 2),)


def test_doubt_is_none_for_exact_similarities_and_five_times_what_was_seen_for_quick_ones():
    assert ThresholdPath(4, difference=0.1).doubt == 0
    assert ThresholdPath(4, scoring="bfloat16").doubt == DOUBT == 0.002
    assert ThresholdPath(4, scoring="bfloat16", difference=0.01).doubt == pytest.approx(0.05)
    assert ThresholdPath(4, scoring="bfloat16", difference=0.0001).doubt == 0.002


def test_unsure_are_the_windows_near_the_threshold_and_the_last_one_accepted():
    path = threshold_path(4, score, 0.5)
    key = {str(window): (above, window) for above, window in path.similarities}
    step = path.plan_at(0.601)  # 1-2 passes by far but as the last one, 0-2 fails by 0.001
    assert path.unsure_trials(step) == []
    path.scoring = "bfloat16"
    assert path.unsure_trials(step) == [key["1-2"], key["0-2"]]
    assert path.unsure_trials(path.plan_at(0.65)) == [key["1-2"]]
    assert path.unsure_trials(path.plan_at(0.598)) == [key["0-2"]]  # accepted, and 0.6 is 0.002 away
    path.keep(*key["0-2"], 0.6, sure=True)
    assert path.unsure_trials(step) == [key["1-2"]]
    assert path.unsure_trials(path.plan_at(0.598)) == []


def test_a_similarity_kept_again_is_no_bound_any_more():
    path = ThresholdPath(4)
    path.extend_quickly(0.9, lambda above, window, needed: 0.5)
    key = ((), Window(1, 2))
    assert not path.knows(*key)
    assert path.keep(*key, 0.7) == 0.7
    assert path.knows(*key)
    assert key not in path.sure
    path.keep(*key, 0.7, sure=True)
    assert path.sure == {key}


@pytest.mark.parametrize(("margin", "needed"), [(0.0, 0.9), (0.05, 0.85)])
def test_a_window_that_fails_by_less_than_the_margin_is_kept_as_it_is(margin, needed):
    asked = []
    path = ThresholdPath(4)

    def quick(above, window, least):
        asked.append(least)
        return {"1-2": 0.86, "0-1": 0.84}[str(window)]

    path.extend_quickly(0.9, quick, margin=margin)
    assert asked == pytest.approx([needed, needed])
    bounds = {str(window) for _, window in path.bounds}
    assert bounds == ({"0-1"} if margin else {"1-2", "0-1"})


def test_each_similarity_that_is_computed_tells_how_many_layers_are_done():
    steps = []
    path = ThresholdPath(5)
    table = {"2-3": 0.95, "1-3": 0.5, "0-1": 0.95}
    path.extend(0.9, lambda above, window: table[str(window)], steps.append)
    assert steps == [2, 3, 4]  # of 4 below the top one: 2-3 starts at layer 2
    path.extend(0.9, lambda above, window: pytest.fail("known"), steps.append)
    assert steps == [2, 3, 4]


def test_the_trace_says_which_similarities_are_bounds_and_what_was_merged_above():
    path = ThresholdPath(5)
    table = {"2-3": 0.95, "1-3": 0.5, "0-1": 0.4}
    step = path.extend_quickly(0.9, lambda above, window, needed: table[str(window)])
    assert step.trace == (
        Trial(Window(2, 3), 0.95, True),
        Trial(Window(1, 3), 0.5, False, at_most=True),
        Trial(Window(0, 1), 0.4, False, (Window(2, 3),), True),
    )


def test_a_similarity_just_as_far_from_the_threshold_as_the_doubt_is_made_sure_of():
    path = ThresholdPath(3, scoring="bfloat16", difference=0.0625)  # five times that is 0.3125
    key = ((), Window(0, 1))
    path.keep(*key, 0.1875)
    assert path.unsure_trials(path.plan_at(0.5)) == [key]
    assert path.unsure_trials(path.plan_at(0.5001)) == []
