"""The score of one task, from lm-eval's results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from swm.errors import SettingsError
from swm.evaluation.paired import are_labels, bits_per_byte, choice_logprob, mean_interval
from swm.evaluation.task_names import PAPER_METRICS
from swm.texts.task_prompts import TASK_DATA

QUESTION_LETTERS = 400  # characters kept of a question and of an answer
LIKELIHOOD_DIGITS = 4  # decimals kept of a log-likelihood; float32 has no more


@dataclass(frozen=True)
class TaskScore:
    """One task's score.

    Attributes:
        value: share of documents answered correctly, 0 to 1.
        stderr: standard error of `value` over documents.
        chance: expected share for answers picked at random; None without choices.
        choice_logprob, bits_per_byte: mean over documents with its 95 % interval, see `swm.evaluation.paired`;
            None without choices, or of one document. Bits per byte are also None if the answers are labels.
        answers: for each document, in order: `id` (hash of the document), `correct` (1 or 0), `question` (its end),
            `right` and `picked` (the correct answer and the model's); with choices also `choices` (their texts),
            `answer` (index of the right one), `log_likelihoods` (of each, in nats), and `bytes` (of the right one;
            None if it is a label).
    """

    task: str
    value: float
    stderr: float
    metric: str
    documents: int
    version: str
    data: str
    chance: float | None
    choice_logprob: dict[str, float] | None
    bits_per_byte: dict[str, float] | None
    answers: tuple[dict[str, Any], ...]

    @property
    def correct(self) -> tuple[float, ...]:
        """1 or 0 for each document, in order."""
        return tuple(answer["correct"] for answer in self.answers)

    def entry(self) -> dict[str, Any]:
        """The task's entry in scores.json: everything but its name and the answers."""
        return {name: value for name, value in asdict(self).items() if name not in ("task", "answers")}


def score_of(task: str, results: dict[str, Any]) -> TaskScore:
    """A task's score from the results of lm-eval; raises SettingsError if the task has no accuracy."""
    # "metric,filter", as in "acc,none" or "exact_match,strict-match"
    keys = [key for key in results["results"][task] if "," in key and "_stderr" not in key]
    preferred = [PAPER_METRICS[task]] if task in PAPER_METRICS else ["acc_norm", "acc", "exact_match"]
    ordered = sorted(keys, key=lambda key: (*(key.split(",")[0] != name for name in preferred), keys.index(key)))
    metric, filter_name = ordered[0].split(",", 1)
    if not metric.startswith("acc") and metric != "exact_match":
        raise SettingsError(f"Task {task} reports {metric}, not accuracy. Choose another task.")
    samples = [sample for sample in results["samples"][task] if sample.get("filter", "none") == filter_name]
    samples.sort(key=lambda sample: sample["doc_id"])
    answers = _without_labels([_answer(sample, metric) for sample in samples])
    correct = [answer["correct"] for answer in answers]
    chosen = [answer for answer in answers if "choices" in answer]
    chance = math.fsum(1 / len(answer["choices"]) for answer in chosen) / len(chosen) if chosen else None
    certain = mean_interval([choice_logprob(answer["log_likelihoods"], answer["answer"]) for answer in chosen])
    bits = mean_interval(
        [
            bits_per_byte(answer["log_likelihoods"][answer["answer"]], answer["bytes"])
            for answer in chosen
            if answer["bytes"]
        ]
    )
    value = math.fsum(correct) / len(correct)
    stderr = standard_error(correct)
    data = "bundled" if task in TASK_DATA else "hub"
    version = str(results["versions"].get(task, ""))
    return TaskScore(task, value, stderr, metric, len(correct), version, data, chance, certain, bits, answers)


def _without_labels(answers: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The answers, without the length of the right one if all questions have the same choices."""
    chosen = [answer for answer in answers if "choices" in answer]
    if are_labels([answer["choices"] for answer in chosen]):
        return tuple({**answer, "bytes": None} if "choices" in answer else answer for answer in answers)
    return tuple(answers)


def standard_error(correct: Sequence[float]) -> float:
    """Standard error of the share of documents answered correctly: that of a sample mean, as in lm-eval.

    If all answers are correct, or all wrong, that would be 0 for any number of documents; then it is a quarter of the
    width of the 95 % interval of Wilson 1927.
    """
    n, value = len(correct), math.fsum(correct) / len(correct)
    if len(set(correct)) > 1:
        return math.sqrt(math.fsum((c - value) ** 2 for c in correct) / (n - 1) / n)
    z_squared = 1.96**2
    return z_squared / (n + z_squared) / 2 / 1.96


def _answer(sample: dict[str, Any], metric: str) -> dict[str, Any]:
    """A document's question, correct answer and the model's answer, from lm-eval's sample."""
    requests, target, responses = sample["arguments"], sample["target"], sample["filtered_resps"]
    question = str(requests[0][0])
    choices = [str(request[1]).strip() for request in requests]
    ending = ""
    if len({str(request[0]) for request in requests}) > 1:  # the choices are in the context, as in winogrande
        ending = choices[0]
        question = "…" + ending
        choices = [str(request[0]) for request in requests]
        target = sample["doc"].get("answer", target)
        target = int(target) - 1 if str(target).isdigit() else target
    entry = {
        "id": str(sample["doc_hash"])[:16],
        "correct": float(sample[metric]),
        "question": question[-QUESTION_LETTERS:],
    }
    if len(choices) < 2:
        return {**entry, "right": str(target)[:QUESTION_LETTERS], "picked": str(responses[0])[:QUESTION_LETTERS]}
    lengths = [max(1, len(choice)) if metric == "acc_norm" else 1 for choice in choices]  # a choice can be empty
    scores = [response[0] / length for response, length in zip(responses, lengths, strict=True)]
    picked = choices[scores.index(max(scores))]
    known = str(target).isdigit() and int(target) < len(choices)
    right = choices[int(target)] if known else str(target)
    entry |= {"right": right[:QUESTION_LETTERS], "picked": picked[:QUESTION_LETTERS]}
    if not known:
        return entry
    texts = {"choices": [choice[:QUESTION_LETTERS] for choice in choices], "answer": int(target)}
    log_likelihoods = [round(float(response[0]), LIKELIHOOD_DIGITS) for response in responses]
    return {**entry, **texts, "log_likelihoods": log_likelihoods, "bytes": len((ending or right).encode()) or None}
