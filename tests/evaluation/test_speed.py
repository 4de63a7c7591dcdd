"""Timing: generation equals transformers' own, and the numbers fit one another."""

import pytest

from swm.evaluation.speed import throughput, time_models
from swm.merging.apply import apply_plan
from swm.models.decoder import size_bytes
from swm.plan import MergePlan, Window
from swm.reporting.preview import expected_speedup
from tests.conftest import tiny_model


def test_a_model_of_half_the_layers_is_faster_and_the_ratio_says_so(tokens, clock):
    plain = tiny_model(layers=32)
    small = clock(apply_plan(plain, MergePlan(32, (Window(0, 15),), "keep_first")))
    model = clock(plain)
    base, other = time_models([model, small], tokens[:1], new_tokens=8, repetitions=5)
    assert "speedup" not in base
    # A token costs 32 or 17 layers and the head: 8 of them, the first one being the prompt's.
    assert base["latency_ms"] == pytest.approx(8 * 34)
    assert other["latency_ms"] == pytest.approx(8 * 19)
    assert other["speedup"] == pytest.approx(dict.fromkeys(("value", "low", "high"), 34 / 19))
    for row, token in ((base, 34), (other, 19)):
        assert row["prefill_ms"] == pytest.approx(token)
        assert (row["latency_p10_ms"], row["latency_p90_ms"]) == pytest.approx((8 * token, 8 * token))
        assert row["tokens_per_second"] == pytest.approx(1000 / token)
    assert base["peak_memory_bytes"] >= size_bytes(model)
    assert (base["prompt_tokens"], base["new_tokens"], base["repetitions"]) == (16, 8, 5)


def test_expected_speed_follows_from_the_cost_of_a_layer():
    plan = MergePlan(10, (Window(0, 4),))
    # 10 layers cost 20 ms, the rest 4: 6 layers 12 + 4.
    assert expected_speedup(plan, {"layers_ms": 20.0, "rest_ms": 4.0}) == pytest.approx(24 / 16)
    assert expected_speedup(plan, None) is None


def test_throughput_counts_every_row_of_a_batch(tokens, clock):
    (rates,) = throughput([clock(tiny_model(layers=8))], tokens[:1], batches=(1, 8))
    assert rates == pytest.approx({"1": 1 / 0.01, "8": 8 / 0.01})
