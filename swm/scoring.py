"""An lm-eval model that reads the text shared by a question's choices once. Its log-likelihoods equal HFLM's.

lm-eval's own class runs context and choice together, once for each choice, and computes the whole vocabulary at every
position. Here the tokens that the choices of one question share go through the model once and stay in its KV cache;
questions whose shared part has the same length go together. Only evaluate.py uses this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

Request = tuple[tuple[str, str], list[int], list[int]]
LENGTH_STEP = 8
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class _Choice:
    """One request: its tokens without the last, and the continuation to score."""

    index: int
    tokens: list[int]
    continuation: list[int]


@dataclass(frozen=True)
class _Question:
    """Choices that share their first `shared` tokens."""

    choices: list[_Choice]
    shared: int


class SharedContextLM(HFLM):
    """HFLM that computes the common beginning of neighbouring requests once.

    Args:
        on_progress: called with (requests done, requests in all).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=16, device=str(model.device))  # type: ignore[arg-type]
        self._on_progress = on_progress or (lambda done, total: None)
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        choices = [self._choice(index, request) for index, request in enumerate(requests)]
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        done = 0
        for batch in _batches(_questions(choices)):
            for choice, result in self._scored(batch):
                results[choice.index] = result
            done += sum(len(question.choices) for question in batch)
            self._on_progress(done, len(requests))
        for (strings, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", strings, result)
        return results

    def _choice(self, index: int, request: Request) -> _Choice:
        _, context, continuation = request
        # Cut from the left where it is too long, as HFLM does.
        return _Choice(index, (context + continuation)[-(self.max_length + 1) :][:-1], continuation)

    def _scored(self, batch: list[_Question]) -> Iterator[tuple[_Choice, tuple[float, bool]]]:
        shared = batch[0].shared
        rows = [(row, choice) for row, question in enumerate(batch) for choice in question.choices]
        extra: dict[str, Any] = {"use_cache": False}
        if shared:
            cache = DynamicCache(config=self.model.config)
            heads = [question.choices[0].tokens[:shared] for question in batch]
            self.model.base_model(input_ids=self._ids(heads), use_cache=True, **{self._cache_name: cache})
            cache.batch_select_indices(torch.tensor([row for row, _ in rows], device=self.device))
            extra = {"use_cache": True, self._cache_name: cache}
        tails = [choice.tokens[shared:] for _, choice in rows]
        logits = self.model(input_ids=self._ids(tails), **extra).logits
        for row, ((_, choice), tail) in enumerate(zip(rows, tails, strict=True)):
            yield choice, self._log_likelihood(logits[row, : len(tail)], choice.continuation)

    def _ids(self, rows: list[list[int]]) -> Tensor:
        """Padded on the right: a causal model's real tokens never see what comes after them."""
        longest = max(map(len, rows))
        return torch.tensor([row + [row[-1]] * (longest - len(row)) for row in rows], device=self.device)

    def _log_likelihood(self, logits: Tensor, continuation: list[int]) -> tuple[float, bool]:
        target = torch.tensor(continuation, device=logits.device)
        log_probabilities = F.log_softmax(logits[-len(continuation) :], dim=-1, dtype=self.softmax_dtype)
        greedy = bool((log_probabilities.argmax(-1) == target).all())
        return float(log_probabilities.gather(1, target[:, None]).sum()), greedy


def _questions(choices: list[_Choice]) -> Iterator[_Question]:
    """Neighbouring requests that share at least half of the shorter one, as the choices of one question do."""
    group: list[_Choice] = []
    shared = 0
    for choice in choices:
        common = _common(group[0].tokens, choice.tokens) if group else 0
        if group and 2 * common >= min(len(group[0].tokens), len(choice.tokens)):
            group.append(choice)
            shared = min(shared, common)
            continue
        if group:
            yield _question(group, shared)
        group, shared = [choice], len(choice.tokens)
    if group:
        yield _question(group, shared)


def _question(group: list[_Choice], shared: int) -> _Question:
    # Every position that predicts a token of a continuation has to be in the part that is run for each choice, and
    # the shared part is rounded down so that questions of nearly the same length can go together.
    first_scored = min(len(choice.tokens) - len(choice.continuation) for choice in group)
    usable = max(0, min(shared, first_scored)) if len(group) > 1 else 0
    return _Question(group, usable - usable % LENGTH_STEP)


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _batches(questions: Iterator[_Question]) -> Iterator[list[_Question]]:
    """Questions with equal shared length, longest first, so many that neither run has more than BATCH_TOKENS tokens."""
    batch: list[_Question] = []
    ordered = sorted(questions, key=lambda q: (-q.shared, -max(len(choice.tokens) for choice in q.choices)))
    for question in ordered:
        grown = [*batch, question]
        longest = max(len(choice.tokens) - q.shared for q in grown for choice in q.choices)
        tail_tokens = longest * sum(len(q.choices) for q in grown)
        head_tokens = question.shared * len(grown)
        if batch and (batch[0].shared != question.shared or max(tail_tokens, head_tokens) > BATCH_TOKENS):
            yield batch
            grown = [question]
        batch = grown
    if batch:
        yield batch
