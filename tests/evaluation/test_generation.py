"""Tests of swm.evaluation.generation."""

import torch

from swm.evaluation.generation import generated_tokens


def test_generated_tokens_equal_transformers_greedy_generation(model, tokens):
    prompt = tokens[:1]
    with torch.inference_mode():
        own = [int(token) for token in generated_tokens(model, prompt, 12)]
    theirs = model.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert own == theirs[0, prompt.shape[1] :].tolist()
