"""Recovery of a merged model with LoRA. The only module that imports peft."""

from __future__ import annotations

import copy
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.pytorch_utils import Conv1D

from swm.decoder import find_decoder
from swm.distill import IGNORED, Distillation, Teacher, layer_pairs
from swm.errors import Cancelled, ModelError, SettingsError, TextError, first_line
from swm.estimate import activation_bytes
from swm.files import replace_file
from swm.models import bfloat16_is_faster
from swm.parallel import any_of, first_alone, is_first, is_sharded, world_size
from swm.placement import free_bytes_on
from swm.presets import RecoverySettings
from swm.texts import Example, end_token, leading_tokens, packed_rows, token_ids

log = logging.getLogger(__name__)

OnStep = Callable[[int, int, dict[str, float]], None]


def recover(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    folder: Path,
    on_step: OnStep | None = None,
    *,
    original: PreTrainedModel | None = None,
    layers: Sequence[int] | None = None,
    behind: Sequence[tuple[int, int]] = (),
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train LoRA adapters on the linear maps of the layers and fold them in.

    Several processes (`accelerate launch`) share each batch: a step sees the same sequences whatever their number. The
    first one writes.

    Args:
        model: the merged model; it is changed, and so are tensors that it shares with the original.
        examples: recovery examples; the first ones are held out, the others are drawn in an order that `seed` fixes.
        folder: for checkpoints and `adapter/` (a peft folder); a checkpoint found there is gone on from.
        on_step: called after each step with (step, steps, numbers: loss, learning_rate, held_out_loss, ...); may raise
            Cancelled, then a checkpoint is written first.
        original: the model to learn from when `settings.target` is not "text".
        layers: indexes of those that get adapters; None for all.
        behind: (layer of the merged model, layer of the original) whose outputs are to be alike with target "hidden".

    Returns:
        The model with the adapters folded in (of processes that share its weights in the first one alone), and a
        summary: trained parameters and tokens, held-out losses.

    Raises:
        TextError: if there are too few examples. ModelError: if the loss is not finite. SettingsError: if the
            processes cannot share a batch.
    """
    check_shared(settings)
    teacher = None
    if settings.target != "text":
        if original is None:
            raise ValueError("The target is the original model's output, and no original model is given.")
        teacher = Teacher(original, layer_pairs(model, original, behind if settings.target == "hidden" else ()))
    rows = training_rows(tokenizer, examples, settings)
    whole = copy.deepcopy(model) if is_sharded() and is_first() else model  # to fold into: the other one is taken apart
    uses_cache = getattr(model.config, "use_cache", None)  # training switches it off, and a saved model would stay slow
    adapted = _with_adapters(model, settings, layers)
    trainer, watch = _trainer(adapted, rows, settings, folder, on_step, teacher)
    _train(trainer, folder)
    if watch.failure:
        raise watch.failure
    summary = {
        "bfloat16": trainer.args.bf16,
        "trained_parameters": sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        "training_tokens": settings.steps * settings.batch * settings.accumulate * settings.length,  # padding included
        "sequences": len(rows) - settings.held_out,
        "held_out_losses": [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row],
    }
    folded = _folded(trainer, adapted, whole, folder / "adapter")
    if uses_cache is not None:
        folded.config.use_cache = uses_cache
    return folded.eval(), summary


def _folded(trainer: Trainer, adapted: Any, whole: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Save the adapters and fold them in; where processes share the weights, into a whole model in the first one."""
    weights = trainer.accelerator.get_state_dict(trainer.model) if is_sharded() else None
    if is_first():
        adapted.save_pretrained(folder, state_dict=weights)
    if is_sharded():
        if not is_first():
            return whole
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(whole, folder)
    folded: PreTrainedModel = adapted.merge_and_unload()
    return folded


def _with_adapters(model: PreTrainedModel, settings: RecoverySettings, layers: Sequence[int] | None) -> Any:
    """The model with new LoRA adapters in some layers; the same ones for the same seed."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=_linear_maps(model, layers),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)
    with warnings.catch_warnings():
        # peft tells what it adapts by itself: GPT-2's Conv1D, experts that it leaves alone.
        warnings.simplefilter("ignore")
        try:
            return get_peft_model(model, lora)
        except ValueError as error:  # a kind of layer that peft knows it cannot adapt, or none at all
            raise ModelError(
                f"{type(model).__name__} cannot be healed with LoRA: {first_line(error)} Evaluate it as it is."
            ) from None


def check_adapts(model: PreTrainedModel, settings: RecoverySettings) -> None:
    """Raise ModelError if LoRA cannot adapt such a model; found out without weights, before anything long."""
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        bare: Any = type(model)(config)
    _with_adapters(bare, settings, None)


def _train(trainer: Trainer, folder: Path) -> None:
    """Train to the last step, from the last checkpoint on if there is one."""
    with first_alone():
        found = _last_checkpoint(folder)
    if found is None:
        trainer.train()
        return
    last, state = found
    try:
        if state.global_step < trainer.args.max_steps:
            trainer.train(resume_from_checkpoint=str(last))
        else:  # it ended between the last step and the folding
            trainer.state = state
            trainer._load_from_checkpoint(state.best_model_checkpoint or str(last))
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ModelError(
            f"The checkpoint {last} is of another model or other settings: its adapters have other shapes. Delete the "
            f"folder {folder} and recover again."
        ) from None


def _last_checkpoint(folder: Path) -> tuple[Path, TrainerState] | None:
    """The last checkpoint that was written to its end; those that a killed process left half-written are removed.

    The Trainer writes its state after everything else of a checkpoint, but not at once.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            state = TrainerState.load_from_json(str(path / "trainer_state.json"))
        except (OSError, ValueError, TypeError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        if (path / "pytorch_model_fsdp.bin").exists() != is_sharded():
            raise SettingsError(
                f"The recovery in {folder} was begun by processes that {'do not ' if is_sharded() else ''}share the "
                "weights (FSDP). Go on in the same way, or delete that folder and recover again."
            )
        if state.best_model_checkpoint and not Path(state.best_model_checkpoint).is_dir():
            state.best_model_checkpoint = str(path)
        return path, state
    return None


def _linear_maps(model: PreTrainedModel, layers: Sequence[int] | None) -> list[str]:
    """Full names of the linear maps in these layers."""
    decoder = find_decoder(model).layers
    chosen = range(len(decoder)) if layers is None else layers
    inside = {id(module) for index in chosen for module in decoder[index].modules()}
    # State-space mixers (they have A_log) read these weights without calling the module: an adapter would do nothing.
    mixers = [module for index in chosen for module in decoder[index].modules() if hasattr(module, "A_log")]
    inside -= {id(getattr(mixer, name, None)) for mixer in mixers for name in ("out_proj", "conv1d")}
    linear = (nn.Linear, Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, linear) and id(module) in inside]


def training_rows(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], settings: RecoverySettings
) -> list[dict[str, list[int]]]:
    """Token ids with labels, all of `settings.length` tokens.

    Packed ("text"): the examples one after another, end-of-text between them, cut into equal parts. Else ("response"):
    one example each, cut or padded; the prompt and the padding have no label.

    Raises:
        TextError: if there are too few for the held-out ones and one batch.
    """
    rows = _rows(tokenizer, examples, settings)
    if len(rows) < settings.held_out + settings.batch:
        raise TextError(
            f"The recovery text gives {len(rows)} sequences of {settings.length} tokens; {settings.held_out} are held "
            f"out and a batch needs {settings.batch}. Choose a longer text or lower --length, --batch or --held-out."
        )
    return rows


def _rows(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], settings: RecoverySettings
) -> list[dict[str, list[int]]]:
    length = settings.length
    if settings.loss_on == "text":
        parts = packed_rows(tokenizer, [example.prompt + example.response for example in examples], length)
        return [{"input_ids": part, "labels": part, "attention_mask": [1] * length} for part in parts]
    prefix, end = leading_tokens(tokenizer), end_token(tokenizer)
    prompts = token_ids(tokenizer, [example.prompt for example in examples])
    responses = token_ids(tokenizer, [example.response for example in examples])
    rows = []
    for prompt, response in zip(([*prefix, *ids] for ids in prompts), responses, strict=True):
        ids = [*prompt, *response, end][:length]
        labels = ([IGNORED] * len(prompt) + [*response, end])[:length]
        if all(label == IGNORED for label in labels):
            continue  # the prompt alone fills the sequence
        padding = length - len(ids)
        rows.append(
            {
                "input_ids": ids + [end] * padding,
                "labels": labels + [IGNORED] * padding,
                "attention_mask": [1] * len(ids) + [0] * padding,
            }
        )
    return rows


def _trainer(
    adapted: Any,
    rows: list[dict[str, list[int]]],
    settings: RecoverySettings,
    folder: Path,
    on_step: OnStep | None,
    teacher: Teacher | None,
) -> tuple[Trainer, _Watch]:
    own_batch, device = settings.batch // world_size(), _training_device(adapted)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=own_batch,
        per_device_eval_batch_size=own_batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        max_grad_norm=1.0,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=settings.save_every,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        load_best_model_at_end=settings.steps >= settings.save_every,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        report_to=[],
        disable_tqdm=True,
        seed=settings.seed,
        data_seed=settings.seed,
        label_names=["labels"],
        bf16=_in_bfloat16(device, folder),
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process trains on one GPU: the Trainer would multiply the batch by all it sees
    if _checkpoints(adapted, settings):
        # The name changed between releases of transformers, that of the setting too.
        enable = getattr(adapted, "activation_checkpointing_enable", None) or adapted.gradient_checkpointing_enable
        enable()
        adapted.enable_input_require_grads()
    watch = _Watch(settings.steps, on_step)
    held_out, train = rows[: settings.held_out], rows[settings.held_out :]
    train = train[: len(train) // settings.batch * settings.batch]  # several processes could not share half a batch
    data: dict[str, Any] = {"train_dataset": train, "eval_dataset": held_out, "callbacks": [watch]}
    trainer = Distillation(teacher, adapted, arguments, **data) if teacher else Trainer(adapted, arguments, **data)
    trainer.remove_callback(_printer())
    return trainer, watch


def check_shared(settings: RecoverySettings) -> None:
    """Raise SettingsError for what several processes cannot do together."""
    if settings.batch % world_size():
        raise SettingsError(
            f"{world_size()} processes cannot share a batch of {settings.batch} evenly. Choose --batch "
            f"{-(-settings.batch // world_size()) * world_size()}, or another number of processes."
        )
    if is_sharded() and settings.target != "text":
        raise SettingsError("Processes that share the weights (FSDP) learn --target text alone. Choose that.")


def _training_device(adapted: Any) -> torch.device:
    """Where it is trained; processes that share the weights take them to their GPUs later."""
    device: torch.device = next(adapted.parameters()).device
    return torch.device("cuda") if is_sharded() and torch.cuda.is_available() else device


def _in_bfloat16(device: torch.device, folder: Path) -> bool:
    """Whether to train in bfloat16; found out once, so that a recovery goes on in the format it began with."""
    file = folder / "precision.txt"
    with first_alone():
        if not file.exists():
            replace_file(file, b"bfloat16" if bfloat16_is_faster(device) else b"float32")
        return file.read_text() == "bfloat16"


def _checkpoints(adapted: Any, settings: RecoverySettings) -> bool:
    """Whether activations are computed again instead of kept."""
    if settings.checkpointing != "auto":
        return settings.checkpointing == "on"
    tokens, config = settings.batch // world_size() * settings.length, adapted.config.get_text_config()
    needed = activation_bytes(tokens, config.num_hidden_layers, config.hidden_size)
    return needed > free_bytes_on(_training_device(adapted)) / 2


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


class _Watch(TrainerCallback):
    """Passes numbers on, and stops the training in good order: with a checkpoint when the user cancelled."""

    def __init__(self, steps: int, on_step: OnStep | None) -> None:
        self.failure: BaseException | None = None
        self._steps, self._on_step = steps, on_step or (lambda step, steps, numbers: None)

    def on_log(  # type: ignore[override]
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        names = {
            "loss": "loss",
            "learning_rate": "learning_rate",
            "eval_loss": "held_out_loss",
            "grad_norm": "grad_norm",
        }
        numbers = {names[key]: float(value) for key, value in logs.items() if key in names}
        if not numbers:
            return
        if any_of(not all(math.isfinite(value) for value in numbers.values())):
            self.failure = ModelError(
                f"The loss is not a number any more at step {state.global_step}. Recover again with a lower "
                "--learning-rate."
            )
            control.should_training_stop = True
            return
        cancelled = False
        try:
            self._on_step(state.global_step, self._steps, numbers)
        except Cancelled:
            cancelled = True
        if any_of(cancelled):  # all stop at the same step
            self.failure = Cancelled()
            control.should_training_stop = control.should_save = True
