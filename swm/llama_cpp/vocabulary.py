"""A tokenizer as llama.cpp stores it: copied from a GGUF file, or taken from a folder's tokenizer files."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from swm.errors import ModelError
from swm.llama_cpp.pre_tokenizers import pre_tokenizer_name

PREFIX = "tokenizer."
SPECIAL = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "unk_token_id": "unknown_token_id",
    "pad_token_id": "padding_token_id",
    "sep_token_id": "seperator_token_id",  # spelt so in the format
}


SPACES = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
GEMMA_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
PHI3 = re.compile("phi-?3", re.IGNORECASE)
PHI3_TOKENS = ("<unk>", "<s>", "</s>", "<|endoftext|>")  # llama.cpp looks for them in a file of that name
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Value:
    """A metadata entry with its type; for lists also the type of what is in them."""

    value: Any
    kind: GGUFValueType
    items: GGUFValueType | None = None

    def add_to(self, writer: GGUFWriter, key: str) -> None:
        """Write it under a key."""
        writer.add_key_value(key, self.value, self.kind, self.items)


@dataclass(frozen=True)
class Vocabulary:
    """The metadata entries of a tokenizer, and how many tokens there are.

    Attributes:
        takes_spaces: special tokens take in the space after them, as llama.cpp does in files whose name has Phi-3 in it
            and in no others.
    """

    entries: Mapping[str, Value]
    tokens: int
    takes_spaces: bool = False

    def name(self, name: str) -> str:
        """The name for the file, changed if llama.cpp would otherwise treat spaces after special tokens wrongly."""
        if self.takes_spaces:
            return name if PHI3.search(name) else f"Phi-3 {name}".strip()
        return PHI3.sub("Phi 3", name)


def copied_vocabulary(reader: GGUFReader) -> Vocabulary:
    """The vocabulary of a GGUF file, entry by entry."""
    entries = {
        key: Value(entry.contents(), entry.types[0], entry.types[1] if len(entry.types) > 1 else None)
        for key, entry in reader.fields.items()
        if key.startswith(PREFIX)
    }
    if "tokenizer.ggml.tokens" not in entries:
        raise ModelError("The GGUF file that the model came from has no vocabulary. Use another file.")
    name = reader.fields.get("general.name")
    takes_spaces = bool(name and PHI3.search(str(name.contents())))
    return Vocabulary(entries, len(entries["tokenizer.ggml.tokens"].value), takes_spaces)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        rows: of the embedding; tokens without a text fill the gaps.

    Raises:
        ModelError: if llama.cpp has no such tokenizer, or the tokenizer has more tokens than the embedding.
    """
    content = _content(tokenizer)
    model = content["model"]
    _check_fields(tokenizer, content)
    if (last := max(tokenizer.get_vocab().values())) >= rows:
        raise ModelError(f"The tokenizer has a token {last:,}, but the embedding only {rows:,} rows. Check the model.")
    by_bytes = not model.get("byte_fallback")
    entries = _byte_level(content) if by_bytes else _with_fallback(content)
    names, kinds = _tokens(tokenizer, content, rows)
    entries["ggml.tokens"] = Value(names, GGUFValueType.ARRAY, GGUFValueType.STRING)
    entries["ggml.token_type"] = Value(kinds, GGUFValueType.ARRAY, GGUFValueType.INT32)
    if not by_bytes:  # the earlier in the vocabulary, the sooner two tokens are joined
        scores = [-float(number) for number in range(rows)]
        entries["ggml.scores"] = Value(scores, GGUFValueType.ARRAY, GGUFValueType.FLOAT32)
    entries |= _special(tokenizer)
    return Vocabulary({PREFIX + name: value for name, value in entries.items()}, rows, _takes_spaces(content, names))


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(fast.to_str()) if fast is not None else {"model": {"type": "slow"}}
    if content["model"].get("type") != "BPE":
        raise ModelError(
            f"llama.cpp export needs a BPE tokenizer; this one is of type {content['model'].get('type')}. Export to a "
            "Hugging Face folder instead."
        )
    return dict(content)


def _byte_level(content: dict[str, Any]) -> dict[str, Value]:
    """Of a tokenizer whose tokens are made of bytes, as GPT-2's."""
    normalizer = content.get("normalizer")
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    if any(step["type"] != "NFC" for step in steps):  # which llama.cpp leaves to the text
        raise ModelError(f"The tokenizer changes text before it splits it ({steps[0]['type']}); llama.cpp does not.")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return {
        "ggml.model": Value("gpt2", GGUFValueType.STRING),
        "ggml.pre": Value(pre_tokenizer_name(content), GGUFValueType.STRING),
        "ggml.merges": Value(merges, GGUFValueType.ARRAY, GGUFValueType.STRING),
    }


def _with_fallback(content: dict[str, Any]) -> dict[str, Value]:
    """Of a tokenizer whose tokens are made of letters, and of bytes where it lacks one, as Llama 2's."""
    vocabulary, last = content["model"]["vocab"], -1
    for merge in content["model"]["merges"]:
        joined = vocabulary["".join(merge.split(" ") if isinstance(merge, str) else merge)]
        if joined < last:
            raise ModelError("The tokenizer does not join tokens in the order of its vocabulary, as llama.cpp would.")
        last = joined
    return {
        "ggml.model": Value("llama", GGUFValueType.STRING),
        "ggml.pre": Value("default", GGUFValueType.STRING),
        "ggml.add_space_prefix": Value(_begins_with_space(content), GGUFValueType.BOOL),
    }


def _begins_with_space(content: dict[str, Any]) -> bool:
    """Whether a space is put before a text; refuses other changes to it, and other ways to split it."""
    normalizer = content.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    splitting = content.get("pre_tokenizer")
    if steps in (SPACES, SPACES[1:]) and splitting in (None, GEMMA_SPLIT):
        return len(steps) == 2
    metaspace = splitting or {}
    if not steps and metaspace.get("type") == "Metaspace" and not metaspace.get("split", True):
        if metaspace.get("prepend_scheme") != "never":
            log.warning(
                "Texts that begin with a space, and text after special tokens, get one token more in llama.cpp."
            )
        return metaspace.get("prepend_scheme") != "never"
    raise ModelError(
        f"The tokenizer splits text in a way that llama.cpp does not have: {json.dumps([steps, splitting])[:200]}. "
        "Export to a Hugging Face folder instead."
    )


def _check_fields(tokenizer: PreTrainedTokenizerBase, content: dict[str, Any]) -> None:
    """Refuse what a GGUF file cannot say of a tokenizer."""
    model, refused = content["model"], ""
    for name in ("end_of_word_suffix", "continuing_subword_prefix", "dropout"):
        if model.get(name):
            refused = f"it has {name}"
    names = [*tokenizer.get_vocab()]
    for added in content.get("added_tokens", []):
        if added["lstrip"] or added["single_word"] or (added["rstrip"] and not _takes_spaces(content, names)):
            refused = f"its token {added['content']} takes in the space beside it"
        if model.get("byte_fallback") and added["normalized"] and not added["special"]:
            refused = f"its token {added['content']} is looked for in the changed text"
    if tokenizer.eos_token_id is None:
        refused = "it has no end-of-text token"
    plain, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if whole not in (plain, [bos, *plain], [*plain, eos], [bos, *plain, eos]):
        refused = "it puts other tokens around a text than one at its beginning and one at its end"
    if refused:
        raise ModelError(f"llama.cpp cannot do what this tokenizer does: {refused}. Export to a Hugging Face folder.")


def _takes_spaces(content: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether special tokens take in the space after them exactly where llama.cpp lets those of Phi-3 do so."""
    added = content.get("added_tokens", [])
    kept = {*PHI3_TOKENS} - {"</s>"}
    return (
        any(token["rstrip"] for token in added)
        and all(token["rstrip"] == (token["content"] not in kept) for token in added)
        and {*PHI3_TOKENS} <= {*names}
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, content: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    names = [f"[PAD{number}]" for number in range(rows)]
    kinds = [int(TokenType.UNUSED)] * rows
    unknown = content["model"].get("unk_token")
    for text, number in tokenizer.get_vocab().items():
        names[number], kinds[number] = text, int(TokenType.NORMAL)
        if content["model"].get("byte_fallback"):
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                kinds[number] = int(TokenType.BYTE)
            elif text == unknown:
                kinds[number] = int(TokenType.UNKNOWN)
    for added in content.get("added_tokens", []):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        if kinds[added["id"]] != TokenType.UNKNOWN:
            kinds[added["id"]] = int(kind)
        names[added["id"]] = added["content"]
    return names, kinds


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Value]:
    """Special tokens, whether they are added to a text, and the chat template."""
    entries = {}
    for name, key in SPECIAL.items():
        number = getattr(tokenizer, name, None)
        if isinstance(number, int):
            entries[f"ggml.{key}"] = Value(number, GGUFValueType.UINT32)
    ids = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    entries["ggml.add_bos_token"] = Value(bos is not None and ids[0] == bos, GGUFValueType.BOOL)
    entries["ggml.add_eos_token"] = Value(eos is not None and len(ids) > 1 and ids[-1] == eos, GGUFValueType.BOOL)
    templates = tokenizer.chat_template or {}
    for name, template in ({"default": templates} if isinstance(templates, str) else templates).items():
        if not template:
            continue
        entries["chat_template" if name == "default" else f"chat_template.{name}"] = Value(
            template, GGUFValueType.STRING
        )
    return entries
