"""User settings: an experiment, a recovery and its presets. No torch, because pages import this file."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any, Literal

from swm.checked import Between, checked
from swm.errors import SettingsError

FIT_TOKENS = 24_576  # text for fitting merged layers: 43 times SmolLM2-135M's width; doubling it made no difference
WINDOW_FIT_TOKENS = 4096  # text for fitting a window during a search; the merge itself uses FIT_TOKENS
VOCABULARY_SAMPLE = 16_384  # tokens of a vocabulary that losses of a search are estimated from
LARGE_VOCABULARY = 4 * VOCABULARY_SAMPLE  # tokens from which on it is sampled
PLAN_BUDGET = 400  # number of plans that a planner with a budget tries
CACHE_TOKENS = 4096  # of which a memory target counts the keys and values
DEFAULT_THRESHOLD = 0.9  # that a search begins with
LEAST_THRESHOLD = 0.0001  # that a page takes
PRECISIONS = ("auto", "exact", "bfloat16")  # of a search; exact is the model's own dtype
SKIPPED_TOKENS = 4  # first tokens of each text that similarity leaves out: their huge norms drown all others
SAMPLE_PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a little bear who",
    "To make a cup of tea, first",
)
SAMPLE_TOKENS = 32  # that each prompt is continued by
GGUF_TYPES = ("F16", "Q8_0", "BF16", "F32", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # that can be written, the default first
QUICK_REQUESTS, USUAL_REQUESTS, KEPT_REQUESTS = 10, 40, 24  # of an ability: quick look, usual, to judge each plan by
PERPLEXITY_TEXTS = ("lambada", "squad")  # the default texts


@checked
class ExperimentSettings:
    """What an experiment measures: the model and its calibration text."""

    model: str
    texts: str = "lambada"
    count: int = 10
    length: int = 128
    seed: int = 1234
    dtype: str = "auto"

    @property
    def token_count(self) -> int:
        """Tokens of all texts."""
        return self.count * self.length


@checked
class RecoverySettings:
    """Settings of LoRA training. One step sees batch * accumulate sequences of at most `length` tokens.

    Attributes:
        loss_on: "text" packs the examples and trains on every token; "response" trains on the answers' tokens only.
        answers: "original" lets the original model answer the text's prompts first, and trains on those answers
            (self-data distillation, arXiv:2410.09982).
        target: "text" trains on the text's own next token; "original" on the original model's probabilities for it
            (distillation), which restores what was lost without teaching new text; "hidden" also on the original's
            hidden states after the merged layers.
        train: "adapters" trains low-rank matrices beside the linear maps (LoRA); "weights" the layers' own linear maps
            and norms, with 16 bytes for each number: for few layers, see `adapt`.
        adapt: layers that are trained. "all"; "above": from two below the lowest merged layer up, since all layers
            below give the same outputs as before and need no backward pass: the higher the windows, the faster;
            "near": the merged layers and their neighbours; "last": the last three, and with train "weights" the output
            head where it has weights of its own (arXiv:2411.15558).
        checkpointing: "on" recomputes activations in the backward pass instead of storing them: a third slower, much
            less memory; "auto" does so when they would take more than half of the free memory.
        repair: "fit" solves the last projection of each merged layer by least squares before training, see
            `swm.merging.fit`: takes a minute and makes up for most of the quality loss; "scale" only gives the hidden
            state its former size, see `swm.merging.scale`.
        quantization: "nf4" keeps the frozen weights in four bits while adapters are trained (QLoRA), which are then
            folded into the weights with all their digits.
        held_out: sequences set aside; the checkpoint with the lowest loss on them is the result.
    """

    preset: str = "quick"
    texts: str = "instructions"
    loss_on: Literal["text", "response"] = "text"
    answers: Literal["given", "original"] = "given"
    target: Literal["text", "original", "hidden"] = "text"
    train: Literal["adapters", "weights"] = "adapters"
    adapt: Literal["all", "above", "near", "last"] = "all"
    checkpointing: Literal["auto", "on", "off"] = "auto"
    repair: Literal["fit", "scale", "none"] = "fit"
    quantization: Literal["none", "nf4"] = "none"
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


SETTINGS = tuple(field.name for field in fields(RecoverySettings) if field.name != "preset")


def changed_setting(text: str) -> tuple[str, Any]:
    """A setting and its value from "learning_rate=1e-3"; hyphens do as well.

    Raises:
        SettingsError: if there is no such setting, or the value is not of its type.
    """
    name, found, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not found or name not in SETTINGS:
        raise SettingsError(
            f"'{text[:40]}' is not a setting of healing. Write NAME=VALUE, with one of: {', '.join(SETTINGS)}."
        )
    kind = type(getattr(RecoverySettings(), name))
    try:
        return name, kind(value)
    except ValueError:
        raise SettingsError(
            f"{name} must be {'a whole number' if kind is int else 'a number'} (got '{value[:20]}')."
        ) from None


@checked
class SearchOptions:
    """How a plan is searched.

    Attributes:
        rule: merge rule; None is the planner's own, and DEFAULT_RULE for a threshold.
        precision: of similarities: "auto" is bfloat16 where that is faster, "exact" the model's own.
        budget: maximum number of plans that a planner tries, if it takes a budget.
        minutes: about how long it may try instead; the plan then depends on the machine.
        keep_period: leave layers of the kinds that llama.cpp takes them for by their place; no effect on families
            without such a pattern.
        keep: abilities that plans are judged by, with their weights, instead of by perplexity: "code=2,reading=1".
    """

    rule: str | None = None
    precision: Literal["auto", "exact", "bfloat16"] = "auto"
    budget: int = PLAN_BUDGET
    minutes: float | None = None
    keep_period: bool = False
    keep: str = ""


UNSAID = {"quantization": "none", "answers": "given", "train": "adapters"}  # of runs older than these settings
# "paper": the released settings (LLM-Pruner's recovery): 2 epochs of 51,760 examples in batches of 64.
PRESETS = {
    "quick": RecoverySettings(),
    "standard": RecoverySettings(preset="standard", steps=480, learning_rate=1e-3, warmup_steps=30, save_every=60),
    "own-answers": RecoverySettings(preset="own-answers", answers="original"),
    "qlora": RecoverySettings(preset="qlora", quantization="nf4"),
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
    "quick": "120 steps, to try plans out",
    "standard": "480 steps at half the learning rate",
    "own-answers": "as quick, on answers that the original writes to the text's prompts first, so that the model keeps "
    "its style; takes about twice as long, the writing once for each model and text",
    "qlora": "as quick, with the frozen weights in four bits: for models that do not fit otherwise (pip install "
    "bitsandbytes)",
    "paper": "the paper's released settings: alpaca-cleaned from the hub, loss on answers only; hours on a GPU",
}


def preset_settings(preset: str, **changes: Any) -> RecoverySettings:
    """A preset with some settings changed; None leaves a setting unchanged."""
    if preset not in PRESETS:
        raise SettingsError(f"'{preset}' is not a recovery preset. Choose one of: {', '.join(PRESETS)}.")
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = replace(PRESETS[preset], **changes)
    if "warmup_steps" not in changes:
        settings = replace(settings, warmup_steps=min(settings.warmup_steps, settings.steps // 4))
    return settings
