"""Zero-shot tasks, through lm-eval."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.errors import SettingsError, first_line
from swm.evaluation.task_names import MOST_DOCUMENTS, TASKS
from swm.evaluation.task_score import TaskScore, score_of
from swm.models.processes import gathered
from swm.progress import Progress
from swm.texts.task_prompts import TASK_DATA, task_dataset
from swm.workspace.estimate import tokens_of

# Folders of lm-eval's task definitions.
TASK_FOLDERS = {
    "boolq": "super_glue/boolq",
    "piqa": "piqa",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "openbookqa": "openbookqa",
}


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] = TASKS,
    limit: int | None = 100,
    on_progress: Progress | None = None,
) -> list[TaskScore]:
    """Zero-shot scores through lm-eval's own tasks and metrics.

    Args:
        tasks: names that lm-eval knows. The seven of PAPER_METRICS use the bundled data, others the hub.
        limit: use only the first documents of each task, this many; None for all.

    Raises:
        SettingsError: if a task is unknown, or its data cannot be loaded.
    """
    from lm_eval import simple_evaluate

    from swm.evaluation.shared_context import SharedContextLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = check_request(tasks, limit)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    report = on_progress or (lambda done, total, text: None)
    lm: Any = SharedContextLM(model, tokenizer)
    scores = []
    ends = list(accumulate((tokens_of(name, limit) for name in tasks), initial=0))  # their times, for even progress
    for name, (start, end) in zip(tasks, pairwise(ends), strict=True):

        def requests_done(done: int, total: int, name: str = name, start: int = start, end: int = end) -> None:
            report(start + (end - start) * done // total, ends[-1], name)

        lm.on_progress = requests_done
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), _machine_not_asked():
            # lm-eval's own warnings and progress bars; everything that matters is in the scores.
            warnings.simplefilter("ignore")
            results: Any = simple_evaluate(
                model=lm,
                tasks=[_task(name, manager, limit)],
                task_manager=manager,
                num_fewshot=0,
                limit=limit,
                bootstrap_iters=0,
                random_seed=0,
                numpy_random_seed=1234,
                torch_random_seed=1234,
                fewshot_random_seed=1234,
            )
        scores += gathered([score_of(name, results)] if results else [])[:1]  # lm-eval gives results to one process
    return scores


@contextlib.contextmanager
def _machine_not_asked() -> Iterator[None]:
    """Stops lm-eval from running git and listing the machine's hardware for each task: slow, and git complains."""
    from lm_eval import evaluator

    names = [name for name in ("get_git_commit_hash", "add_env_info") if hasattr(evaluator, name)]
    originals = {name: getattr(evaluator, name) for name in names}
    try:
        for name in originals:
            setattr(evaluator, name, lambda *_: None)
        yield
    finally:
        for name, function in originals.items():
            setattr(evaluator, name, function)


def _task_manager(tasks: Sequence[str]) -> Any:
    """lm-eval's task index; for bundled tasks it covers only their folders, since indexing everything takes 10 s."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    if not all(task in TASK_FOLDERS for task in tasks):
        return _whole_index()
    root = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_defaults=False, include_path=sorted({str(root / TASK_FOLDERS[task]) for task in tasks}))


@cache
def _whole_index() -> Any:
    """lm-eval's index of all its tasks: some 10 seconds, so once in a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def check_request(tasks: Sequence[str], limit: int | None) -> Any:
    """lm-eval's task index, after checking the tasks and the limit; loads no model.

    Raises:
        SettingsError: if a task is unknown or measures perplexity, or the limit is out of range.
    """
    check_limit(limit)
    for task in tasks:
        if task not in TASK_FOLDERS and not _is_named(task):
            raise _unknown(task)
    manager = _task_manager(tasks)
    for task in tasks:
        if task not in manager.all_subtasks:
            raise _unknown(task)
        if (
            task not in TASK_FOLDERS
            and _config_of(task, manager, code=False).get("output_type") == "loglikelihood_rolling"
        ):
            raise SettingsError(f"Task {task} measures perplexity, not accuracy. Use a text instead: --texts wikitext.")
    return manager


def _unknown(task: str) -> SettingsError:
    return SettingsError(
        f"Unknown task '{task}'. Bundled tasks: {', '.join(TASKS)}. To list all others: lm-eval ls tasks."
    )


def _is_named(task: str) -> bool:
    """Whether a file of lm-eval gives anything this name: without it, the whole index need not be built."""
    import lm_eval.tasks

    name = re.compile(rb"[:-][ \t]*[\"']?" + re.escape(task.encode()) + rb"[\"']?[ \t\r]*(?:#[^\n]*)?$", re.MULTILINE)
    files = (file for file in Path(lm_eval.tasks.__file__).parent.rglob("*") if file.suffix in (".yaml", ".yml"))
    return any(name.search(file.read_bytes()) for file in files)


def check_limit(limit: int | None) -> None:
    """Raise SettingsError unless `limit` is a number of documents, or None for all."""
    if limit is not None and not 1 <= limit <= MOST_DOCUMENTS:
        raise SettingsError(f"--limit {limit} is out of range. Choose 1 or more documents, or none for all.")


def _config_of(task: str, manager: Any, code: bool = True) -> dict[str, Any]:
    """lm-eval's config of the task; with `code`, imports the task's own functions, which may need extra packages."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(manager.task_index[task].yaml_path, resolve_func=code))


def _task(name: str, manager: Any, limit: int | None) -> Any:
    """The registered task; for bundled tasks, with the bundled documents instead of the hub's."""
    from lm_eval.api.task import ConfigurableTask

    if name not in TASK_DATA:
        try:
            return next(iter(manager.load_task_or_group(name).values()))
        except ImportError as error:
            raise SettingsError(
                f"Task {name} needs a package that is not installed: {first_line(error)} Install it, or choose another "
                "task."
            ) from None
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SettingsError(
                f"Cannot load the data of task {name} ({type(error).__name__}). Without a network, choose bundled "
                f"tasks: {', '.join(TASKS)}."
            ) from None
    # lm-eval has no public API for replacing a registered task's documents: it does not merge a dict with that name.
    config = {key: value for key, value in _config_of(name, manager).items() if key not in ("tag", "group")}
    config.update(
        custom_dataset=lambda **_: {"validation": task_dataset(name, limit)},
        validation_split="validation",
        test_split=None,
        training_split=None,
    )
    if name == "boolq":
        config["doc_to_target"] = lambda doc: int(doc["answer"])
    return ConfigurableTask(config=config)
