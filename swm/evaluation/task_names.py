"""The zero-shot tasks by name, and the limit on documents. Imports no lm_eval, for pages and command line."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from swm.checked import Between
from swm.errors import SettingsError

# Metric of each task in the paper's released evaluation: accuracy, or for answers of different lengths "acc_norm":
# accuracy with the log-likelihood divided by the answer's characters (as in lm-eval 0.4.13; some papers say bytes).
PAPER_METRICS = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}


# Score of random guessing, for results of releases that did not keep it; a few ARC questions have 3 or 5 choices.
CHANCE = {"boolq": 0.5, "piqa": 0.5, "hellaswag": 0.25, "winogrande": 0.5} | dict.fromkeys(
    ("arc_easy", "arc_challenge", "openbookqa"), 0.25
)
TASKS = tuple(PAPER_METRICS)
MOST_DOCUMENTS = 10**9  # upper limit per task


def parse_tasks(text: str) -> tuple[str, ...]:
    """Task names from a comma-separated list; "all" means the paper's seven tasks, "none" perplexity alone."""
    if text.strip() in ("all", "none"):
        return TASKS if text.strip() == "all" else ()
    tasks = tuple(filter(None, (part.strip() for part in text.split(","))))
    if not tasks:
        raise SettingsError("No tasks given. Use all, or a comma-separated list such as boolq,piqa.")
    return tasks


def _limit(value: Any) -> Any:
    if not isinstance(value, str):
        return 0 if value is None else value  # a file says none
    return None if value == "none" else value


Limit = Annotated[Annotated[int, Between(1, MOST_DOCUMENTS)] | None, BeforeValidator(_limit)]
"""Documents per task; for all of them, "none" in a file and None in memory."""
