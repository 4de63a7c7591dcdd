"""Timing: generation equals transformers' own, and the numbers fit one another."""

import pytest
import torch

from swm.evaluation.cost import decode_cost
from swm.evaluation.generation import generated_tokens
from swm.evaluation.speed import throughput, time_models
from swm.merging.apply import apply_plan
from swm.models.decoder import find_decoder, size_bytes
from swm.plan import MergePlan, Window
from swm.reporting.preview import expected_speedup
from tests.conftest import tiny_model


def test_generated_tokens_equal_transformers_greedy_generation(model, tokens):
    prompt = tokens[:1]
    with torch.inference_mode():
        own = [int(token) for token in generated_tokens(model, prompt, 12)]
    theirs = model.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert own == theirs[0, prompt.shape[1] :].tolist()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for layers: each adds 1 ms, the model's head 2 ms."""
    now = [0.0]
    for module in ("swm.evaluation.speed", "swm.evaluation.cost"):
        monkeypatch.setattr(f"{module}.time.perf_counter", lambda: now[0])

    def wound(model):
        def tick(milliseconds):
            return lambda module, args, output: now.__setitem__(0, now[0] + milliseconds / 1000)

        for layer in find_decoder(model).layers:
            layer.register_forward_hook(tick(1.0))
        model.get_output_embeddings().register_forward_hook(tick(2.0))
        return model

    return wound


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


def test_cost_of_layers_and_rest_add_up_to_a_token(tokens, clock):
    cost = decode_cost(clock(tiny_model(layers=32)), tokens[:1])
    assert (cost["layers_ms"], cost["rest_ms"], cost["layers"]) == pytest.approx((32, 2, 32))
    # Eight texts of 16 tokens are read in 34 ms.
    assert cost["forward_tokens_per_second"] == pytest.approx(8 * 16 / 0.034)


def test_expected_speed_follows_from_the_cost_of_a_layer():
    plan = MergePlan(10, (Window(0, 4),))
    # 10 layers cost 20 ms, the rest 4: 6 layers 12 + 4.
    assert expected_speedup(plan, {"layers_ms": 20.0, "rest_ms": 4.0}) == pytest.approx(24 / 16)
    assert expected_speedup(plan, None) is None


def test_throughput_counts_every_row_of_a_batch(tokens, clock):
    (rates,) = throughput([clock(tiny_model(layers=8))], tokens[:1], batches=(1, 8))
    assert rates == pytest.approx({"1": 1 / 0.01, "8": 8 / 0.01})
