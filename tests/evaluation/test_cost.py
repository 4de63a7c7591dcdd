"""Tests of swm.evaluation.cost."""

import pytest

from swm.evaluation.cost import decode_cost
from tests.conftest import tiny_model


def test_cost_of_layers_and_rest_add_up_to_a_token(tokens, clock):
    cost = decode_cost(clock(tiny_model(layers=32)), tokens[:1])
    assert (cost["layers_ms"], cost["rest_ms"], cost["layers"]) == pytest.approx((32, 2, 32))
    # Eight texts of 16 tokens are read in 34 ms.
    assert cost["forward_tokens_per_second"] == pytest.approx(8 * 16 / 0.034)


def test_a_busy_moment_does_not_spoil_the_rates(tokens, clock, monkeypatch):
    """The first passes are slowed down by other programs, each differently; the measurement goes on until two agree."""
    model, slow = clock(tiny_model(layers=32)), iter([0.3, 0.2, 0.1])
    whole = model.forward

    def forward(*arguments, **options):
        if options.get("use_cache") is False:
            clock.wait(next(slow, 0.0))
        return whole(*arguments, **options)

    monkeypatch.setattr(model, "forward", forward)
    cost = decode_cost(model, tokens[:1])
    assert cost["forward_tokens_per_second"] == pytest.approx(8 * 16 / 0.034)
    assert cost["training_tokens_per_second"] == pytest.approx(8 * 16 / 0.034)
