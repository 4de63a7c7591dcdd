"""What each of our files holds, written out by hand: a value of another kind in any place is refused by its name."""

import copy

import pytest

from swm.errors import ExperimentError
from swm.workspace.records import check_record, is_record

RECOVERY = {
    "preset": "quick", "texts": "instructions", "loss_on": "text", "target": "text", "repair": "fit", "adapt": "all",
    "checkpointing": "auto", "schedule": "cosine", "steps": 120, "batch": 8, "accumulate": 1, "length": 256, "rank": 16,
    "alpha": 32, "warmup_steps": 10, "held_out": 16, "save_every": 30, "seed": 1234, "dropout": 0.5,
    "learning_rate": 0.002, "trained_parameters": 9, "seconds": 2.5, "text_hash": "a", "examples_hash": "b",
}  # fmt: skip
TASK = {"value": 0.5, "stderr": 0.1, "metric": "acc", "documents": 40}
PERPLEXITY = {"value": 20.5, "low": 19.5, "high": 21.5}
SPEED = {"tokens_per_second": 9.5, "latency_ms": 5.5, "peak_memory_bytes": 5.5}
# A whole number stands where only whole numbers may, 1.5 where any number may.
FILES = {
    "experiment.json": {
        "settings": {"model": "m", "texts": "lambada", "count": 10, "length": 128, "seed": 1, "dtype": "auto"},
        "model_facts": {
            "layers": 6, "width": 8, "dtype": "float32", "architecture": "A",
            "parameters": 9.5, "parameters_per_layer": 1.5, "size_bytes": 4.5,
        },
        "created": 1.5, "text_hash": "a",
    },
    "state.json": {
        "stage": "merge", "status": "done", "text": "t", "error": "e", "host": "h", "done": 1, "total": 2, "pid": 3,
        "memory_bytes": 4, "gpu_memory_bytes": 5, "memory_kills": 0, "started": 1.5, "heartbeat": 2.5,
        "process_started": 0.5, "cpu_percent": 99.5, "command": ["merge"],
    },
    "run.json": {
        "plan": {}, "threshold": 0.5, "similarity": 0.5, "created": 1.5, "method": "sleb",
        "origin": {"planner": "sleb", "source": "s", "settings": {}},
        "merge": {"parameters": 1, "size_bytes": 4}, "recovery": RECOVERY, "recovery_started": RECOVERY,
        "pending": {"token": "t", "scores": "forget", "settings": {}},
    },
    "cost.json": {
        "layers_ms": 1.5, "rest_ms": 1.5, "forward_tokens_per_second": 1.5, "training_tokens_per_second": 1.5,
    },
    "scores.json": {
        "tasks": {"boolq": TASK}, "perplexity": {"lambada": PERPLEXITY}, "limit": 40,
        "samples": [{"prompt": "p", "answer": "a"}],
        "conditions": {"versions": {"torch": "2"}, "dtype": "float32", "device": "cpu", "seconds": 1.5},
    },
    "timing.json": {**SPEED, "speedup": PERPLEXITY, "throughput": {"4": 1.5}, "baseline": SPEED},
    "documents.json": {
        "tasks": {"boolq": [{"id": "1", "correct": 0.5, "question": "q", "right": "a", "picked": "b"}]},
    },
    "similarity": {
        "matrix": [[0.5]], "block_influence": [0.5], "norm": [0.5], "tokens": 9, "warning": "w", "text_hash": "a",
        "conditions": {"dtype": "float32", "seconds": 1.5},
    },
    "plans": {
        "layer_count": 6, "windows": [[1, 2]], "rule": "rdsc", "planner": "sleb", "similarity": 0.5, "perplexity": 1.5,
        "perplexity_original": 1.5, "seconds": 1.5, "budget": 9, "version": 3, "text_hash": "a", "scoring": "exact",
    },
    "studies": {
        "failed": {"cell": "reason"}, "grid": {},
        "scores": [
            {"rule": "rdsc", "threshold": 0.5, "layers": 5, "windows": [[1, 2]], "task": "boolq", "limit": 4, **TASK}
        ],
    },
    "event": {
        "step": 1, "steps": 2, "time": 1.5, "stage": "recover", "loss": 1.5, "held_out_loss": 1.5, "learning_rate": 0.5,
        "begun": True,
    },
}  # fmt: skip
FILES |= {f"{name}-merged.json": FILES[f"{name}.json"] for name in ("scores", "timing", "documents")}
NEEDED_RECOVERY = ("preset", "texts", "steps", "batch", "accumulate", "length", "seconds", "rank", "learning_rate")
NEEDED = {
    "experiment.json": {
        "settings", "model_facts", "created", *(f"settings.{name}" for name in FILES["experiment.json"]["settings"]),
        *(f"model_facts.{name}" for name in FILES["experiment.json"]["model_facts"] if name != "architecture"),
    },
    "run.json": {
        "plan", "origin.planner", "origin.source", "origin.settings", "pending.token", "pending.scores",
        "pending.settings", *(f"{at}.{name}" for at in ("recovery", "recovery_started") for name in NEEDED_RECOVERY),
    },
    "cost.json": {"layers_ms", "rest_ms"},
    "scores.json": {
        "tasks", "perplexity", "limit", *(f"tasks.boolq.{name}" for name in TASK),
        *(f"perplexity.lambada.{name}" for name in PERPLEXITY), "samples.0.prompt", "samples.0.answer",
        "conditions.versions", "conditions.dtype", "conditions.device",
    },
    "timing.json": {f"speedup.{name}" for name in PERPLEXITY},
    "documents.json": {f"tasks.boolq.0.{name}" for name in ("id", "correct", "question", "right", "picked")},
    "similarity": {
        "matrix", "block_influence", "norm", "tokens", "conditions", "conditions.dtype", "conditions.seconds",
    },
    "plans": {
        "layer_count", "windows", "rule", "planner", "similarity", "perplexity", "perplexity_original", "seconds",
    },
    "studies": {
        "failed", "grid",
        *(f"scores.0.{name}" for name in (*TASK, "rule", "threshold", "layers", "windows", "task", "limit")),
    },
    "event": {"step", "steps", "time"},
}  # fmt: skip
NEEDED |= {f"{name}-merged.json": NEEDED[f"{name}.json"] for name in ("scores", "timing", "documents")}
OUT_OF_RANGE = [
    ("experiment.json", "model_facts.layers", 0), ("experiment.json", "model_facts.width", 0),
    *(("experiment.json", f"model_facts.{name}", 0) for name in ("parameters", "parameters_per_layer", "size_bytes")),
    *(("cost.json", name, 0) for name in FILES["cost.json"]),
    *((file, f"tasks.boolq.{name}", value) for file in ("scores.json", "scores-merged.json")
      for name in ("value", "stderr") for value in (-0.1, 1.1)),
    *(("documents.json", "tasks.boolq.0.correct", value) for value in (-0.1, 1.1)),
    *(("studies", f"scores.0.{name}", value) for name in ("value", "stderr") for value in (-0.1, 1.1)),
    ("plans", "windows.0", [1]), ("plans", "windows.0", [1, 2, 3]),
]  # fmt: skip
MAY_BE_NULL = {
    "run.json": {"threshold", "similarity", "recovery_started"}, "scores.json": {"limit"},
    "scores-merged.json": {"limit"}, "plans": {"similarity"}, "studies": {"scores.0.limit"},
}  # fmt: skip


def places(value, path=""):
    """Every place in a file: its name, and what stands there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        name = f"{path}.{key}".lstrip(".")
        yield name, inner
        yield from places(inner, name)


def changed(file, place, value=None, delete=False):
    data = copy.deepcopy(FILES[file])
    *above, key = place.split(".")
    inner = data
    for step in above:
        inner = inner[int(step)] if isinstance(inner, list) else inner[step]
    key = int(key) if isinstance(inner, list) else key
    if delete:
        del inner[key]
    else:
        inner[key] = value
    return data


def wrong_values(value):
    if isinstance(value, bool):
        return ["x", 1]
    if isinstance(value, int):
        return ["x", 1.5, [1]]
    return [{float: "x", str: 7, dict: "x", list: "x"}[type(value)]]


@pytest.mark.parametrize("file", FILES)
def test_a_value_of_another_kind_is_refused_wherever_it_stands(file):
    assert is_record(FILES[file], file)
    for place, value in places(FILES[file]):
        for wrong in wrong_values(value):
            assert not is_record(changed(file, place, wrong), file), (place, wrong)
        assert is_record(changed(file, place, None), file) == (place in MAY_BE_NULL.get(file, ())), place


@pytest.mark.parametrize("file", FILES)
def test_what_has_to_be_there_is_missed_and_nothing_else_is(file):
    for place, _ in places(FILES[file]):
        if place.rsplit(".", 1)[-1].isdigit() and not file.startswith("timing"):
            continue  # one of several
        missing = place in NEEDED.get(file, ())
        once_trained = file == "run.json" and place.endswith(".trained_parameters")
        assert is_record(changed(file, place, delete=True), file) == (not missing or once_trained), place


@pytest.mark.parametrize(("file", "place", "value"), OUT_OF_RANGE)
def test_numbers_out_of_range_are_refused(file, place, value):
    assert not is_record(changed(file, place, value), file)


def test_the_message_names_file_place_and_cure():
    with pytest.raises(
        ExperimentError,
        match=r"e/run.json cannot be read: merge.parameters must be a whole number \(got 'x'\)\. Delete it and repeat",
    ):
        check_record(changed("run.json", "merge.parameters", "x"), "run.json", "e/run.json")
    with pytest.raises(ExperimentError, match="the whole file must be an object"):
        check_record([], "run.json", "e/run.json")
