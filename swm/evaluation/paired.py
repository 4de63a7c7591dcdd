"""Compares two models on the same documents: is the difference significant, and which answers changed? No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

NOISE = 0.05
FEWEST_DOCUMENTS = 30  # per task; no verdict with fewer
VERDICTS = UNDECIDED, BETTER, WORSE, TOO_FEW = ("not significant", "better", "worse", "too few documents")
AVERAGE = "average"
SCORES = ACCURACY, CHOICE_LOGPROB, BITS_PER_BYTE = ("accuracy", "choice_logprob", "bits_per_byte")
LOWER_IS_BETTER = (BITS_PER_BYTE,)
Z_95 = 1.959963984540054  # normal quantile for a two-sided 95 % interval


@dataclass(frozen=True)
class Paired:
    """Difference of two models on a task: second minus first.

    Attributes:
        difference: of the mean scores: shares of correct answers (-1 to 1), nats, or bits per byte; `low` and `high`
            are its 95 % interval over documents, which contains 0 if and only if `p_value` is 0.05 or more.
        p_value: two-sided, for the hypothesis of no difference: exact McNemar test for a task's accuracy, t test for a
            task's continuous score, normal for the average.
        gained, lost: documents with a higher or lower score in the second model; for accuracy, those that only the
            second or only the first model answers correctly.
        fewest: documents of the task, or of the smallest task in the average.
        score: one of SCORES.
    """

    task: str
    documents: int
    difference: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int
    fewest: int
    score: str = ACCURACY

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if self.fewest < FEWEST_DOCUMENTS:
            return TOO_FEW
        if self.p_value >= NOISE:
            return UNDECIDED
        return BETTER if (self.difference > 0) != (self.score in LOWER_IS_BETTER) else WORSE


def paired(
    first: dict[str, Any], second: dict[str, Any], score: str = ACCURACY, tasks: Collection[str] | None = None
) -> list[Paired]:
    """One comparison for each task that both models answered, then their average.

    Args:
        first, second: answers as from `Run.documents`: by task, rows with `id` and `correct`, and `log_likelihoods` for
            continuous scores; or as from `scored`. Documents that only one of them saw, or that have no such score, are
            ignored.
        tasks: only these.

    Source: McNemar 1947, exact form (binomial on the documents that changed), with the matching exact interval (Clopper
    and Pearson 1934, of the share gained among the changed; scipy). Continuous scores, and answers averaged over
    several runs, get a t interval and t test of the mean (Miller 2024, arXiv:2411.00640). The average treats tasks as
    independent and normal; for accuracy, each task's standard error adds half a document to each kind of change (Bonett
    and Price 2012), so that it is never 0.
    """
    comparisons, errors = [], []
    for task, changes in _changes_by_task(first, second, score, tasks):
        gained, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        n, mean = len(changes), math.fsum(changes) / len(changes)
        if score != ACCURACY:
            errors.append(math.sqrt(math.fsum((change - mean) ** 2 for change in changes) / (n - 1) / n))
            low, high, p_value = student(changes)
        else:
            errors.append(_error(changes, gained, lost))
            low, high, p_value = _exact(gained, lost, n) if _whole(changes) else _by_t(changes)
        comparisons.append(Paired(task, n, mean, low, high, p_value, gained, lost, n, score))
    if len(comparisons) > 1:
        comparisons.append(_average(comparisons, math.sqrt(math.fsum(e**2 for e in errors)) / len(comparisons)))
    return comparisons


def _average(comparisons: Sequence[Paired], error: float) -> Paired:
    mean = math.fsum(task.difference for task in comparisons) / len(comparisons)
    p_value = math.erfc(abs(mean) / error / math.sqrt(2)) if error else float(mean == 0)
    documents, gained, lost = (sum(getattr(t, name) for t in comparisons) for name in ("documents", "gained", "lost"))
    low, high, fewest = mean - Z_95 * error, mean + Z_95 * error, min(task.fewest for task in comparisons)
    return Paired(AVERAGE, documents, mean, low, high, p_value, gained, lost, fewest, comparisons[0].score)


def mean_difference(
    first: dict[str, Any], second: dict[str, Any], score: str = ACCURACY, tasks: Collection[str] | None = None
) -> float:
    """The difference of the last comparison of `paired`: of the tasks' average, or of the only task.

    Raises:
        ValueError: if no task can be compared.
    """
    means = [math.fsum(changes) / len(changes) for _, changes in _changes_by_task(first, second, score, tasks)]
    if not means:
        raise ValueError("no task was answered by both models")
    return math.fsum(means) / len(means)


def _changes_by_task(
    first: dict[str, Any], second: dict[str, Any], score: str, tasks: Collection[str] | None
) -> Iterator[tuple[str, list[float]]]:
    """Each task with the changes of its documents' scores; without tasks that have too few of them."""
    for task, answers in first.get("tasks", {}).items():
        if tasks is not None and task not in tasks:
            continue
        one, other = (_by_id(side, score) for side in (answers, second.get("tasks", {}).get(task, [])))
        # means over runs carry rounding errors
        changes = [round(other[name] - value, 9) for name, value in one.items() if name in other]
        if len(changes) > (score != ACCURACY):
            yield task, changes


def value_of(row: dict[str, Any], score: str) -> float | None:
    """A document's score; None if the model's answer to it has no such score."""
    if score == ACCURACY:
        return float(row["correct"])
    if not row.get("log_likelihoods"):
        return None
    if score == CHOICE_LOGPROB:
        return choice_logprob(row["log_likelihoods"], row["answer"])
    return bits_per_byte(row["log_likelihoods"][row["answer"]], row["bytes"]) if row.get("bytes") else None


def scored(answers: dict[str, Any]) -> dict[str, Any]:
    """Under `tasks`, by task and score, the value of each document by its `id`: what `paired` and `mean_answers` take
    as well, so that answers which are compared many times are scored once."""
    return {
        "tasks": {
            task: {score: _by_id(rows, score) for score in SCORES} for task, rows in answers.get("tasks", {}).items()
        }
    }


def _by_id(answers: Any, score: str) -> dict[Any, float]:
    """The value of each document of a task that has one: of rows, or as `scored` found it."""
    if isinstance(answers, dict):
        return cast(dict[Any, float], answers[score])
    return {row["id"]: value for row in answers if (value := value_of(row, score)) is not None}


def log_perplexity_ratio(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, float, float]:
    """Logarithm of how many times the first model's perplexity of a text the second's is, and its 95 % interval.

    Args:
        first, second: of the same text, as from `evaluation.perplexity`.

    Both need two segments or more: one says nothing about others, see `has_interval`.

    Returns:
        Value, low, high. The interval is Student's, on the differences of the segments' losses. Older results lack the
        losses, see `has_losses`: there it is that of two independent perplexities, which is wider.
    """
    if has_losses(first, second):
        changes = [b - a for a, b in zip(first["losses"], second["losses"], strict=True)]
        low, high, _ = student(changes)
        return math.fsum(changes) / len(changes), low, high
    value = math.log(second["value"] / first["value"])
    one, other = ({end: math.log(entry[end] / entry["value"]) for end in ("low", "high")} for entry in (first, second))
    return value, value - math.hypot(other["low"], one["high"]), value + math.hypot(other["high"], one["low"])


def has_interval(perplexity: Mapping[str, Any]) -> bool:
    """Whether a perplexity is of two segments of text or more; older results give one an interval without width."""
    return "low" in perplexity and perplexity.get("texts") != 1


def has_losses(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two perplexities have the losses of the same number of segments, and more than one."""
    return len(first.get("losses", ())) == len(second.get("losses", ())) > 1


def mean_perplexity(entries: Sequence[Mapping[str, Any]]) -> Any:
    """The perplexity of several runs on one text: the mean of each segment's loss, so the geometric mean.

    Args:
        entries: as from `evaluation.perplexity`. The interval of the result is over segments alone.
    """
    if len(entries) == 1:
        return entries[0]
    rows = [entry.get("losses", []) for entry in entries]
    losses = zip(*rows, strict=True) if len({len(row) for row in rows}) == 1 else ()
    ends = [end for end in ("value", "low", "high") if all(end in entry for entry in entries)]
    logs = {end: math.fsum(math.log(entry[end]) for entry in entries) / len(entries) for end in ends}
    return {
        **entries[0],
        **{end: math.exp(value) for end, value in logs.items()},
        "losses": [math.fsum(values) / len(values) for values in losses],
    }


def mean_answers(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of several runs as from `scored`, averaged for each document; the answers of a single run unchanged.

    Args:
        runs: as for `paired`; documents that not every run saw are ignored.
    """
    if len(runs) == 1:
        return runs[0]
    tasks = {}
    for task in runs[0].get("tasks", {}):
        answers = [run.get("tasks", {}).get(task, []) for run in runs]
        tasks[task] = {score: _mean([_by_id(each, score) for each in answers]) for score in SCORES}
    return {"tasks": tasks}


def _mean(values: Sequence[dict[Any, float]]) -> dict[Any, float]:
    """The mean of the documents that all of them have."""
    shared = [name for name in values[0] if all(name in each for each in values[1:])]
    return {name: math.fsum(each[name] for each in values) / len(values) for name in shared}


def _whole(changes: Sequence[float]) -> bool:
    return all(change in (-1.0, 0.0, 1.0) for change in changes)


def _error(changes: Sequence[float], gained: int, lost: int) -> float:
    """Standard error of the mean change."""
    n = len(changes)
    if _whole(changes):
        return math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    mean = math.fsum(changes) / n
    return math.sqrt(math.fsum((change - mean) ** 2 for change in changes) / max(1, n - 1) / n) or 1 / (n + 2)


def _exact(gained: int, lost: int, documents: int) -> tuple[float, float, float]:
    """Interval of the difference and p-value, given how many documents changed."""
    from scipy.special import bdtr, betaincinv

    if not (changed := gained + lost):
        # Nothing changed, so the direction is unknown: use the exact interval of a share that was never observed.
        most = 1 - (NOISE / 2) ** (1 / documents)
        return -most, most, 1.0
    low = betaincinv(gained, lost + 1, NOISE / 2) if gained else 0.0
    high = betaincinv(gained + 1, lost, 1 - NOISE / 2) if lost else 1.0
    low, high = (float((2 * end - 1) * changed / documents) for end in (low, high))
    return low, high, min(1.0, float(2 * bdtr(min(gained, lost), changed, 0.5)))


def _by_t(changes: Sequence[float]) -> tuple[float, float, float]:
    if len(set(changes)) < 2:  # no spread, or a single document: no conclusion possible
        return -1.0, 1.0, 1.0
    low, high, p_value = student(changes)
    return max(-1.0, low), min(1.0, high), p_value


def flipped(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """Documents that one model answers correctly and the other not: task, question, correct answer, both answers."""
    return [
        {
            "task": task,
            "verdict": "gained" if b["correct"] > a["correct"] else "lost",
            "question": a["question"],
            "right": a["right"],
            "first": a["picked"],
            "second": b["picked"],
        }
        for task, rows in first.get("tasks", {}).items()
        for a, b in _pairs(rows, second.get("tasks", {}).get(task, []))
        if a["correct"] != b["correct"]
    ]


def _pairs(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    by_id = {row["id"]: row for row in second}
    return [(row, by_id[row["id"]]) for row in first if row["id"] in by_id]


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


def relative_rise(before: Sequence[float], after: Sequence[float], among: int = 1) -> dict[str, float]:
    """By how much a mean rose, as a share of what it was, with its 95 % interval over the documents of both.

    A ratio estimate: the interval is Student's, of what each document deviates from the common rise, so that the mean
    before is uncertain, too (Cochran 1977, section 6.4).

    Args:
        before, after: positive values of the same two or more documents, such as bits per byte.
        among: how many such intervals shall all be right with 95 % (Bonferroni).

    Returns:
        `value`, `low`, `high`, and `documents`.
    """
    n, mean = len(before), math.fsum(before) / len(before)
    rise = math.fsum(after) / n / mean - 1
    low, high, _ = student([rise + (b - (1 + rise) * a) / mean for a, b in zip(before, after, strict=True)], among)
    return {"value": rise, "low": low, "high": high, "documents": n}


def student(values: Sequence[float], among: int = 1) -> tuple[float, float, float]:
    """Student's 95 % interval of the mean of two or more values, and the p-value of the t test against a mean of 0.

    Args:
        among: as for `relative_rise`.
    """
    from scipy.special import stdtr, stdtrit  # scipy.stats would take a second to import

    n, mean = len(values), math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = float(stdtrit(n - 1, 1 - 0.025 / among)) * error
    return mean - reach, mean + reach, float(2 * stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)


def are_labels(choices: Sequence[Sequence[str]]) -> bool:
    """Whether all questions have the same choices, as in yes and no, or A to D.

    Then the likelihood of the right answer's words mostly measures how often the model says them at all. A single
    question cannot tell, and counts as having labels.
    """
    return len({tuple(texts) for texts in choices}) < 2
