"""Answers to a task's questions on disk: questions once per experiment, a model's answers as columns for each run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swm.disk.files import write_json
from swm.disk.names import SHIPPED
from swm.errors import ExperimentError
from swm.workspace.reading import read_file

Answers = Sequence[Mapping[str, Any]]  # as `swm.evaluation.task_score.TaskScore.answers`
ABOUT_QUESTION = ("id", "question", "choices", "answer", "bytes")


def read_answers(questions_folder: Path, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answers behind a task's columns in documents.json.

    The bundled examples share one folder of questions, where copies of them find theirs, too.

    Raises:
        ExperimentError: if the file of its questions is missing or damaged.
        ValueError: if it does not match the columns.
    """
    name = f"{columns['questions']}.json"
    own, shared = questions_folder / name, SHIPPED / "questions" / name
    file = shared if shared.is_file() and not own.is_file() else own
    try:
        return unpacked(read_file(file, "questions")["questions"], columns)
    except ValueError as error:
        raise ValueError(f"it does not match {file} ({error})") from None


def save_answers(questions_folder: Path, task: str, answers: Answers) -> dict[str, Any]:
    """Write the questions, unless another run has already done so; returns the columns for documents.json."""
    questions, columns = packed(answers)
    file = questions_folder / f"{columns['questions']}.json"
    try:
        written = read_file(file, "questions")["questions"] == questions
    except ExperimentError:  # missing or damaged
        written = False
    if not written:
        write_json(file, {"task": task, "questions": questions})
    return columns


def packed(answers: Answers) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The questions, and the columns with what the model answered; `unpacked` gives the answers back.

    The columns name the questions by a hash of their content: a file of questions never changes, so runs share it.
    """
    questions = [
        {name: row[name] for name in (*ABOUT_QUESTION, *(() if "choices" in row else ("right",))) if name in row}
        for row in answers
    ]
    digest = hashlib.sha256(json.dumps(questions, sort_keys=True).encode()).hexdigest()
    return questions, {
        "questions": digest[:16],
        "correct": [int(row["correct"]) if row["correct"] in (0, 1) else row["correct"] for row in answers],
        "picked": [_picked(row) for row in answers],
        "log_likelihoods": [list(row.get("log_likelihoods", ())) for row in answers],
    }


def _picked(row: Mapping[str, Any]) -> int | str:
    choices = list(row.get("choices", ()))
    return choices.index(row["picked"]) if row["picked"] in choices else row["picked"]


def unpacked(questions: Answers, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answers that `packed` was given; raises ValueError if questions and columns do not match."""
    lists = [columns[name] for name in ("correct", "picked", "log_likelihoods")]
    if any(len(values) != len(questions) for values in lists):
        raise ValueError(f"{len(questions)} questions, but {', '.join(str(len(values)) for values in lists)} answers")
    return [_row(*row) for row in zip(questions, *lists, strict=True)]


def _row(question: Mapping[str, Any], correct: float, picked: int | str, likelihoods: list[float]) -> dict[str, Any]:
    row = {**question, "correct": float(correct), "picked": picked}
    choices = question.get("choices")
    if choices is None:
        return row
    if len(likelihoods) != len(choices) or (isinstance(picked, int) and not 0 <= picked < len(choices)):
        raise ValueError(f"a question has {len(choices)} choices, its answer another number")
    if isinstance(picked, int):
        row["picked"] = choices[picked]
    return {**row, "right": choices[question["answer"]], "log_likelihoods": likelihoods}
