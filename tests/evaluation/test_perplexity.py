"""Tests of swm.evaluation.perplexity."""

import math

import pytest
import torch

from swm.errors import ModelError, TextError
from swm.evaluation.perplexity import perplexity


def test_perplexity_is_the_exponential_of_transformers_own_loss(model, tokens):
    with torch.inference_mode():
        loss = model(tokens, labels=tokens).loss
    found = perplexity(model, tokens, batch=2)
    assert found["value"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert (found["texts"], found["predicted_tokens"]) == (3, 45)


def test_interval_is_1_96_standard_errors_of_the_mean_loss(model, tokens):
    with torch.inference_mode():
        losses = torch.stack([model(row[None], labels=row[None]).loss for row in tokens]).double()
    half = 1.96 * losses.std() / 3**0.5
    found = perplexity(model, tokens)
    assert found["low"] == pytest.approx(float((losses.mean() - half).exp()), rel=1e-5)
    assert found["high"] == pytest.approx(float((losses.mean() + half).exp()), rel=1e-5)


def test_text_of_one_token_is_refused(model):
    with pytest.raises(TextError, match="at least 2 tokens .got 1."):
        perplexity(model, torch.tensor([[1]]))


def test_weights_that_overflow_are_told_at_once(model, tokens):
    model.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match="loss is nan in float32"):
        perplexity(model, tokens)
