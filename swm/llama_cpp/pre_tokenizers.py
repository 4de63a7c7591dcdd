"""llama.cpp's names for the ways to split text before byte-pair encoding, found by what a tokenizer.json says.

llama.cpp's own converter looks up a hash of what a tokenizer makes of a test text, so it knows published vocabularies
alone. What decides is how text is split: that stands in the file, and is compared here with what llama.cpp does under
each name. So a vocabulary of one's own works, and a way of splitting that llama.cpp does not have is refused.
"""

from __future__ import annotations

import json
from typing import Any

from swm.errors import ModelError

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _bytes(splits: bool, **settings: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": splits, **settings}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _in_turn(*steps: dict[str, Any]) -> list[dict[str, Any]]:
    return list(steps)


BY_THREES = f"{CONTRACTIONS}|{WORDS}|\\p{{N}}{{1,3}}|{REST}"
ONE_BY_ONE = f"{CONTRACTIONS}|{WORDS}|\\p{{N}}|{REST}"
KNOWN = {
    "gpt-2": _in_turn(_bytes(True)),
    "smollm": _in_turn({"type": "Digits", "individual_digits": True}, _bytes(True)),
    "dbrx": _in_turn(_split(BY_THREES), _bytes(False)),
    "qwen2": _in_turn(_split(ONE_BY_ONE), _bytes(False)),
    "falcon": _in_turn(
        {"type": "Punctuation", "behavior": "Contiguous"},
        _bytes(True),
        {"type": "Digits", "individual_digits": False},
        _split("[0-9][0-9][0-9]"),
    ),
}
WHOLE_WORDS_FIRST = {
    "dbrx": "llama-bpe"
}  # the same split, with `ignore_merges`: a word in the vocabulary is taken whole


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer splits text.

    Args:
        tokenizer: the content of tokenizer.json, of a byte-level BPE tokenizer.

    Raises:
        ModelError: if llama.cpp has no such way.
    """
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps]) if steps.get("type") == "Sequence" else [steps]
    plain = [_plain(step) for step in steps]
    for name, known in KNOWN.items():
        if plain == [_plain(step) for step in known]:
            if not tokenizer["model"].get("ignore_merges"):
                return name
            if name in WHOLE_WORDS_FIRST:
                return WHOLE_WORDS_FIRST[name]
    raise ModelError(
        "The model's tokenizer splits text in a way that llama.cpp is not known to have: "
        f"{json.dumps(steps)[:200]}. Export to a Hugging Face folder instead."
    )


def _plain(step: dict[str, Any]) -> dict[str, Any]:
    """A step without what changes no token: where offsets begin."""
    return {name: value for name, value in step.items() if name != "trim_offsets"}
