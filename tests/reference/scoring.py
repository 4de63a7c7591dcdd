"""Scores by one plain forward pass at a time: no batches, no padding, no cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Difference:
    """Mean of second - first over the same questions, and its standard error (sample deviation / sqrt(n))."""

    mean: float
    standard_error: float


@torch.no_grad()
def token_log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log-probability of each token but the first, given all before it: shape (length - 1,), float64, natural log."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0].double()
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return torch.stack([log_probabilities[place - 1, ids[place]] for place in range(1, len(ids))])


def text_loss(model: PreTrainedModel, ids: Tensor) -> float:
    """Mean negative log-likelihood of a text's tokens, the first one excepted."""
    return -float(token_log_probabilities(model, ids).mean())


def perplexity(model: PreTrainedModel, texts: Sequence[Tensor] | Tensor) -> float:
    """exp of the mean over texts of `text_loss`; each text weighs the same, however long."""
    return math.exp(math.fsum(text_loss(model, ids) for ids in texts) / len(texts))


def continuation_log_likelihood(model: PreTrainedModel, context: Sequence[int], continuation: Sequence[int]) -> float:
    """Sum of the log-probabilities of the continuation's tokens after the context (which needs one token or more)."""
    ids = torch.tensor([*context, *continuation])
    return float(token_log_probabilities(model, ids)[-len(continuation) :].sum())


def choice_log_likelihoods(
    model: PreTrainedModel, context: Sequence[int], choices: Sequence[Sequence[int]]
) -> list[float]:
    """`continuation_log_likelihood` of every choice."""
    return [continuation_log_likelihood(model, context, choice) for choice in choices]


def right_answers(log_likelihoods: Sequence[Sequence[float]], answers: Sequence[int]) -> list[bool]:
    """Whether the likeliest choice is the answer, for each question; of equal choices the first counts."""
    return [
        max(range(len(choices)), key=choices.__getitem__) == answer
        for choices, answer in zip(log_likelihoods, answers, strict=True)
    ]


def per_character(
    log_likelihoods: Sequence[Sequence[float]], choice_texts: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Each choice's log-likelihood divided by its characters. Source: lm-eval 0.4.13's acc_norm (FACTS section 8)."""
    return [
        [value / len(text) for value, text in zip(values, texts, strict=True)]
        for values, texts in zip(log_likelihoods, choice_texts, strict=True)
    ]


def accuracy(log_likelihoods: Sequence[Sequence[float]], answers: Sequence[int]) -> float:
    """Share of questions whose likeliest choice is the answer."""
    return sum(right_answers(log_likelihoods, answers)) / len(answers)


def accuracy_normalised(
    log_likelihoods: Sequence[Sequence[float]], choice_texts: Sequence[Sequence[str]], answers: Sequence[int]
) -> float:
    """acc_norm: `accuracy` of the log-likelihoods per character."""
    return accuracy(per_character(log_likelihoods, choice_texts), answers)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """How much better `second` is than `first` on the same questions (two or more)."""
    differences = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    count = len(differences)
    mean = math.fsum(differences) / count
    variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
    return Difference(mean, math.sqrt(variance / count))


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided p: how likely heads and tails of fair coins, one per question only one got right, are as uneven."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    coins, gap = only_first + only_second, abs(only_first - only_second)
    as_uneven = sum(math.comb(coins, heads) for heads in range(coins + 1) if abs(heads - (coins - heads)) >= gap)
    return as_uneven / 2**coins
