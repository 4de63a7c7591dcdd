"""Timing: generation equals transformers' own, and the numbers fit one another."""

import time

import pytest
import torch

from swm.evaluation.cost import decode_cost
from swm.evaluation.generation import generated_tokens
from swm.evaluation.speed import throughput, time_models
from swm.merging.apply import apply_plan
from swm.models.decoder import size_bytes
from swm.plan import MergePlan, Window
from swm.reporting.preview import expected_speedup
from tests.conftest import tiny_model

pytestmark = pytest.mark.alone


def test_generated_tokens_equal_transformers_greedy_generation(model, tokens):
    prompt = tokens[:1]
    with torch.inference_mode():
        own = [int(token) for token in generated_tokens(model, prompt, 12)]
    theirs = model.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert own == theirs[0, prompt.shape[1] :].tolist()


def test_a_model_of_half_the_layers_is_faster_and_the_ratio_says_so(tokens):
    model = tiny_model(layers=32)
    small = apply_plan(model, MergePlan(32, (Window(0, 15),), "keep_first"))
    start = time.perf_counter()
    base, other = time_models([model, small], tokens[:1], new_tokens=8, repetitions=5)
    wall = 1000 * (time.perf_counter() - start)
    assert "speedup" not in base
    assert other["speedup"]["low"] <= other["speedup"]["value"] <= other["speedup"]["high"]
    assert 1.3 < other["speedup"]["value"] < 3
    assert other["speedup"]["value"] == pytest.approx(base["latency_ms"] / other["latency_ms"], rel=0.3)
    for row in (base, other):
        assert 0 < row["prefill_ms"] < row["latency_ms"] < wall
        assert row["latency_p10_ms"] <= row["latency_ms"] <= row["latency_p90_ms"]
        decode = row["latency_ms"] - row["prefill_ms"]
        assert row["tokens_per_second"] == pytest.approx(7000 / decode, rel=0.3)
    assert base["peak_memory_bytes"] >= size_bytes(model)
    assert (base["prompt_tokens"], base["new_tokens"], base["repetitions"]) == (16, 8, 5)


def test_cost_of_layers_and_rest_add_up_to_a_token(tokens):
    model = tiny_model(layers=32)
    parts, whole = [], []
    for _ in range(5):  # in turn, and the fastest of each: other work on the machine only ever adds
        cost = decode_cost(model, tokens[:1])
        parts.append(cost["layers_ms"] + cost["rest_ms"])
        whole.append(1000 / time_models([model], tokens[:1], new_tokens=24, repetitions=3)[0]["tokens_per_second"])
    assert cost["layers_ms"] > 4 * cost["rest_ms"]
    # the hooks cost a little themselves
    assert min(parts) == pytest.approx(min(whole), rel=0.35)
    assert cost["layers"] == 32


def test_expected_speed_follows_from_the_cost_of_a_layer():
    plan = MergePlan(10, (Window(0, 4),))
    # 10 layers cost 20 ms, the rest 4: 6 layers 12 + 4.
    assert expected_speedup(plan, {"layers_ms": 20.0, "rest_ms": 4.0}) == pytest.approx(24 / 16)
    assert expected_speedup(plan, None) is None


def test_throughput_grows_with_the_batch(tokens):
    (rates,) = throughput([tiny_model(layers=8)], tokens[:1], batches=(1, 8))
    assert list(rates) == ["1", "8"]
    assert rates["8"] > 1.5 * rates["1"]
