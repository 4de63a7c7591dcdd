"""What a model says, by transformers alone."""

import re

from transformers import AutoModelForCausalLM, AutoTokenizer


def greedy(folder, prompt, tokens):
    """What a model's files continue a prompt with, by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True)


def letters(text):
    return re.sub(r"[^A-Za-z]", "", text)
