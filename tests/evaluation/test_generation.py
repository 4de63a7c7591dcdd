"""Tests of swm.evaluation.generation."""

import pytest
import torch
from transformers import LlamaForCausalLM

from swm.errors import ModelError
from swm.evaluation.generation import check_generates, generated_tokens
from tests.conftest import tiny_model


def test_generated_tokens_equal_transformers_greedy_generation(model, tokens):
    prompt = tokens[:1]
    with torch.inference_mode():
        own = [int(token) for token in generated_tokens(model, prompt, 12)]
    theirs = model.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert own == theirs[0, prompt.shape[1] :].tolist()


def test_an_original_that_cannot_write_either_is_named_as_the_cause():
    class Mute(LlamaForCausalLM):
        def generate(self, *arguments, **more):
            raise ValueError("no voice")

    merged, mute = (tiny_model() for _ in range(2))
    merged.__class__ = mute.__class__ = Mute
    with pytest.raises(ModelError, match=r"no voice\. Nor can the original"):
        check_generates(merged, torch.tensor([[0, 0]]), mute)
    with pytest.raises(ModelError, match=r"no voice\. If the model mixes"):
        check_generates(merged, torch.tensor([[0, 0]]), tiny_model())
