"""What our files on disk have to hold, so that a damaged one is told of by name and never breaks a page."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from swm.errors import ExperimentError
from swm.settings import RecoverySettings

Shape = dict[str, Any]

NUMBER: Shape = {"type": "number"}
SHARE: Shape = {"type": "number", "minimum": 0, "maximum": 1}
POSITIVE: Shape = {"type": "number", "exclusiveMinimum": 0}
WHOLE: Shape = {"type": "integer"}
TEXT: Shape = {"type": "string"}


def an(required: dict[str, Shape], **optional: Shape) -> Shape:
    """An object with these entries; others are allowed."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def every(shape: Shape) -> Shape:
    return {"type": "object", "additionalProperties": shape}


def many(shape: Shape) -> Shape:
    return {"type": "array", "items": shape}


def maybe(shape: Shape) -> Shape:
    return {"anyOf": [shape, {"type": "null"}]}


INTERVAL = an({"value": NUMBER, "low": NUMBER, "high": NUMBER})
NEEDED = ("preset", "texts", "steps", "batch", "accumulate", "length")
KINDS = {"str": TEXT, "int": WHOLE, "float": NUMBER}
RECOVERY = {
    **an(
        {f.name: KINDS[str(f.type)] for f in fields(RecoverySettings) if f.name in NEEDED},
        trained_parameters=WHOLE,
        seconds=NUMBER,
        text_hash=TEXT,
        examples_hash=TEXT,
        **{f.name: KINDS[str(f.type)] for f in fields(RecoverySettings) if f.name not in NEEDED},
    ),
    "dependentRequired": {"trained_parameters": ["seconds", "rank", "learning_rate"]},
}
TASK = an({"value": SHARE, "stderr": SHARE, "metric": TEXT, "documents": WHOLE})
SCORES = an(
    {"tasks": every(TASK), "perplexity": every(INTERVAL), "limit": maybe(WHOLE)},
    samples=many(an({"prompt": TEXT, "answer": TEXT})),
    conditions=an({"versions": every(TEXT), "dtype": TEXT, "device": TEXT}, seconds=NUMBER),
)
COSTS = ("layers_ms", "rest_ms", "forward_tokens_per_second", "training_tokens_per_second")
RATES = dict.fromkeys(("tokens_per_second", "latency_ms", "peak_memory_bytes"), NUMBER)
TIMING = an({}, **RATES, speedup=INTERVAL, throughput=every(NUMBER), baseline=an({}, **RATES))
DOCUMENTS = an(
    {},
    tasks=every(many(an({"id": TEXT, "correct": SHARE, "question": TEXT, "right": TEXT, "picked": TEXT}))),
)
SHAPES: dict[str, Shape] = {
    "experiment.json": an(
        {
            "settings": an(
                {"model": TEXT, "texts": TEXT, "count": WHOLE, "length": WHOLE, "seed": WHOLE, "dtype": TEXT}
            ),
            "model_facts": an(
                {
                    "layers": {**WHOLE, "minimum": 1},
                    "width": {**WHOLE, "minimum": 1},
                    "dtype": TEXT,
                    **dict.fromkeys(("parameters", "parameters_per_layer", "size_bytes"), POSITIVE),
                },
                architecture=TEXT,
            ),
            "created": NUMBER,
        },
        text_hash=TEXT,
    ),
    "state.json": an(
        {},
        **dict.fromkeys(("stage", "status", "text", "error", "host"), TEXT),
        **dict.fromkeys(("done", "total", "pid", "memory_bytes", "gpu_memory_bytes", "memory_kills"), WHOLE),
        **dict.fromkeys(("started", "heartbeat", "process_started", "cpu_percent"), NUMBER),
        command=many(TEXT),
    ),
    "run.json": an(
        {"plan": an({})},
        threshold=maybe(NUMBER),
        similarity=maybe(NUMBER),
        created=NUMBER,
        method=TEXT,
        origin=an({"planner": TEXT, "source": TEXT, "settings": an({})}),
        merge=an({}, parameters=WHOLE, size_bytes=WHOLE),
        recovery=RECOVERY,
        recovery_started=maybe(RECOVERY),
        pending=an({"token": TEXT, "scores": TEXT, "settings": an({})}),
    ),
    "cost.json": an({}, **dict.fromkeys(COSTS, POSITIVE)) | {"required": ["layers_ms", "rest_ms"]},
    "scores.json": SCORES,
    "scores-merged.json": SCORES,
    "timing.json": TIMING,
    "timing-merged.json": TIMING,
    "documents.json": DOCUMENTS,
    "documents-merged.json": DOCUMENTS,
    "similarity": an(
        {
            "matrix": many(many(NUMBER)),
            "block_influence": many(NUMBER),
            "norm": many(NUMBER),
            "tokens": WHOLE,
            "conditions": an({"dtype": TEXT, "seconds": NUMBER}),
        },
        warning=TEXT,
        text_hash=TEXT,
    ),
    "plans": an(
        {
            "layer_count": WHOLE,
            "windows": many({"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 2}),
            "rule": TEXT,
            "planner": TEXT,
            "similarity": maybe(NUMBER),
            "perplexity": NUMBER,
            "perplexity_original": NUMBER,
            "seconds": NUMBER,
        },
        budget=WHOLE,
        version=WHOLE,
        text_hash=TEXT,
        scoring=TEXT,
    ),
    "studies": an(
        {"failed": every(TEXT), "grid": an({})},
        scores=many(
            an(
                {
                    "rule": TEXT,
                    "threshold": NUMBER,
                    "layers": WHOLE,
                    "windows": many(many(WHOLE)),
                    "task": TEXT,
                    "limit": maybe(WHOLE),
                    **TASK["properties"],
                }
            )
        ),
    ),
    "event": an(
        {"step": WHOLE, "steps": WHOLE, "time": NUMBER},
        stage=TEXT,
        loss=NUMBER,
        held_out_loss=NUMBER,
        learning_rate=NUMBER,
        begun={"type": "boolean"},
    ),
}


def is_like(data: Any, name: str) -> bool:
    """Whether data are what a file of that name holds."""
    return _validator(name).is_valid(data)


def check_like(data: Any, name: str, where: str) -> None:
    """Raise ExperimentError, naming the file and the entry, unless data are what a file of that name holds."""
    error = next(iter(_validator(name).iter_errors(data)), None)
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the whole"
        raise ExperimentError(
            f"{where} cannot be read: {place}: {error.message[:200]}. Delete it and repeat the step that wrote it."
        )


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(SHAPES[name])
