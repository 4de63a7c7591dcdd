"""GGUF files run in llama.cpp itself: the same tokens, the same words, the same probabilities as in transformers."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from swm.llama_cpp.families import FAMILIES
from swm.llama_cpp.write import export_gguf
from tests.conftest import tiny_model
from tests.llama_cpp.conftest import HARD, SPLITS, byte_level_tokenizer, fallback_tokenizer

LAYERS = 6
SHAPES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "smollm3": {"no_rope_layer_interval": 4},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 32,
        "norm_topk_prob": True,
    },
    "phi3": {},
    "gemma2": {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 20},
    "gemma3_text": {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 20},
    "olmo2": {},
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "stablelm": {},
    "gpt2": {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
}


def folder_of(family, tokenizer, folder, **changes):
    settings = {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        **SHAPES[family],
        **changes,
    }
    model = tiny_model(family, layers=LAYERS, initializer_range=0.3, **settings)
    with torch.no_grad():  # norms and biases of a fresh model are ones and zeros, which say nothing
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@torch.inference_mode()
def logprobs(model, ids):
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def test_the_families_that_are_written_are_these():
    assert set(SHAPES) == set(FAMILIES)


@pytest.mark.parametrize("family", SHAPES)
def test_llama_cpp_computes_what_transformers_does(family, tmp_path, client):
    tokenizer = byte_level_tokenizer()
    model = folder_of(family, tokenizer, tmp_path / "model")
    texts = [tokenizer(text)["input_ids"][:60] for text in HARD if text]
    prompt = texts[0]
    with torch.inference_mode():
        expected = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "F32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")  # Qwen2's class splits text in its own way
    answer = client.ask(
        tmp_path / "model.gguf", exact=True, tokenize=HARD, generate={"tokens": prompt, "count": 12}, logprobs=texts
    )
    assert answer["tokens"] == [tokenizer(text)["input_ids"] for text in HARD]
    for ids, found in zip(texts, answer["logprobs"], strict=True):
        assert found == pytest.approx(logprobs(model, ids), abs=0.02)
    assert answer["generated"] == expected


def perplexity(values):
    numbers = [value for text in values for value in text]
    return math.exp(-sum(numbers) / len(numbers))


@pytest.mark.parametrize("split", [*SPLITS, "fallback", "fallback without space"])
def test_llama_cpp_splits_text_as_the_tokenizer_does(split, tmp_path, client):
    tokenizer = byte_level_tokenizer(split) if split in SPLITS else fallback_tokenizer(split == "fallback")
    folder_of("llama", tokenizer, tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert client.ask(tmp_path / "model.gguf", tokenize=HARD)["tokens"] == [
        tokenizer(text)["input_ids"] for text in HARD
    ]
