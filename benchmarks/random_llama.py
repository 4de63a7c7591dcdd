"""A Llama of random weights that benchmarks of memory write to a folder."""

from __future__ import annotations

from pathlib import Path


def write_random_llama(folder: Path, width: int, layers: int) -> int:
    """Write such a model in bfloat16, with the bundled tokenizer; returns the bytes of its weights.

    Args:
        width: a multiple of 32, which is the width of a head.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from swm.models.decoder import size_bytes
    from swm.models.load import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return size_bytes(model)
