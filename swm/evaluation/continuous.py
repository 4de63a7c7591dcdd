"""Continuous scores of a question: how likely the model finds the right answer, beside whether it picks it. No torch.

Accuracy keeps one bit of each answer. These keep the log-likelihoods behind it, so that they tell models apart with far
fewer questions (DataDecide, arXiv:2504.11393; Signal and Noise, arXiv:2508.13144).
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def choice_logprob(log_likelihoods: Sequence[float], answer: int) -> float:
    """Log-probability of the right answer among the choices: l_y - logsumexp(l), in nats, at most 0.

    Args:
        log_likelihoods: summed log-likelihood of each choice, in nats.
        answer: index of the right one.
    """
    most = max(log_likelihoods)
    return log_likelihoods[answer] - most - math.log(math.fsum(math.exp(each - most) for each in log_likelihoods))


def bits_per_byte(log_likelihood: float, size_bytes: int) -> float:
    """Bits that the model needs for each byte of the right answer: -l_y / (bytes ln 2). Lower is better.

    Measures language on answers, not choosing between them.
    """
    return -log_likelihood / (size_bytes * math.log(2))


def mean_interval(values: Sequence[float]) -> dict[str, float] | None:
    """The mean of independent values, with Student's 95 % interval; None for fewer than two values."""
    if len(values) < 2:
        return None
    low, high, _ = student(values)
    return {"value": math.fsum(values) / len(values), "low": low, "high": high}


def student(values: Sequence[float]) -> tuple[float, float, float]:
    """Student's 95 % interval of the mean of two or more values, and the p-value of the t test against a mean of 0."""
    from scipy.special import stdtr, stdtrit  # scipy.stats would take a second to import

    n, mean = len(values), math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = float(stdtrit(n - 1, 0.975)) * error
    return mean - reach, mean + reach, float(2 * stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)


def are_labels(choices: Sequence[Sequence[str]]) -> bool:
    """Whether all questions have the same choices, as in yes and no, or A to D.

    Then the likelihood of the right answer's words mostly measures how often the model says them at all. A single
    question cannot tell, and counts as having labels.
    """
    return len({tuple(texts) for texts in choices}) < 2
