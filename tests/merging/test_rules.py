"""Every rule against its formula in float64, over weights nobody chose by hand; what is one layer's is not copied."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swm.merging.apply import merged_tensor
from swm.registry import MERGE_RULES, MergeRule

FORMULAS = {
    "rdsc": lambda w: w[0] + sum(later - w[0] for later in w[1:]),
    "mean": lambda w: np.mean(w, axis=0),
    "replace": lambda w: w[-1],
}


def test_these_are_all_rules_that_combine():
    assert {name for name, rule in MERGE_RULES.items() if rule.combine} == set(FORMULAS)


@given(st.sampled_from(sorted(FORMULAS)), st.integers(2, 6), st.integers(1, 40), st.integers(1, 9), st.integers(0, 999))
def test_a_rule_is_its_formula(rule, layers, rows, columns, seed):
    weights = [
        torch.tensor(np.random.default_rng(seed + i).normal(size=(rows, columns))).float() for i in range(layers)
    ]
    before = [weight.clone() for weight in weights]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swm.merging.apply.BLOCK_NUMBERS", 3 * columns)  # a few rows at a time
        merged = merged_tensor(weights, rule)
    expected = FORMULAS[rule]([weight.double().numpy() for weight in weights])
    np.testing.assert_allclose(merged.double().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, weights, before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_of_two_is_the_second_layer_for_rdsc_and_takes_no_memory(dtype):
    pair = [torch.randn(5, 3).to(dtype) for _ in range(2)]
    for rule in ("rdsc", "replace"):
        assert torch.equal(merged_tensor(pair, rule), pair[1])
    if dtype == torch.float32:
        assert merged_tensor(pair, "rdsc").data_ptr() == pair[1].data_ptr()


def test_a_rule_may_pick_another_layer_in_every_block(monkeypatch):
    monkeypatch.setattr("swm.merging.apply.BLOCK_NUMBERS", 3)  # one row at a time
    larger = MergeRule(
        "larger", "Larger", "the larger layer", lambda weights: max(weights, key=lambda w: float(w.sum()))
    )
    monkeypatch.setitem(MERGE_RULES._all(), "larger", larger)
    rows = [torch.tensor([[1.0, 1, 1], [5, 5, 5], [1, 1, 1]]), torch.tensor([[2.0, 2, 2], [3, 3, 3], [4, 4, 4]])]
    expected = torch.tensor([[2.0, 2, 2], [5, 5, 5], [4, 4, 4]])
    assert torch.equal(merged_tensor(rows, "larger"), expected)
    assert torch.equal(merged_tensor(rows[::-1], "larger"), expected)
