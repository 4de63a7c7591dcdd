"""What a run will need: time by stage, memory, disk. From the model's size and rates measured once here. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swm.plan import MergePlan
from swm.registry import MERGE_RULES
from swm.settings import FIT_TOKENS, RecoverySettings
from swm.workspace.files import free_bytes
from swm.workspace.machine import free_memory_bytes
from swm.workspace.units import gib

PROCESS_BYTES = 700 * 2**20  # Python with torch and transformers, before any model


TASKS = 7
TASK_TOKENS = 97  # read for one document, mean of the seven tasks with SmolLM2's tokenizer


PERPLEXITY_TOKENS = 2 * 32 * 256


SCORED_TOKENS = 4096  # logits that an evaluation holds at once


LOADING_BYTES_PER_SECOND = 150 * 2**20


GRAM_TOKENS = 512  # of which similarity holds a Gram matrix for each layer at once


ONE_PLAN_RUNS, PATH_RUNS = 11, 560  # layer runs of a search for each layer of the model


BACKWARD = 4  # a training step costs so many forward passes; measured 3.8 with LoRA


@dataclass(frozen=True)
class Estimate:
    """Seconds by stage (empty if nothing was measured here yet), and bytes needed and free."""

    seconds: dict[str, float]
    memory_bytes: int
    disk_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    stage_memory_bytes: dict[str, int] = field(default_factory=dict)  # beside the process's own

    @property
    def total_seconds(self) -> float:
        """Seconds of all stages; 0 if nothing was measured."""
        return sum(self.seconds.values())

    def problems(self) -> list[str]:
        """Why it cannot run here, with the numbers and what to change."""
        found = []
        if self.memory_bytes > self.free_memory_bytes:
            found.append(
                f"It needs about {gib(self.memory_bytes)} of memory and {gib(self.free_memory_bytes)} are free. "
                "Lower the recovery's batch or length, save memory, choose --dtype bfloat16, or close programs."
            )
        if self.disk_bytes > self.free_disk_bytes:
            found.append(
                f"It needs about {gib(self.disk_bytes)} of disk and {gib(self.free_disk_bytes)} are free. Delete runs "
                "that are not needed, or set SWM_HOME to another disk."
            )
        return found


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
        cost: its measured rates, see `swm.evaluation.cost.decode_cost`; None gives no times.
        recovery: None leaves healing out. limit: documents of each task, None for all (some 2,000).
        folder: on the disk that the run is written to.
        evaluations: of models: the original unless it is evaluated already, before healing, after it.

    Source of the memory: weights of both models, of the reloaded one while saving, and for training LoRA's weights with
    gradient and two moments, and the activations of a batch (some 24 numbers of the width for each layer and token)
    and its logits three times.
    """
    free = free_memory_bytes()
    size, layers, width = facts["size_bytes"], facts["layers"], facts["width"]
    vocabulary = max(0, facts["parameters"] - layers * facts["parameters_per_layer"]) / width
    small = size * (1 - (layers - plan.worth_layers) * facts["parameters_per_layer"] / facts["parameters"])
    memory = {"merge": 2.2 * size, "evaluate": size + SCORED_TOKENS * 4 * (3 * vocabulary + 12 * width)}
    disk = small
    if recovery:
        tokens = recovery.batch * recovery.length
        lora = adapter_bytes(recovery.rank, plan.layers_left, width)
        kept = activation_bytes(tokens, plan.layers_left, width)
        if recovery.checkpointing == "on" or (recovery.checkpointing == "auto" and kept > free / 2):
            kept = activation_bytes(tokens, 1, width) + 4 * tokens * width * plan.layers_left
        memory["heal"] = max(1.3 * size + lora + kept + 4 * tokens * 3 * vocabulary, memory["merge"])  # saved likewise
        disk += small + 3 * lora
    seconds = {}
    if cost and "forward_tokens_per_second" in cost:
        read = PERPLEXITY_TOKENS + TASK_TOKENS * tasks * (limit or 2000)
        fitting = 2 * FIT_TOKENS / cost["forward_tokens_per_second"] if plan.windows else 0  # both models read it
        seconds["merge"] = (
            5 + 3 * size / LOADING_BYTES_PER_SECOND + (fitting if MERGE_RULES[plan.rule].needs_text else 0)
        )
        seconds["evaluate"] = evaluations * (8 + read / cost["forward_tokens_per_second"])
        if recovery:
            trained = recovery.steps * recovery.batch * recovery.accumulate * recovery.length
            trained += recovery.steps // recovery.save_every * recovery.held_out * recovery.length // BACKWARD
            seconds["heal"] = 10 + BACKWARD * trained / cost["training_tokens_per_second"]
            seconds["heal"] += fitting if recovery.repair == "fit" else 0
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
    """What one stage needs; seconds are None where nothing was timed."""

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
    """What each stage needs for a model of which only the config may be here.

    Args:
        facts: as from `models.config_facts`. cost: as from `timing.config_cost`, or `decode_cost`.
        tokens: of the calibration text.

    Source of the memory: weights, and
    - measure: states of all layers and a Gram matrix of 512 tokens for each, in float64;
    - search: one merged layer and the states in front of every fourth layer (with less they go to a file, with more
      room more merged layers are kept);
    - merge: the model and the merged one reloaded; from disk to disk no model, and of the largest window's layers and
      the merged one a parameter each, of which a layer has at least three as large;
    - recover, evaluate: see `estimate_run`.
    Of the time: a search for one threshold runs some eleven times as many layers as the model has, the whole path 560
    times as many (318 and 16,865 with 30 layers).
    """
    size, layers, width = facts["size_bytes"], facts["layers"], facts["width"]
    each = size * facts["parameters_per_layer"] // facts["parameters"]
    longest = max((len(window) for window in plan.windows), default=0)
    part = min(tokens, GRAM_TOKENS)
    run = estimate_run(facts, cost, plan, recovery, limit, Path.cwd(), evaluations=1)
    healing = estimate_run(facts, None, plan, recovery, limit, Path.cwd())
    plain = estimate_run(facts, None, plan, None, limit, Path.cwd())
    load = size / LOADING_BYTES_PER_SECOND
    forward = tokens / cost["forward_tokens_per_second"] if cost and "forward_tokens_per_second" in cost else None
    known = run.seconds

    def seconds(of: float | None) -> float | None:
        return None if forward is None or of is None else of

    once = None if forward is None else forward / layers  # a layer over the calibration text
    grams = layers * (4 * part * width + 8 * part * part)
    searching = size + each + 4 * tokens * width * (layers // 4 + 2)
    one, path = (seconds(load + runs * layers * (once or 0)) for runs in (ONE_PLAN_RUNS, PATH_RUNS))
    return [
        StageNeed("measure", size + grams, 2**20, seconds(load + (forward or 0))),
        StageNeed("search, one threshold", searching, 2**20, one),
        StageNeed("search, whole path", searching, 2**24, path),
        StageNeed("merge", plain.stage_memory_bytes["merge"], plain.disk_bytes, seconds(known.get("merge"))),
        StageNeed("merge --stream", (longest + 1) * each // 3, plain.disk_bytes, 2 * load),
        StageNeed("recover", healing.stage_memory_bytes["heal"], healing.disk_bytes, seconds(known.get("heal"))),
        StageNeed("evaluate", plain.stage_memory_bytes["evaluate"], 2**20, seconds(known.get("evaluate"))),
    ]


def adapter_bytes(rank: int, layers: int, width: int) -> int:
    """LoRA's weights in all linear maps with gradient and two moments, about; no checkpoint needs more on disk."""
    return 16 * rank * layers * 16 * width


def activation_bytes(tokens: int, layers: int, width: int) -> int:
    """What a training step keeps of its forward pass, about: measured on SmolLM2-135M, some 24 numbers of the width."""
    return 4 * tokens * 24 * width * layers
