"""Tests of swm.evaluation.perplexity."""

import math

import pytest
import torch

from swm.errors import ModelError, TextError
from swm.evaluation.paired import has_interval
from swm.evaluation.perplexity import perplexity
from swm.reporting.numbers import interval


def test_perplexity_is_the_exponential_of_transformers_own_loss(model, tokens):
    with torch.inference_mode():
        loss = model(tokens, labels=tokens).loss
    found = perplexity(model, tokens, batch=2)
    assert found["value"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert (found["texts"], found["predicted_tokens"]) == (3, 45)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_interval_is_students_of_the_mean_loss_as_scipy_has_it(model, count):
    from scipy import stats

    tokens = torch.randint(0, 300, (count, 16), generator=torch.Generator().manual_seed(count))
    with torch.inference_mode():
        losses = torch.stack([model(row[None], labels=row[None]).loss for row in tokens]).double().numpy()
    low, high = stats.t.interval(0.95, count - 1, losses.mean(), stats.sem(losses))
    found = perplexity(model, tokens)
    assert math.log(found["low"]) == pytest.approx(low, rel=1e-5)
    assert math.log(found["high"]) == pytest.approx(high, rel=1e-5)


def test_a_single_text_has_no_interval(model, tokens):
    found = perplexity(model, tokens[:1])
    assert not {"low", "high"} & set(found)
    assert interval(found) == f"{found['value']:,.1f}"
    assert interval({**found, "low": found["value"], "high": found["value"]}) == interval(found)  # an older release's
    assert not has_interval(found)


def test_text_of_one_token_is_refused(model):
    with pytest.raises(TextError, match="at least 2 tokens .got 1."):
        perplexity(model, torch.tensor([[1]]))


def test_weights_that_overflow_are_told_at_once(model, tokens):
    model.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match="loss is nan in float32"):
        perplexity(model, tokens)
