"""Recovery examples whose answers the original model writes: it is to keep its own style, not to learn another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from swm.errors import TextError
from swm.models.decoder import context_length
from swm.models.save import quiet_transformers
from swm.settings import RecoverySettings
from swm.texts.example import Example
from swm.texts.tokens import end_token, leading_tokens, token_ids

SHORTEST, LONGEST = 16, 128  # tokens of an answer, between them as many as the given one has; half a short context
BATCH_TOKENS = 8192  # of prompts and answers that are written together, with padding
LIKE = 96  # tokens that prompts may differ by and still be sorted by the length of their answers


def own_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: RecoverySettings,
    store: Path,
    on_batch: Callable[[int, int], None],
    fast: bool = False,
) -> list[Example]:
    """The examples that training needs, in their order, with the model's own greedy answers to their prompts.

    Source: self-data distillation, arXiv:2410.09982. An example without a prompt, as of plain text, stays as it is; one
    that the model answers with nothing is left out.

    Args:
        model: the original.
        store: a `.jsonl` file of answers that this model gave before; new ones are added as they come, so that a
            cancelled recovery and other runs go on with them.
        on_batch: called with (answers done, all) before each batch; may raise Cancelled.
        fast: prompts are read in bfloat16; writing a token at a time is slower in it.

    Raises:
        TextError: if no example has a prompt.
    """
    needed = list(needed_examples(tokenizer, examples, settings))
    check_prompts(needed)
    context = context_length(model.config)
    longest = min(LONGEST, context // 2)
    responses = token_ids(tokenizer, [example.response for example in needed])
    lengths = [min(max(len(ids), SHORTEST), longest) for ids in responses]
    keys = [_key(example.prompt, length) for example, length in zip(needed, lengths, strict=True)]
    known = _read(store)
    asked = {key: place for place, key in enumerate(keys) if needed[place].prompt and key not in known}
    prompts = _prompt_ids(tokenizer, {place: needed[place].prompt for place in asked.values()}, context - longest)
    done = 0
    for batch in _batches(prompts, lengths):
        on_batch(done, len(prompts))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=fast):
            answers = _greedy(
                model, tokenizer, [prompts[place] for place in batch], [lengths[place] for place in batch]
            )
        fresh = {keys[place]: answer for place, answer in zip(batch, answers, strict=True)}
        _add(store, fresh)
        known |= fresh
        done += len(batch)
    answered = (
        Example(example.prompt, known.get(key, "")) if example.prompt else example
        for example, key in zip(needed, keys, strict=True)
    )
    return [example for example in answered if example.response.strip()]


def check_prompts(examples: Sequence[Example]) -> None:
    """Raise TextError if there is no prompt for the original model to answer."""
    if not any(example.prompt for example in examples):
        raise TextError(
            "The recovery text has no prompts that the original model could answer. Choose --answers given, or a "
            "text of prompts and responses."
        )


def needed_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], settings: RecoverySettings
) -> Iterator[Example]:
    """As many of the first examples as the held-out sequences and all steps read once; answers may end early."""
    rows = settings.held_out + settings.steps * settings.batch * settings.accumulate
    if settings.loss_on == "response":  # one example in a sequence
        yield from examples[:rows]
        return
    left = rows * settings.length
    prompts = token_ids(tokenizer, [example.prompt for example in examples])
    for example, prompt in zip(examples, prompts, strict=True):
        if left <= 0:
            return
        left -= len(prompt) + 1 if prompt else len(token_ids(tokenizer, [example.response])[0]) + 1
        yield example


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Mapping[int, str], most: int) -> dict[int, list[int]]:
    """The tokens of each prompt by its place, the last ones of a long prompt; without prompts of no tokens."""
    prefix = leading_tokens(tokenizer)
    each = zip(prompts, token_ids(tokenizer, list(prompts.values())), strict=True)
    return {place: [*prefix, *ids[-max(1, most - len(prefix)) :]] for place, ids in each if ids}


def _batches(prompts: Mapping[int, Sequence[int]], lengths: Sequence[int]) -> Iterator[list[int]]:
    """The places of prompts to answer together: of like lengths, and so are their answers, for little padding."""
    batch, widest, longest = list[int](), 0, 0
    for place in sorted(prompts, key=lambda place: (len(prompts[place]) // LIKE, lengths[place])):
        wider, longer = max(widest, len(prompts[place])), max(longest, lengths[place])
        if batch and (len(batch) + 1) * (wider + longer) > BATCH_TOKENS:
            yield batch
            batch, wider, longer = [], len(prompts[place]), lengths[place]
        batch.append(place)
        widest, longest = wider, longer
    if batch:
        yield batch


@torch.inference_mode()
def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], lengths: Sequence[int]
) -> list[str]:
    """Greedy continuations up to the end of text, of at most so many tokens each; padded on the left."""
    end, width = end_token(tokenizer), max(map(len, rows))
    ids = torch.tensor([[end] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    generate, usual = cast("Any", model.generate), model.generation_config
    greedy: dict[str, Any] = {
        "max_new_tokens": max(lengths),
        "do_sample": False,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    greedy |= {"attention_mask": mask.to(model.device), "logits_processor": [_ReadThenWrite()]}
    model.generation_config = GenerationConfig()  # the model's own may ask for penalties and forbidden words
    try:
        with quiet_transformers():
            found = generate(ids.to(model.device), **greedy)
    finally:
        model.generation_config = usual
    answers = []
    for row, length in zip(found[:, width:].tolist(), lengths, strict=True):
        row = row[:length]
        answers.append(str(tokenizer.decode(row[: row.index(end)] if end in row else row)))
    return answers


class _ReadThenWrite(LogitsProcessor):
    """Changes no logits: ends autocast once the prompts are read."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        torch.set_autocast_enabled(scores.device.type, False)
        return scores


def _key(prompt: str, length: int) -> str:
    return hashlib.sha256(f"{length} {prompt}".encode("utf-8", "replace")).hexdigest()[:32]


def _read(store: Path) -> dict[str, str]:
    """All answers in the file; a line that a killed process cut off is left out."""
    answers = {}
    for line in store.read_text(encoding="utf-8", errors="replace").splitlines() if store.is_file() else []:
        try:
            entry = json.loads(line)
            answers[str(entry["key"])] = str(entry["answer"])
        except (ValueError, TypeError, KeyError):
            continue
    return answers


def _add(store: Path, answers: dict[str, str]) -> None:
    """Append the answers in one write, so that jobs at the same time do not mix their lines.

    Each line begins with a line break: the one before it may have been cut off.
    """
    lines = "".join("\n" + json.dumps({"key": key, "answer": answer}) for key, answer in answers.items())
    store.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(store, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, lines.encode())
    finally:
        os.close(file)
