"""Tests of swm.evaluation.cost."""

import pytest

from swm.evaluation.cost import decode_cost
from tests.conftest import tiny_model


def test_cost_of_layers_and_rest_add_up_to_a_token(tokens, clock):
    cost = decode_cost(clock(tiny_model(layers=32)), tokens[:1])
    assert (cost["layers_ms"], cost["rest_ms"], cost["layers"]) == pytest.approx((32, 2, 32))
    # Eight texts of 16 tokens are read in 34 ms.
    assert cost["forward_tokens_per_second"] == pytest.approx(8 * 16 / 0.034)
