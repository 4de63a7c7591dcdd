"""What a run needs: time by stage, memory and disk, from the model's size and rates measured here. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swm.plan import MergePlan
from swm.registry import MERGE_RULES, PLANNERS
from swm.settings import FIT_TOKENS, LARGE_VOCABULARY, PLAN_BUDGET, VOCABULARY_SAMPLE, RecoverySettings
from swm.workspace.files import free_bytes
from swm.workspace.machine import free_memory_bytes
from swm.workspace.targets import weights_of
from swm.workspace.training_memory import healing_bytes, trained_bytes, vocabulary_of
from swm.workspace.units import duration_range, gib

PROCESS_BYTES = 700 * 2**20  # Python with torch and transformers, before any model
TASKS = 7
TASK_TOKENS = 97  # per document; mean of the seven tasks with SmolLM2's tokenizer
PERPLEXITY_TOKENS = 2 * 32 * 256
SCORED_TOKENS = 4096  # tokens whose logits an evaluation holds at once
LOADING_BYTES_PER_SECOND = 150 * 2**20
GRAM_TOKENS = 512  # tokens in the Gram matrix that a measurement holds for each layer
ONE_PLAN_RUNS, PATH_RUNS = 11, 560  # layer runs of a search per layer of the model
EVALUATION_SECONDS = 8  # of an evaluation, beside reading: loading, writing the sample answers
BACKWARD = 4  # cost of a training step in forward passes; 3.8 measured with LoRA
ANSWERED_TOGETHER = 3  # how many times as fast batches of prompts are answered as single ones, on a CPU


UNSURE = (0.8, 1.6)  # the shortest and longest time that an estimate stands for, as a multiple of it


@dataclass(frozen=True)
class Estimate:
    """Seconds by stage (empty if nothing was measured here yet); bytes needed and free."""

    seconds: dict[str, float]
    memory_bytes: int
    disk_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    stage_memory_bytes: dict[str, int] = field(default_factory=dict)  # without the process itself

    @property
    def total_seconds(self) -> float:
        """Seconds of all stages; 0 if nothing was measured."""
        return sum(self.seconds.values())

    @property
    def time(self) -> str:
        """The time of all stages as a range, as in "4 to 8 min"; empty if nothing was measured."""
        return about(self.total_seconds) if self.seconds else ""

    def problems(self) -> list[str]:
        """Why the run does not fit here, with the numbers and what to change."""
        problems = []
        if self.memory_bytes > self.free_memory_bytes:
            problems.append(
                f"Not enough memory: about {gib(self.memory_bytes)} needed, {gib(self.free_memory_bytes)} free. Lower "
                "the recovery's batch or length, turn checkpointing on, choose --dtype bfloat16, or close programs."
            )
        if self.disk_bytes > self.free_disk_bytes:
            problems.append(
                f"Not enough disk space: about {gib(self.disk_bytes)} needed, {gib(self.free_disk_bytes)} free. Delete "
                "runs that you no longer need, or set SWM_HOME to a folder on another disk."
            )
        return problems


def about(seconds: float) -> str:
    """An estimated time as a range, as in "4 to 8 min"."""
    return duration_range(*(factor * seconds for factor in UNSURE))


def evaluated_tokens(tasks: int, limit: int | None) -> int:
    """About how many tokens a model reads while it is evaluated."""
    return PERPLEXITY_TOKENS + task_tokens(tasks, limit)


def task_tokens(tasks: int, limit: int | None) -> int:
    """About how many tokens of the tasks' documents a model reads."""
    return TASK_TOKENS * tasks * (limit or 2000)


def reached_rates(
    worth: float, *, evaluated: tuple[int, float] | None = None, trained_per_second: float | None = None
) -> dict[str, float]:
    """The rates of cost.json for the whole model, as a job on this machine reached them.

    Args:
        worth: share of the original's layers that the job's model has.
        evaluated: tokens as from `evaluated_tokens`, and the seconds that reading them took, all included.
        trained_per_second: tokens per second of LoRA training.
    """
    rates = {}
    if evaluated and evaluated[1] > EVALUATION_SECONDS:
        rates["forward_tokens_per_second"] = worth * evaluated[0] / (evaluated[1] - EVALUATION_SECONDS)
    if trained_per_second:
        rates["training_tokens_per_second"] = worth * BACKWARD * trained_per_second
    return rates


def estimate_run(
    facts: dict[str, Any],
    cost: dict[str, Any] | None,
    plan: MergePlan,
    recovery: RecoverySettings | None,
    limit: int | None,
    folder: Path,
    tasks: int = TASKS,
    evaluations: int = 3,
) -> Estimate:
    """What merging, healing and evaluating a plan needs.

    Args:
        facts: of the original model.
        cost: its measured rates, see `swm.evaluation.cost.decode_cost`; with None, no times are estimated.
        recovery: None means no healing. limit: documents per task, None for all (about 2,000).
        folder: a folder on the disk where the run is saved.
        evaluations: how many models are evaluated: the original if it has no scores yet, the merged, the healed one.

    Source of the memory: weights of both models, and of the reloaded one while saving; for training also the trained
    weights with gradients and two moments, a batch's activations (about 24 * width numbers per layer and token) and
    three times its logits. With four-bit weights, these instead of the model's own; the layers are fitted before with
    the original in memory if there is room for it, otherwise from disk.
    """
    free = free_memory_bytes()
    size, width = facts["size_bytes"], facts["width"]
    small = weights_of(facts, plan)
    memory = {"merge": 2.2 * size, "evaluate": size + SCORED_TOKENS * 4 * (3 * vocabulary_of(facts) + 12 * width)}
    disk = small
    if recovery:
        memory["heal"] = healing_bytes(recovery, plan, facts, free)
        disk += small + 3 * trained_bytes(recovery, plan, facts)
        if recovery.quantization == "none":
            memory["heal"] = max(memory["heal"], memory["merge"])  # saved as well
        else:  # saved tensor by tensor; the merged model lies beside the run's own while it is trained
            disk += small
    seconds = {}
    if cost and "forward_tokens_per_second" in cost:
        read = evaluated_tokens(tasks, limit)
        fast = cost.get("training_tokens_per_second", cost["forward_tokens_per_second"])  # the same precision
        fitting = 2 * FIT_TOKENS / fast if plan.windows else 0  # both models read it
        seconds["merge"] = 5 + 3 * size / LOADING_BYTES_PER_SECOND
        seconds["merge"] += fitting if MERGE_RULES[plan.rule].needs_text else 0
        seconds["evaluate"] = evaluations * (EVALUATION_SECONDS + read / cost["forward_tokens_per_second"])
        if recovery:
            seconds["heal"] = _healing_seconds(recovery, cost) + (fitting if recovery.repair != "none" else 0)
        token = (cost["layers_ms"] + cost["rest_ms"]) / 1000
        seconds["time"] = 10 + 2 * 9 * 33 * token
    return Estimate(
        seconds,
        PROCESS_BYTES + round(max(memory.values())),
        round(disk),
        free,
        free_bytes(folder),
        {stage: round(needed) for stage, needed in memory.items()},
    )


@dataclass(frozen=True)
class StageNeed:
    """What one stage needs; `seconds` is None if nothing was timed."""

    stage: str
    memory_bytes: int
    disk_bytes: int
    seconds: float | None


def stage_needs(
    facts: dict[str, Any],
    cost: dict[str, Any] | None,
    plan: MergePlan,
    recovery: RecoverySettings,
    limit: int | None,
    tokens: int,
) -> list[StageNeed]:
    """What each stage needs; the model's config is enough, its weights need not be present.

    Args:
        facts: as from `models.load.config_facts`. cost: as from `evaluation.cost.config_cost` or `decode_cost`.
        tokens: of the calibration text.

    Source of the memory: weights, and
    - measure: hidden states of all layers, and a Gram matrix of 512 tokens for each, in float64;
    - search: one merged layer, and the hidden states in front of every fourth layer (with less memory they go to a
      file; with more, more merged layers are kept);
    - merge: the model, and the merged one reloaded. From disk to disk, no model is loaded, only one parameter of each
      layer in the largest window and of the merged layer; a layer has at least three parameters of that size;
    - recover, evaluate: see `estimate_run`.
    Source of the time: a search for one threshold runs about 11 times as many layers as the model has, the whole path
    560 times as many (318 and 16,865 with 30 layers).
    """
    size, layers, width = facts["size_bytes"], facts["layers"], facts["width"]
    layer_bytes = size * facts["parameters_per_layer"] // facts["parameters"]
    longest = max((len(window) for window in plan.windows), default=0)
    gram_tokens = min(tokens, GRAM_TOKENS)
    run = estimate_run(facts, cost, plan, recovery, limit, Path.cwd(), evaluations=1)
    healing = estimate_run(facts, None, plan, recovery, limit, Path.cwd())
    merged = estimate_run(facts, None, plan, None, limit, Path.cwd())
    load = size / LOADING_BYTES_PER_SECOND
    forward = tokens / cost["forward_tokens_per_second"] if cost and "forward_tokens_per_second" in cost else None
    run_seconds = run.seconds

    def if_timed(seconds: float | None) -> float | None:
        return None if forward is None or seconds is None else seconds

    grams = layers * (4 * gram_tokens * width + 8 * gram_tokens * gram_tokens)
    searching = size + layer_bytes + 4 * tokens * width * (layers // 4 + 2)
    one_plan = if_timed(load + ONE_PLAN_RUNS * (forward or 0))
    return [
        StageNeed("measure", size + grams, 2**20, if_timed(load + (forward or 0))),
        StageNeed("search, one threshold", searching, 2**20, one_plan),
        StageNeed("search, whole path", searching, 2**24, path_seconds(facts, cost, tokens)),
        StageNeed("merge", merged.stage_memory_bytes["merge"], merged.disk_bytes, if_timed(run_seconds.get("merge"))),
        StageNeed("merge --stream", (longest + 1) * layer_bytes // 3, merged.disk_bytes, 2 * load),
        StageNeed("recover", healing.stage_memory_bytes["heal"], healing.disk_bytes, if_timed(run_seconds.get("heal"))),
        StageNeed("evaluate", merged.stage_memory_bytes["evaluate"], 2**20, if_timed(run_seconds.get("evaluate"))),
    ]


def path_seconds(facts: dict[str, Any], cost: dict[str, Any] | None, tokens: int) -> float | None:
    """Seconds of a search for the plans of all thresholds; None if nothing was timed. Arguments as of `stage_needs`."""
    if not cost or "forward_tokens_per_second" not in cost:
        return None
    return float(
        facts["size_bytes"] / LOADING_BYTES_PER_SECOND + PATH_RUNS * tokens / cost["forward_tokens_per_second"]
    )


def planner_seconds(
    facts: dict[str, Any], cost: dict[str, Any] | None, tokens: int, planner: str, layers: int
) -> float | None:
    """Seconds that a planner takes to find and measure a plan; None if nothing was timed, or it cannot be estimated.

    Args:
        facts, cost, tokens: as of `stage_needs`. layers: how many to leave.
    """
    read = PLANNERS[planner].tokens_read
    if read is None or not cost or "forward_tokens_per_second" not in cost:
        return None
    times = 2 if PLANNERS[planner].halves and layers < facts["layers"] else 1
    measured = times * read(facts["layers"], layers, PLAN_BUDGET, tokens)
    measured += (1 + 2 * times) * tokens  # similarity and two perplexities, and two more of the choices on halves
    measured *= _sampled_share(facts) if PLANNERS[planner].samples else 1
    seconds = facts["size_bytes"] / LOADING_BYTES_PER_SECOND + measured / cost["forward_tokens_per_second"]
    return float(seconds + EVALUATION_SECONDS)


def _sampled_share(facts: dict[str, Any]) -> float:
    """What a forward pass with a sample of the vocabulary costs, of one with all of it."""
    vocabulary = facts.get("vocabulary", 0)
    if vocabulary < LARGE_VOCABULARY:
        return 1.0
    layers = facts["layers"] * facts["parameters_per_layer"]
    return float((layers + VOCABULARY_SAMPLE * facts["width"]) / (layers + vocabulary * facts["width"]))


def _healing_seconds(recovery: RecoverySettings, cost: dict[str, Any]) -> float:
    """Seconds of training, with the loss of the held-out texts now and then, and of the original's answers before."""
    trained = recovery.steps * recovery.batch * recovery.accumulate * recovery.length
    held_out = (1 + recovery.steps // recovery.save_every) * recovery.held_out * recovery.length
    seconds = 10 + BACKWARD * (trained + held_out // BACKWARD) / cost["training_tokens_per_second"]
    if recovery.answers == "original":  # it reads every prompt, and writes about a tenth of the text
        token = (cost["layers_ms"] + cost["rest_ms"]) / 1000
        seconds += trained / cost["forward_tokens_per_second"] + trained / 10 * token / ANSWERED_TOGETHER
    return float(seconds)
