"""Plans as words, dictionaries and options, and the ends of every range, by pencil."""

import pytest

from swm.errors import PlanError, SettingsError
from swm.plan import WHOLE_WIDTH, MergePlan, WidthCut, Window, check_layers, parse_windows, windows_from
from swm.registry import MERGE_RULES, PLANNERS
from swm.reporting.commands import plan_arguments, width_arguments
from swm.workspace.experiments import PLANS_VERSION
from swm.workspace.origin import SOURCES, source_of


@pytest.mark.parametrize("ratio", [0, 0.0, 0.25, 0.9])
@pytest.mark.parametrize("method", ["flap", "taylor"])
def test_a_cut_in_width_is_a_share_up_to_nine_tenths(ratio, method):
    assert WidthCut(ratio, method).ratio == ratio


@pytest.mark.parametrize("ratio", [-0.01, 0.91, 1.0, float("nan")])
def test_a_cut_in_width_outside_that_is_refused(ratio):
    with pytest.raises(SettingsError, match=r"is out of range. Choose 0 to 0\.9"):
        WidthCut(ratio)


def test_an_unknown_way_to_cut_width_names_the_known_ones():
    with pytest.raises(SettingsError, match=r"'slice' is not a width pruning method. Choose flap or taylor\."):
        WidthCut(0.1, "slice")


def test_a_method_is_named_with_the_cut_after_it_if_there_is_one():
    assert WidthCut(0.1, "taylor").after("sleb") == "sleb + taylor"
    assert WHOLE_WIDTH.after("sleb") == "sleb"
    assert WidthCut(0, "flap") == WHOLE_WIDTH


def test_layers_count_by_their_weights_after_a_cut_in_width():
    # 10 layers, two of them gone; a quarter of the width of the others.
    plan = MergePlan(10, (Window(2, 4),), width=WidthCut(0.25))
    assert plan.layers_left == 8
    assert plan.worth_layers == 6
    assert MergePlan(10).worth_layers == 10


def test_a_plan_is_written_with_its_width_only_if_that_is_cut():
    plan = MergePlan(10, (Window(2, 4), Window(5, 6)), "mean")
    written = {"layer_count": 10, "layers_left": 7, "windows": [[2, 4], [5, 6]], "rule": "mean"}
    assert plan.to_dict() == written
    cut = MergePlan(10, plan.windows, "mean", WidthCut(0.2, "taylor"))
    assert cut.to_dict() == {**written, "width": {"ratio": 0.2, "method": "taylor"}}
    for each in (plan, cut):
        assert MergePlan.from_dict(each.to_dict()) == each
    assert MergePlan.from_dict({**written, "layer_count": "10", "windows": [["5", 6], [2, 4.0]]}) == plan


def test_a_plan_is_asked_for_by_its_windows_rule_and_cut():
    plan = MergePlan(30, (Window(2, 4), Window(25, 26)), "mean", WidthCut(0.125, "taylor"))
    assert plan_arguments(plan) == [
        "--windows", "2-4,25-26", "--rule", "mean", "--width", "0.125", "--width-by", "taylor",
    ]  # fmt: skip
    assert plan_arguments(MergePlan(30)) == ["--windows", "", "--rule", "rdsc"]
    assert width_arguments(WHOLE_WIDTH) == []
    assert parse_windows(plan_arguments(plan)[1]) == plan.windows


def test_a_plan_without_more_said_merges_nothing_by_the_papers_formula():
    plan = MergePlan(3)
    assert (plan.windows, plan.rule, plan.width) == ((), "rdsc", WidthCut(0.0, "flap"))
    assert plan.kept_layers() == (Window(0, 0), Window(1, 1), Window(2, 2))


def test_windows_may_touch_each_other_and_both_ends_of_the_model():
    plan = MergePlan(6, (Window(0, 1), Window(2, 3), Window(4, 5)))
    assert plan.layers_left == 3
    assert plan.kept_layers() == plan.windows


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([(0, 6)], "Window 0-6 does not fit: it needs two or more of the layers 0-5. Edit"),
        ([(0, 2), (2, 3)], "Windows 0-2 and 2-3 share layer 2: a layer can be merged only once."),
        ([(-1, 2)], "Window -1-2 does not fit"),
        ([(0, 1), (5, 5)], "Window 5-5 does not fit: it needs two or more of the layers 2-5. Edit"),
    ],
)
def test_a_window_that_does_not_fit_is_refused_with_the_layers_that_are_free(windows, message):
    with pytest.raises(PlanError, match=message):
        MergePlan(6, tuple(Window(*window) for window in windows))


def test_in_a_model_of_one_layer_there_is_nothing_to_merge():
    with pytest.raises(PlanError, match="The model has a single layer: there is nothing to merge"):
        MergePlan(1, (Window(0, 1),))
    assert MergePlan(2, (Window(0, 1),)).layers_left == 1
    with pytest.raises(PlanError, match=r"needs two or more of the layers 0-1\."):
        MergePlan(2, (Window(1, 2),))


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("", ()),
        (" , ,", ()),
        ("3-4", (Window(3, 4),)),
        (" 12 - 15 ,0-1,", (Window(0, 1), Window(12, 15))),
        ("1000-1001", (Window(1000, 1001),)),
        ("5-3", (Window(5, 3),)),  # the plan refuses it
    ],
)
def test_windows_by_hand_may_have_spaces_and_empty_parts(text, windows):
    assert parse_windows(text) == windows


@pytest.mark.parametrize("text", ["10000-10001", "1-10000", "1-2 3-4", "-", "1-", "-2", "1-2-3", "x1-2", "1-2x"])
def test_what_is_not_a_window_is_refused_by_its_beginning(text):
    with pytest.raises(PlanError) as error:
        parse_windows(f"0-1,{text}")
    assert str(error.value).startswith(f"'{text}' is not a window. Write first and last layer with a hyphen")
    with pytest.raises(PlanError) as error:
        parse_windows("9" * 60)
    assert str(error.value).startswith(f"'{'9' * 40}' is not a window")


def test_windows_are_ordered_by_their_first_layer():
    assert windows_from([[7, 9], (1, 2), (4, 5)]) == (Window(1, 2), Window(4, 5), Window(7, 9))
    assert [len(window) for window in windows_from([(7, 9), (1, 2)])] == [2, 3]


def test_unknown_planners_are_refused_and_every_known_one_has_a_source():
    names = ["best", "angular", "laco", "perplexity", "random", "shortgpt", "sleb", "taylor"]
    assert set(names) <= set(PLANNERS)
    assert list(PLANNERS) == ["best", *sorted({*PLANNERS} - {"best"})]
    assert set(SOURCES) == {"threshold", "windows"}
    for planner in names:
        PLANNERS.check(planner)
    with pytest.raises(SettingsError) as error:
        PLANNERS.check("magic")
    assert str(error.value) == f"'magic' is not a planner. Choose one of: {', '.join(PLANNERS)}."


def test_sources_of_methods_are_papers_by_their_number():
    numbers = {"threshold": "2502.19159", "sleb": "2402.09025", "shortgpt": "2403.03853", "perplexity": "2402.02834"}
    numbers |= {"taylor": "2402.02834", "angular": "2403.17887", "laco": "2402.11187"}
    assert all(source_of(name).endswith(f"arXiv:{number}") for name, number in numbers.items())


def test_only_fitted_rules_need_text():
    kinds = {name: (rule.needs_text, bool(rule.combine), rule.base) for name, rule in MERGE_RULES.items()}
    ours = dict.fromkeys(("fit", "scale"), (True, False, "first"))
    ours |= {"keep_first": (False, False, "first"), "keep_last": (False, False, "last")}
    ours |= dict.fromkeys(("rdsc", "mean", "replace"), (False, True, "first"))
    assert ours.items() <= kinds.items()
    assert next(iter(MERGE_RULES)) == "rdsc"


def test_plans_that_planners_found_carry_a_version():
    assert isinstance(PLANS_VERSION, int)


@pytest.mark.parametrize(("layers", "layer_count"), [(2, 3), (3, 3), (2, 30), (30, 30)])
def test_two_layers_or_more_can_be_left(layers, layer_count):
    check_layers(layers, layer_count)


@pytest.mark.parametrize(
    ("layers", "layer_count", "message"),
    [
        (1, 30, "--layers 1 is out of range: the model has 30 layers. Choose 2 to 30."),
        (31, 30, "--layers 31 is out of range: the model has 30 layers. Choose 2 to 30."),
        (2, 2, "--layers 2: the search cannot remove a layer from a 2-layer model."),
        (1, 1, "--layers 1: the search cannot remove a layer from a 1-layer model."),
    ],
)
def test_fewer_or_more_layers_than_there_can_be_are_refused(layers, layer_count, message):
    with pytest.raises(SettingsError, match=message):
        check_layers(layers, layer_count)
