"""llama.cpp itself, and tokenizers that split text in each way that it knows."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from swm.llama_cpp.client import client_missing, llama_cpp
from swm.llama_cpp.pre_tokenizers import BY_THREES, ONE_BY_ONE
from tests.conftest import WORDS

LEARNT = [
    WORDS * 3,
    "def f(x):\n    return x + 12345  # naïve café, it's what they'll say: \U0001f600 1999",
    "Größe über straße — don't, won't; I'VE 100 200 3000 http://example.com/a_b?c=1",
]
HARD = [
    "the old house",
    "  two  spaces   and\ttabs\n\n\nand lines \r\n",
    "naïve café, Größe, Ελληνικά, русский, 中文字, العربية",
    "emoji \U0001f600\U0001f468‍\U0001f469‍\U0001f467 and ☃",
    "def f(x):\n    return x[0] + 12345 - 0.5e-3  # it's \"quoted\" 'n' done",
    "I'VE don't WON'T we'll they'd 1 22 333 4444 55555",
    "http://example.com/a_b?c=1&d=%20 $x^2+y^2=z^2$ `code` ~tilde~ a|b",
    "<end>special<end> in the middle",
    "",
]
SPLITS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "dbrx": lambda: _by_pattern(BY_THREES),
    "llama-bpe": lambda: _by_pattern(BY_THREES),
    "qwen2": lambda: _by_pattern(ONE_BY_ONE),
    "falcon": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    ),
}


def _by_pattern(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_level_tokenizer(split="gpt-2", size=500):
    """A byte-level tokenizer trained here that splits text in one of llama.cpp's ways."""
    trained = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    trained.pre_tokenizer = SPLITS[split]()
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    trained.train_from_iterator(LEARNT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<end>")


def fallback_tokenizer(begins_with_space=True):
    """A tokenizer of letters with bytes for the rest, as Llama 2's."""
    start = [normalizers.Prepend("▁")] if begins_with_space else []
    normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", "▁")])
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizer
    learner.train_from_iterator(LEARNT, trainers.BpeTrainer(vocab_size=300, special_tokens=[]))
    learnt = json.loads(learner.to_str())["model"]
    special = ["<unk>", "<s>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names = [*special, *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    whole = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    whole.normalizer = normalizer
    whole.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>", bos_token="<s>", eos_token="<end>")


@pytest.fixture(scope="session")
def client():
    """A running llama.cpp; tests that need it are skipped where it is not installed."""
    if missing := client_missing():
        pytest.skip(missing)
    with llama_cpp() as running:
        yield running
