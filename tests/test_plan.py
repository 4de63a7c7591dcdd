import pytest

from swm.errors import PlanError, SettingsError
from swm.plan import MergePlan, Window, parse_windows, trained_layers
from swm.reporting.commands import plan_arguments


def test_layers_left_counts_one_layer_for_each_window():
    # 30 layers; 22-23 saves one, 25-27 saves two.
    assert MergePlan(30, (Window(22, 23), Window(25, 27))).layers_left == 27
    assert MergePlan(30).layers_left == 30


def test_kept_layers_name_what_each_merged_layer_was_made_from():
    kept = MergePlan(5, (Window(1, 2),)).kept_layers()
    assert [str(w) for w in kept] == ["0-0", "1-2", "3-3", "4-4"]


def test_plan_survives_a_round_trip():
    plan = MergePlan(12, (Window(1, 2), Window(5, 9)), "mean")
    assert MergePlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("windows", [((3, 3),), ((7, 8),), ((4, 5), (1, 2)), ((4, 3),)])
def test_windows_that_do_not_fit_are_refused_with_the_reason(windows):
    reason = (
        "ends before it begins. Write 3-4"
        if windows == ((4, 3),)
        else "does not fit: it needs two or more of the layers"
    )
    with pytest.raises(PlanError, match=reason):
        MergePlan(8, tuple(Window(*w) for w in windows))


@pytest.mark.parametrize(("windows", "shared"), [(((1, 3), (3, 4)), 3), (((1, 5), (2, 3)), 2), (((2, 3), (2, 3)), 2)])
def test_windows_that_share_a_layer_are_named(windows, shared):
    with pytest.raises(PlanError, match=f"share layer {shared}: a layer can be merged only once"):
        MergePlan(8, tuple(Window(*w) for w in windows))


def test_windows_are_read_in_any_order():
    assert parse_windows("27-28, 25-26") == (Window(25, 26), Window(27, 28))


@pytest.mark.parametrize("text", ["27", "a-b", "1-2;3-4", "../x", "1--2", "-2-2"])
def test_what_is_no_window_is_refused_with_an_example(text):
    with pytest.raises(PlanError, match="27-28,25-26"):
        parse_windows(text)


def test_unknown_rule_names_the_known_ones():
    with pytest.raises(SettingsError, match="Choose one of: rdsc, "):
        MergePlan(4, (), "avg")


def test_a_window_from_the_embedding_drops_the_lowest_layers():
    plan = MergePlan(6, (Window(-1, 1), Window(3, 5)), "keep_first")
    # layers 0 and 1 go, 2 stays, 3 stands for 3 to 5
    assert plan.kept_layers() == (Window(2, 2), Window(3, 5))
    assert plan.layers_left == 2
    assert MergePlan.from_dict(plan.to_dict()) == plan
    assert parse_windows("3-5,-1-1") == plan.windows
    assert plan_arguments(plan)[0] == "--windows=-1-1,3-5"
    with pytest.raises(PlanError, match="Window -1-1 does not fit"):
        MergePlan(6, (Window(-1, 1),), "mean")
    with pytest.raises(PlanError, match="leaves no layer"):
        MergePlan(6, (Window(-1, 5),), "keep_first")


def test_what_is_trained_is_what_the_settings_say():
    plan = MergePlan(12, (Window(4, 6), Window(9, 10)))  # 9 layers left; merged ones are 4 and 7
    assert trained_layers(plan, "all") == list(range(9))
    assert trained_layers(plan, "above") == [2, 3, 4, 5, 6, 7, 8]
    assert trained_layers(plan, "near") == [3, 4, 5, 6, 7, 8]
    assert trained_layers(MergePlan(4), "near") == [0, 1, 2, 3]


def test_which_layers_are_the_last():
    assert trained_layers(MergePlan(10, parse_windows("3-5")), "last") == [5, 6, 7]
    assert trained_layers(MergePlan(3, parse_windows("0-1")), "last") == [0, 1]
