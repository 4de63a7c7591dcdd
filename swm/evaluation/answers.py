"""What a model writes: an answer streamed with its speed, and the continuations of the sample prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.errors import SettingsError
from swm.evaluation.generation import check_generates, generated_tokens
from swm.models.decoder import context_length
from swm.settings import SAMPLE_PROMPTS, SAMPLE_TOKENS
from swm.texts.tokens import whole_characters


class Answer:
    """A greedy continuation of a prompt; once it has ended, `speed` says how fast it was generated."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer, self.speed = model, tokenizer, ""

    def pieces(self, prompt: str, new_tokens: int = 64) -> Iterator[str]:
        """The answer in pieces, as they are generated; stops at end-of-text.

        Raises:
            SettingsError: if the prompt is empty, or prompt and answer do not fit into the model's context.
        """
        times = [time.perf_counter()]
        yield from _pieces(self._model, self._tokenizer, prompt, new_tokens, times)
        if len(times) > 1:
            rest = times[-1] - times[1]
            rate = f", then {(len(times) - 2) / rest:.1f} tokens per second" if rest > 0 else ""
            self.speed = f"{len(times) - 1} tokens: the first after {times[1] - times[0]:.2f} s{rate}"


def sample_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Greedy continuations of SAMPLE_PROMPTS by up to SAMPLE_TOKENS tokens each.

    Raises:
        ModelError: if the model cannot generate.
    """
    check_generates(model, torch.tensor([[0, 0]]))
    return ["".join(Answer(model, tokenizer).pieces(prompt, SAMPLE_TOKENS)) for prompt in SAMPLE_PROMPTS]


def _pieces(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int, times: list[float]
) -> Iterator[str]:
    """Pieces of text; appends the time of each token to `times`."""
    ids = tokenizer(whole_characters(prompt), return_tensors="pt").input_ids
    context = context_length(model.config)
    if ids.shape[1] == 0:
        raise SettingsError("The prompt is empty. Write a few words to continue.")
    if not 1 <= new_tokens <= context - ids.shape[1]:
        raise SettingsError(
            f"{ids.shape[1]} prompt tokens and {new_tokens} new ones do not fit: the model's context is {context} "
            "tokens. Shorten the prompt or ask for fewer tokens (at least 1)."
        )
    yielded, answer = "", []
    with torch.inference_mode():
        for token in generated_tokens(model, ids, new_tokens):
            times.append(time.perf_counter())
            if int(token) == tokenizer.eos_token_id:
                return
            answer.append(int(token))
            text = str(tokenizer.decode(answer, skip_special_tokens=True))
            if text.endswith("\ufffd"):
                continue  # an incomplete character: wait for the rest
            yield text[len(yielded) :]
            yielded = text
