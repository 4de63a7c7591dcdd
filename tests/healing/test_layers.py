"""Tests of swm.healing.layers."""

from swm.healing.layers import adapted_layers
from swm.plan import MergePlan, Window


def test_adapters_go_where_the_settings_say():
    plan = MergePlan(12, (Window(4, 6), Window(9, 10)))  # 9 layers left; merged ones are 4 and 7
    assert adapted_layers(plan, "all") == list(range(9))
    assert adapted_layers(plan, "above") == [2, 3, 4, 5, 6, 7, 8]
    assert adapted_layers(plan, "near") == [3, 4, 5, 6, 7, 8]
    assert adapted_layers(MergePlan(4), "near") == [0, 1, 2, 3]
