"""The bundled documents of the zero-shot tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swm.errors import TextError

if TYPE_CHECKING:
    from datasets import Dataset
from swm.texts.bundled import bundled_dataset

TASK_DATA = {
    "boolq": "boolq/none/validation",
    "piqa": "piqa/plain_text/validation",
    "hellaswag": "hellaswag/none/validation",
    "winogrande": "winogrande/winogrande_xl/validation",
    "arc_easy": "ai2_arc/ARC-Easy/validation",
    "arc_challenge": "ai2_arc/ARC-Challenge/validation",
    "openbookqa": "openbookqa/main/validation",
}


def task_dataset(task: str, limit: int | None = None) -> Dataset:
    """The bundled validation split of one of the seven zero-shot tasks, or its first `limit` documents.

    In memory, because a data set on disk writes its cache files next to itself: here, into the installed package.
    """
    import datasets

    split = bundled_dataset(TASK_DATA[task])
    return datasets.Dataset.from_list(split.select(range(min(limit or len(split), len(split)))).to_list())


def task_prompts(task: str) -> list[str]:
    """A task's questions without their answers: for measuring similarity, never for calibration."""
    if task not in TASK_DATA:
        raise TextError(f"No prompts are bundled for task '{task[:80]}'. Choose one of: {', '.join(TASK_DATA)}.")
    columns = ("passage", "ctx", "sentence", "question", "question_stem", "goal")
    return ["\n".join(row[column] for column in columns if column in row) for row in bundled_dataset(TASK_DATA[task])]
