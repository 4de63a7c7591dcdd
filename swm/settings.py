"""What users set: an experiment, a recovery and its presets. No torch: pages show them, the engine follows them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from swm.checked import Between, checked
from swm.errors import SettingsError

FIT_TOKENS = 24_576  # to fit merged layers on: 43 times SmolLM2-135M's width; twice as many made no difference
WINDOW_FIT_TOKENS = 4096  # to fit a window while searching; the plan chosen is fitted on more when it is merged
PLAN_BUDGET = 400  # plans that a planner with a budget tries
PRECISIONS = ("auto", "exact", "bfloat16")  # of a search: exact is the model's own format
SAMPLE_PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a little bear who",
    "Question: What do plants need to grow?\nAnswer:",
)
PERPLEXITY_TEXTS = ("lambada", "squad")  # measured unless others are named


@checked
class ExperimentSettings:
    """What an experiment measures: the model and its calibration text."""

    model: str
    texts: str = "lambada"
    count: int = 10
    length: int = 128
    seed: int = 1234
    dtype: str = "auto"


@checked
class RecoverySettings:
    """What LoRA does. One step sees batch * accumulate sequences of at most `length` tokens.

    Attributes:
        loss_on: "text" packs the examples and learns every token; "response" learns the answer's tokens only.
        target: "text" learns the text's own next token; "original" learns the original model's probabilities for it
            (distillation), which teaches no new text but what was lost; "hidden" also its states behind merged layers.
        adapt: "all" layers get adapters, or "above": those from two below the lowest merged layer up, since everything
            below gives what it gave before. Nothing has to be differentiated there: the higher the windows, the faster.
            "near": the merged layers and their neighbours.
        checkpointing: "on" computes activations again in the backward pass instead of keeping them: a third slower,
            much less memory; "auto" when they would take more than half of what is free.
        repair: "fit" solves the last projection of each merged layer by least squares before the training, see
            `swm.merging.fit`: a minute that makes up for most of the loss.
        held_out: sequences kept apart; the checkpoint with the lowest loss on them is the result.
    """

    preset: str = "quick"
    texts: str = "instructions"
    loss_on: Literal["text", "response"] = "text"
    target: Literal["text", "original", "hidden"] = "text"
    adapt: Literal["all", "above", "near"] = "all"
    checkpointing: Literal["auto", "on", "off"] = "auto"
    repair: Literal["fit", "none"] = "fit"
    steps: Annotated[int, Between(1, 1_000_000)] = 120
    batch: Annotated[int, Between(1, 4096)] = 8
    accumulate: Annotated[int, Between(1, 4096)] = 1
    length: Annotated[int, Between(8, 131_072)] = 256
    rank: Annotated[int, Between(1, 1024)] = 16
    alpha: Annotated[int, Between(1, 8192)] = 32
    dropout: Annotated[float, Between(0, 0.9)] = 0.0
    learning_rate: Annotated[float, Between(1e-8, 1.0)] = 2e-3
    warmup_steps: Annotated[int, Between(0, 1_000_000)] = 10
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    held_out: Annotated[int, Between(1, 10_000)] = 16
    save_every: Annotated[int, Between(1, 1_000_000)] = 30
    seed: Annotated[int, Between(0, 2**32 - 1)] = 1234


# "paper": the released settings (LLM-Pruner's recovery): 2 epochs of 51,760 examples in batches of 64.
PRESETS = {
    "quick": RecoverySettings(),
    "standard": RecoverySettings(preset="standard", steps=480, learning_rate=1e-3, warmup_steps=30, save_every=60),
    "paper": RecoverySettings(
        preset="paper",
        texts="alpaca-cleaned",
        loss_on="response",
        repair="none",
        steps=1616,
        batch=4,
        accumulate=16,
        rank=8,
        alpha=16,
        dropout=0.05,
        learning_rate=1e-4,
        warmup_steps=100,
        schedule="linear",
        held_out=2000,
        save_every=200,
    ),
}


PRESET_HELP = {
    "quick": "minutes on a processor for 135 M parameters",
    "standard": "four times as long at half the learning rate",
    "paper": "the released settings: alpaca-cleaned from the hub, answers only, hours on a GPU",
}


def preset_settings(preset: str, **changes: Any) -> RecoverySettings:
    """A preset with some settings changed; None leaves a setting as it is."""
    if preset not in PRESETS:
        raise SettingsError(f"'{preset}' is not a recovery preset. Choose one of: {', '.join(PRESETS)}.")
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = replace(PRESETS[preset], **changes)
    if "warmup_steps" not in changes:
        settings = replace(settings, warmup_steps=min(settings.warmup_steps, settings.steps // 4))
    return settings
