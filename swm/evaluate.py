"""Zero-shot tasks and perplexity. The only module that imports lm_eval."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.errors import ModelError, SettingsError, TextError, first_line
from swm.metrics import MOST_DOCUMENTS, PAPER_METRICS, TASKS
from swm.parallel import gathered, own_part, world_size
from swm.texts import TASK_DATA, task_dataset

# Where lm-eval keeps their definitions.
TASK_FOLDERS = {
    "boolq": "super_glue/boolq",
    "piqa": "piqa",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "openbookqa": "openbookqa",
}
OnProgress = Callable[[int, int, str], None]
QUESTION_LETTERS = 400  # of a question and an answer are kept


@dataclass(frozen=True)
class TaskScore:
    """One task's score.

    Attributes:
        value: share of documents answered right, 0 to 1.
        stderr: standard error of `value` over documents.
        answers: for each document, in order: `id` (hash of the document), `correct` (1 or 0), `question` (its end),
            `right` and `picked`, the right answer and the model's.
    """

    task: str
    value: float
    stderr: float
    metric: str
    documents: int
    version: str
    data: str
    answers: tuple[dict[str, Any], ...]

    @property
    def correct(self) -> tuple[float, ...]:
        return tuple(answer["correct"] for answer in self.answers)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TaskScore:
        """From `asdict`."""
        names = [field.name for field in fields(cls) if field.name != "answers"]
        return cls(**{name: data[name] for name in names}, answers=tuple(data["answers"]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "stderr": self.stderr,
            "metric": self.metric,
            "documents": self.documents,
            "version": self.version,
            "data": self.data,
        }


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel, tokens: Tensor, batch: int = 8, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Perplexity of texts that stand each on their own (no context carried over).

    Args:
        tokens: ids, shape (texts, length), int64, no padding; the first token of a text is given, not predicted.

    Returns:
        `value`; `low` and `high`, its 95 % interval over texts (normal, on the mean log-likelihood per text);
        `texts`, `length_tokens`, `predicted_tokens`.

    Raises:
        TextError: if a text has fewer than two tokens. ModelError: if the loss is not finite.
    """
    if tokens.shape[1] < 2:
        raise TextError("A text of one token has nothing to predict. Choose longer texts.")
    losses: list[float] = []
    for part in own_part(list(tokens.split(batch))):
        ids = part.to(model.device)
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        losses += loss.view(len(part), -1).mean(1, dtype=torch.float64).tolist()
        if not math.isfinite(losses[-1]):
            break
        if on_progress:
            on_progress(len(losses) * world_size(), len(tokens), "perplexity")
    losses = gathered(losses)
    if broken := [loss for loss in losses if not math.isfinite(loss)]:
        raise ModelError(
            f"The model's loss is {broken[0]} in {str(model.dtype).removeprefix('torch.')}: its weights or its "
            "number format overflow. Merge with other windows, or create the experiment with --dtype float32."
        )
    mean = math.fsum(losses) / len(losses)
    spread = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / max(1, len(losses) - 1) / len(losses))
    # Beyond e^50 the number says no more than "broken", and JSON has no infinity.
    value, low, high = (math.exp(min(x, 50.0)) for x in (mean, mean - 1.96 * spread, mean + 1.96 * spread))
    return {
        "value": value,
        "low": low,
        "high": high,
        "texts": len(losses),
        "length_tokens": tokens.shape[1],
        "predicted_tokens": len(losses) * (tokens.shape[1] - 1),
    }


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] = TASKS,
    limit: int | None = 100,
    on_progress: OnProgress | None = None,
) -> list[TaskScore]:
    """Zero-shot scores through lm-eval's own tasks and metrics.

    Args:
        tasks: names that lm-eval knows. The seven of PAPER_METRICS use the bundled data, others the hub.
        limit: the first so-many documents of each task; None for all.

    Raises:
        SettingsError: if a task is unknown, or its data cannot be had.
    """
    from lm_eval import simple_evaluate

    from swm.scoring import SharedContextLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = check_request(tasks, limit)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    report = on_progress or (lambda done, total, text: None)
    lm: Any = SharedContextLM(model, tokenizer)
    scores = []
    for index, name in enumerate(tasks):

        def requests_done(done: int, total: int, index: int = index, name: str = name) -> None:
            report(100 * index + 100 * done // total, 100 * len(tasks), name)

        lm.on_progress = requests_done
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), _machine_not_asked():
            # lm-eval warns and draws bars of its own; what matters of it is in the scores.
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
        scores += gathered([_score(name, results)] if results else [])[:1]  # of several processes one is given them
    return scores


@contextlib.contextmanager
def _machine_not_asked() -> Iterator[None]:
    """lm-eval asks git and lists the machine's parts for each task: of no use here, and git complains."""
    from lm_eval import evaluator

    asking = [name for name in ("get_git_commit_hash", "add_env_info") if hasattr(evaluator, name)]
    own = {name: getattr(evaluator, name) for name in asking}
    try:
        for name in own:
            setattr(evaluator, name, lambda *_: None)
        yield
    finally:
        for name, function in own.items():
            setattr(evaluator, name, function)


def _task_manager(tasks: Sequence[str]) -> Any:
    """lm-eval's index of tasks; for the seven alone only their folders, since indexing all takes 10 seconds."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    if not all(task in TASK_FOLDERS for task in tasks):
        return TaskManager()
    root = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_defaults=False, include_path=sorted({str(root / TASK_FOLDERS[task]) for task in tasks}))


def check_request(tasks: Sequence[str], limit: int | None) -> Any:
    """lm-eval's index of the tasks, once they are found to be known and the limit to be one; loads no model.

    Raises:
        SettingsError: if a task is unknown or the limit is out of range.
    """
    check_limit(limit)
    manager = _task_manager(tasks)
    for task in tasks:
        if task not in manager.all_subtasks:
            raise SettingsError(
                f"'{task}' is not a task that lm-eval knows. Bundled: {', '.join(TASKS)}; all others: lm-eval ls tasks."
            )
        if (
            task not in TASK_FOLDERS
            and _config_of(task, manager, code=False).get("output_type") == "loglikelihood_rolling"
        ):
            raise SettingsError(
                f"Task {task} measures perplexity, not accuracy. Pass a text instead: --texts wikitext."
            )
    return manager


def check_limit(limit: int | None) -> None:
    """Raise SettingsError unless it is a number of documents, or None for all."""
    if limit is not None and not 1 <= limit <= MOST_DOCUMENTS:
        raise SettingsError(f"--limit {limit} is out of range. Choose 1 or more documents, or none for all.")


def _config_of(task: str, manager: Any, code: bool = True) -> dict[str, Any]:
    """What lm-eval's file of the task says; with the task's own functions, which may need packages of theirs."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(manager.task_index[task].yaml_path, resolve_func=code))


def _task(name: str, manager: Any, limit: int | None) -> Any:
    """The registered task; for the seven with the bundled documents in place of the hub's."""
    from lm_eval.api.task import ConfigurableTask

    if name not in TASK_DATA:
        try:
            return next(iter(manager.load_task_or_group(name).values()))
        except ImportError as error:
            raise SettingsError(
                f"Task {name} needs a package that is not installed: {first_line(error)} Install it, or choose another."
            ) from None
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SettingsError(
                f"The data of task {name} cannot be had ({type(error).__name__}). Without a network only the bundled "
                f"tasks work: {', '.join(TASKS)}."
            ) from None
    # lm-eval has no public way to give a registered task other documents: a dict with its name is not merged with it.
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


def _score(task: str, results: dict[str, Any]) -> TaskScore:
    # "metric,filter", as in "acc,none" or "exact_match,strict-match"
    keys = [key for key in results["results"][task] if "," in key and "_stderr" not in key]
    wanted = [PAPER_METRICS[task]] if task in PAPER_METRICS else ["acc_norm", "acc", "exact_match"]
    ordered = sorted(keys, key=lambda key: (*(key.split(",")[0] != name for name in wanted), keys.index(key)))
    metric, chosen = ordered[0].split(",", 1)
    if not metric.startswith("acc") and metric != "exact_match":
        raise SettingsError(f"Task {task} gives {metric}, not a share of right answers. Choose another task.")
    samples = [sample for sample in results["samples"][task] if sample.get("filter", "none") == chosen]
    samples.sort(key=lambda sample: sample["doc_id"])
    answers = tuple(_answer(sample, metric) for sample in samples)
    correct = [answer["correct"] for answer in answers]
    value = math.fsum(correct) / len(correct)
    spread = standard_error(correct)
    data = "bundled" if task in TASK_DATA else "hub"
    version = str(results["versions"].get(task, ""))
    return TaskScore(task, value, spread, metric, len(correct), version, data, answers)


def standard_error(correct: Sequence[float]) -> float:
    """Standard error of the share of documents answered right: the sample's, as lm-eval gives it for a mean.

    Where all are right, or all wrong, that would be 0 however few they are: there it is a quarter of the 95 % interval
    of Wilson 1927, which such a sample still leaves open.
    """
    n, value = len(correct), math.fsum(correct) / len(correct)
    if len(set(correct)) > 1:
        return math.sqrt(math.fsum((c - value) ** 2 for c in correct) / (n - 1) / n)
    z_squared = 1.96**2
    return z_squared / (n + z_squared) / 2 / 1.96


def _answer(sample: dict[str, Any], metric: str) -> dict[str, Any]:
    """A document's question, right answer and the model's, from what lm-eval keeps of it."""
    requests, target, responses = sample["arguments"], sample["target"], sample["filtered_resps"]
    question = str(requests[0][0])
    choices = [str(request[1]).strip() for request in requests]
    if len({str(request[0]) for request in requests}) > 1:  # the choices stand in the context, as in winogrande
        question = "…" + choices[0]
        choices = [str(request[0]) for request in requests]
        target = sample["doc"].get("answer", target)
        target = int(target) - 1 if str(target).isdigit() else target
    right, picked = str(target), str(responses[0])
    if len(choices) > 1:
        scores = [
            response[0] / (len(choice) if metric == "acc_norm" else 1)
            for response, choice in zip(responses, choices, strict=True)
        ]
        picked = choices[scores.index(max(scores))]
        right = choices[int(target)] if str(target).isdigit() and int(target) < len(choices) else str(target)
    return {
        "id": str(sample["doc_hash"])[:16],
        "correct": float(sample[metric]),
        "question": question[-QUESTION_LETTERS:],
        "right": right[:QUESTION_LETTERS],
        "picked": picked[:QUESTION_LETTERS],
    }
