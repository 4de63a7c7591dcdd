"""What a run needs: time by stage, memory and disk, from the model's size and rates measured here; how fast it trains.

No torch.
"""

from __future__ import annotations

import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from swm.disk.files import free_bytes
from swm.disk.machine import free_memory_bytes
from swm.plan import MergePlan
from swm.registry import MERGE_RULES, PLANNERS
from swm.settings import (
    FIT_TOKENS,
    LARGE_VOCABULARY,
    PLAN_BUDGET,
    SAMPLE_PROMPTS,
    SAMPLE_TOKENS,
    VOCABULARY_SAMPLE,
    RecoverySettings,
)
from swm.workspace.targets import weights_of
from swm.workspace.training_memory import healing_bytes, trained_bytes, vocabulary_of
from swm.workspace.units import duration_range, gib

PROCESS_BYTES = 700 * 2**20  # Python with torch and transformers, before any model
# Of each task, tokens that a model reads for a document, its choices included (SmolLM2's tokenizer, first 100
# documents), and how many documents are bundled; and of a task that is not among them, about as many.
SIZES = {
    "boolq": (165, 3270),
    "piqa": (60, 1838),
    "hellaswag": (81, 10_042),
    "winogrande": (26, 1267),
    "arc_easy": (46, 570),
    "arc_challenge": (58, 299),
    "openbookqa": (26, 500),
}
OTHER_SIZE = (100, 2000)
PERPLEXITY_TOKENS = 2 * 32 * 256
SCORED_TOKENS = 4096  # tokens whose logits an evaluation holds at once
LOADING_BYTES_PER_SECOND = 400 * 2**20  # of a file read not long ago, or written
GRAM_TOKENS = 512  # tokens in the Gram matrix that a measurement holds for each layer
ONE_PLAN_RUNS, PATH_RUNS = 11, 560  # layer runs of a search per layer of the model
PATH_PLANS = 2  # different plans of a path per layer of the model, each of which answers the sample prompts
MEASURE_RUNS = 7  # forward passes of a measurement: similarity, and the influence of attention and MLP
TIMED_TURNS = 16  # generations of each model: 9 to compare, and larger batches that take as long as 7
REQUEST_BEGIN, REQUEST_TOKENS = 200, 80  # tokens: of an ability's solved examples, and of one request
START_SECONDS = 5  # of a job, before it loads a model
RECENT_RATES = 5  # jobs whose rates are kept
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


def tokens_of(task: str, limit: int | None) -> int:
    """About how many tokens a model reads for a task's documents, or the first `limit` of them."""
    tokens, documents = SIZES.get(task, OTHER_SIZE)
    return tokens * min(limit or documents, documents)


def evaluated_tokens(facts: dict[str, Any], plan: MergePlan, scored: float, questions: float) -> float:
    """Tokens that the original could read in the time in which a plan's model reads texts and questions.

    Args:
        facts: of the original.
        scored: tokens of texts, for each of which the head computes its prediction, as for perplexity.
        questions: tokens of questions, of which the head sees only the answers.
    """
    layer, head = facts["parameters_per_layer"], vocabulary_of(facts) * facts["width"]
    layers = layer * plan.worth_layers
    return float((scored * (layers + head) + questions * layers) / (layer * facts["layers"] + head))


def recent_rates(cost: dict[str, Any]) -> dict[str, float]:
    """The rates of a cost.json as jobs on this machine reached them last, on the device and in the precision of the
    last one: of each kind the median, so that neither a busy hour nor a lucky one counts for long."""
    here = [rate for rate in cost.get("observed", []) if rate["host"] == socket.gethostname()]
    if not here:
        return {}
    alike = [rate for rate in here if _where(rate) == _where(here[-1])]
    kinds = {rate["kind"] for rate in alike}
    by_kind = {kind: [rate["tokens_per_second"] for rate in alike if rate["kind"] == kind] for kind in kinds}
    return {f"{kind}_tokens_per_second": statistics.median(rates) for kind, rates in by_kind.items()}


def with_rate(cost: dict[str, Any], kind: str, device: str, dtype: str, tokens_per_second: float) -> dict[str, Any]:
    """A cost.json with the rate of one more job; of each kind, device and precision on a machine the last few stay.

    Args:
        kind: "forward", or "training" counted in forward passes.
        tokens_per_second: of the whole original, see `evaluated_tokens`.
    """
    new: dict[str, Any] = {"host": socket.gethostname(), "device": device, "dtype": dtype, "kind": kind}
    new |= {"tokens_per_second": tokens_per_second}
    of_kind = lambda rate: (_where(rate), rate["kind"])  # noqa: E731
    older = [rate for rate in cost.get("observed", []) if of_kind(rate) == of_kind(new)][1 - RECENT_RATES :]
    others = [rate for rate in cost.get("observed", []) if of_kind(rate) != of_kind(new)]
    return {**cost, "observed": [*others, *older, new]}


def _where(rate: dict[str, Any]) -> tuple[str, ...]:
    return rate["host"], rate["device"], rate["dtype"]


def estimate_run(
    facts: dict[str, Any],
    cost: dict[str, Any] | None,
    plan: MergePlan,
    recovery: RecoverySettings | None,
    limit: int | None,
    folder: Path,
    tasks: Sequence[str] = tuple(SIZES),
    evaluations: int = 3,
) -> Estimate:
    """What merging, healing and evaluating a plan needs.

    Args:
        facts: of the original model.
        cost: its measured rates, see `swm.evaluation.cost.decode_cost`; with None, no times are estimated.
        recovery: None means no healing. limit: documents per task, None for all.
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
        fitting = 2 * FIT_TOKENS / _fast_rate(cost) if plan.windows else 0  # both models read it
        seconds["merge"] = START_SECONDS + 3 * size / LOADING_BYTES_PER_SECOND
        seconds["merge"] += fitting if MERGE_RULES[plan.rule].needs_text else 0
        smaller = min(evaluations, 2 if recovery else 1)  # the others are of the original
        original = _evaluation_seconds(facts, cost, MergePlan(facts["layers"]), tasks, limit)
        seconds["evaluate"] = smaller * _evaluation_seconds(facts, cost, plan, tasks, limit)
        seconds["evaluate"] += (evaluations - smaller) * original
        if recovery:
            seconds["heal"] = _healing_seconds(facts, cost, plan, recovery) + (
                fitting if recovery.repair != "none" else 0
            )
        load = 2 * size / LOADING_BYTES_PER_SECOND
        seconds["time"] = START_SECONDS + load + 2 * TIMED_TURNS * 33 * _token_seconds(cost)
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
    load = START_SECONDS + size / LOADING_BYTES_PER_SECOND
    forward = tokens / cost["forward_tokens_per_second"] if cost and "forward_tokens_per_second" in cost else None
    run_seconds = run.seconds

    def if_timed(seconds: float | None) -> float | None:
        return None if forward is None or seconds is None else seconds

    grams = layers * (4 * gram_tokens * width + 8 * gram_tokens * gram_tokens)
    searching = size + layer_bytes + 4 * tokens * width * (layers // 4 + 2)
    one_plan = None if forward is None or not cost else load + ONE_PLAN_RUNS * tokens / _fast_rate(cost)
    return [
        StageNeed("measure", size + grams, 2**20, if_timed(load + MEASURE_RUNS * (forward or 0))),
        StageNeed("search, one threshold", searching, 2**20, one_plan),
        StageNeed("search, whole path", searching, 2**24, path_seconds(facts, cost, tokens)),
        StageNeed("merge", merged.stage_memory_bytes["merge"], merged.disk_bytes, if_timed(run_seconds.get("merge"))),
        StageNeed("merge --stream", (longest + 1) * layer_bytes // 3, merged.disk_bytes, 2 * load - START_SECONDS),
        StageNeed("recover", healing.stage_memory_bytes["heal"], healing.disk_bytes, if_timed(run_seconds.get("heal"))),
        StageNeed("evaluate", merged.stage_memory_bytes["evaluate"], 2**20, if_timed(run_seconds.get("evaluate"))),
    ]


def path_seconds(facts: dict[str, Any], cost: dict[str, Any] | None, tokens: int) -> float | None:
    """Seconds of a search for the plans of all thresholds; None if nothing was timed. Arguments as of `stage_needs`."""
    if not cost or "forward_tokens_per_second" not in cost:
        return None
    load = START_SECONDS + facts["size_bytes"] / LOADING_BYTES_PER_SECOND
    answers = PATH_PLANS * facts["layers"] * _answers_seconds(cost)
    return float(load + PATH_RUNS * tokens / _fast_rate(cost) + answers)


def ability_tokens(abilities: int, count: int) -> int:
    """About how many tokens so many requests of each ability have."""
    return abilities * (REQUEST_BEGIN + count * REQUEST_TOKENS)


def ability_seconds(
    facts: dict[str, Any], cost: dict[str, Any] | None, abilities: int, count: int, parts: bool = False
) -> float | None:
    """About how long it takes to leave out each layer in turn; None if the machine's speed is not known.

    Half of all layers run for each that is left out, on what requests add to their common beginning.
    """
    if not cost or "forward_tokens_per_second" not in cost:
        return None
    tokens = ability_tokens(abilities, count)
    passes = 1 + facts["layers"] / 2 * (3 if parts else 1)
    return START_SECONDS + tokens * passes / _fast_rate(cost)


def profile_seconds(facts: dict[str, Any], cost: dict[str, Any] | None, abilities: int, count: int) -> float:
    """About how long a model takes to answer requests of abilities; 0 if there are none, or nothing was timed."""
    if not abilities or not cost or "forward_tokens_per_second" not in cost:
        return 0.0
    loading = START_SECONDS + facts["size_bytes"] / LOADING_BYTES_PER_SECOND
    return float(loading + ability_tokens(abilities, count) / _fast_rate(cost))


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
    return float(seconds + START_SECONDS)


def _sampled_share(facts: dict[str, Any]) -> float:
    """What a forward pass with a sample of the vocabulary costs, of one with all of it."""
    vocabulary = facts.get("vocabulary", 0)
    if vocabulary < LARGE_VOCABULARY:
        return 1.0
    layers = facts["layers"] * facts["parameters_per_layer"]
    return float((layers + VOCABULARY_SAMPLE * facts["width"]) / (layers + vocabulary * facts["width"]))


def _token_seconds(cost: dict[str, Any]) -> float:
    """Seconds in which the original generates one token."""
    return float(cost["layers_ms"] + cost["rest_ms"]) / 1000


def _answers_seconds(cost: dict[str, Any]) -> float:
    """Seconds in which a model answers the sample prompts."""
    return len(SAMPLE_PROMPTS) * SAMPLE_TOKENS * _token_seconds(cost)


def _fast_rate(cost: dict[str, Any]) -> float:
    """Tokens per second in the precision in which searches, fits and training compute: bfloat16 where it is faster."""
    return float(cost.get("training_tokens_per_second", cost["forward_tokens_per_second"]))


def _evaluation_seconds(
    facts: dict[str, Any], cost: dict[str, Any], plan: MergePlan, tasks: Sequence[str], limit: int | None
) -> float:
    """Seconds of one evaluation: starting, loading the model, reading, and writing its sample answers."""
    beside = START_SECONDS + facts["size_bytes"] / LOADING_BYTES_PER_SECOND + _answers_seconds(cost)
    read = evaluated_tokens(facts, plan, PERPLEXITY_TOKENS, sum(tokens_of(task, limit) for task in tasks))
    return float(beside + read / cost["forward_tokens_per_second"])


def _healing_seconds(facts: dict[str, Any], cost: dict[str, Any], plan: MergePlan, recovery: RecoverySettings) -> float:
    """Seconds of training, with the loss of the held-out texts now and then, and of the original's answers before."""
    trained = recovery.steps * recovery.batch * recovery.accumulate * recovery.length
    held_out = (1 + recovery.steps // recovery.save_every) * recovery.held_out * recovery.length
    passes = evaluated_tokens(facts, plan, BACKWARD * trained + held_out, 0)
    seconds = 10 + passes / cost["training_tokens_per_second"]
    if recovery.answers == "original":  # it reads every prompt, and writes about a tenth of the text
        seconds += trained / cost["forward_tokens_per_second"]
        seconds += trained / 10 * _token_seconds(cost) / ANSWERED_TOGETHER
    return float(seconds)


def training_speed(events: Sequence[dict[str, Any]], settings: dict[str, Any]) -> float | None:
    """Tokens per second over the last steps of a recovery; None until enough steps are done.

    Args:
        events: with `time` and `step`, oldest first; only those with a loss count.
        settings: `batch`, `accumulate` and `length`.
    """
    steps = [event for event in events if "loss" in event][-20:]
    times = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(steps) if b["step"] > a["step"]]
    seconds = statistics.median(times) if times else 0.0  # the median ignores a pause or repeated steps
    if seconds <= 0 or not settings:
        return None
    return float(settings["batch"] * settings["accumulate"] * settings["length"] / seconds)
