"""The zero-shot tasks by name, and how many documents of each. No lm_eval: pages and command line name them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from swm.checked import Between
from swm.errors import SettingsError

# Metric of each task as the released evaluation takes it: accuracy, or accuracy with the log-likelihood divided by the
# characters of the answer ("acc_norm", so in lm-eval 0.4.13; some papers say bytes) where answers differ in length.
PAPER_METRICS = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}


TASKS = tuple(PAPER_METRICS)


MOST_DOCUMENTS = 10**9  # of a task


def parse_tasks(text: str) -> tuple[str, ...]:
    """Task names from a comma-separated list; "all" is the seven of the paper."""
    if text.strip() == "all":
        return TASKS
    tasks = tuple(filter(None, (part.strip() for part in text.split(","))))
    if not tasks:
        raise SettingsError("No task is named. Write all, or names with commas between, as in boolq,piqa.")
    return tasks


def _limit(value: Any) -> Any:
    if not isinstance(value, str):
        return 0 if value is None else value  # a file says none
    return None if value == "none" else value


Limit = Annotated[Annotated[int, Between(1, MOST_DOCUMENTS)] | None, BeforeValidator(_limit)]
"""Documents of each task; "none" in a file, None in memory, for all."""
