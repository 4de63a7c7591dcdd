"""transformers' Trainer for a recovery: settings, checkpoints, stopping."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from swm.disk.files import replace_file
from swm.errors import Cancelled, ModelError, SettingsError
from swm.healing.distillation import Distillation, Teacher
from swm.models.load import bfloat16_is_faster
from swm.models.offload import free_bytes_on
from swm.models.processes import any_of, first_alone, is_sharded, world_size
from swm.settings import RecoverySettings
from swm.workspace.tracked import CLUSTER_JOB
from swm.workspace.training_memory import activation_bytes

log = logging.getLogger(__name__)


OnStep = Callable[[int, int, dict[str, float]], None]
SAVING_SHARE = 0.05  # of the training's time that checkpoints may take, beside those after each look at held-out text


def train(trainer: Trainer, folder: Path) -> None:
    """Train to the last step, resuming from the last checkpoint if there is one; first, the loss before any step."""
    with first_alone():
        checkpoint = _last_checkpoint(folder)
    if checkpoint is None:
        trainer.args.eval_on_start = True
        trainer.train()
        return
    last, state = checkpoint
    try:
        if state.global_step < trainer.args.max_steps:
            trainer.train(resume_from_checkpoint=str(last))
        else:  # interrupted between the last step and folding the adapters in
            trainer.state = state
            trainer._load_from_checkpoint(state.best_model_checkpoint or str(last))
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ModelError(
            f"The checkpoint {last} belongs to another model or other settings: its adapters have different shapes. "
            f"Delete the folder {folder} and recover again."
        ) from None


def _last_checkpoint(folder: Path) -> tuple[Path, TrainerState] | None:
    """The last complete checkpoint; deletes incomplete ones that a killed process left behind.

    A checkpoint is complete if its trainer state can be read: the Trainer writes that file last.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            state = TrainerState.load_from_json(str(path / "trainer_state.json"))
        except (OSError, ValueError, TypeError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        if (path / "pytorch_model_fsdp.bin").exists() != is_sharded():
            raise SettingsError(
                f"The recovery in {folder} was started {'without' if is_sharded() else 'with'} sharded weights (FSDP). "
                "Resume it the same way, or delete that folder and recover again."
            )
        if state.best_model_checkpoint and not Path(state.best_model_checkpoint).is_dir():
            state.best_model_checkpoint = str(path)
        return path, state
    return None


def make_trainer(
    adapted: Any,
    rows: list[dict[str, list[int]]],
    settings: RecoverySettings,
    folder: Path,
    on_step: OnStep | None,
    teacher: Teacher | None,
) -> tuple[Trainer, _Watch]:
    """transformers' Trainer for a recovery, and the callback that reports and stops it."""
    own_batch, device = settings.batch // world_size(), _training_device(adapted)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    adds_up_otherwise = any(parameter.dtype != torch.float32 for parameter in trained)
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
        bf16=_in_bfloat16(device, folder) or adds_up_otherwise,
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
    )
    for parameter in trained:  # small steps are lost in two bytes; products are then in bfloat16 all the same
        parameter.data = parameter.data.float()
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one GPU per process: otherwise the Trainer multiplies the batch by the number of GPUs
    if _checkpoints(adapted, settings):
        # The method's name, like the setting's, changed between releases of transformers.
        enable = getattr(adapted, "activation_checkpointing_enable", None) or adapted.gradient_checkpointing_enable
        enable()
        adapted.enable_input_require_grads()
    watch = _Watch(settings.steps, on_step, small=settings.train == "adapters")
    held_out, train = rows[: settings.held_out], rows[settings.held_out :]
    train = train[: len(train) // settings.batch * settings.batch]  # processes cannot share an incomplete batch
    data: dict[str, Any] = {"train_dataset": train, "eval_dataset": held_out, "callbacks": [watch]}
    trainer = Distillation(teacher, adapted, arguments, **data) if teacher else Trainer(adapted, arguments, **data)
    trainer.remove_callback(_printer())
    return trainer, watch


def _training_device(adapted: Any) -> torch.device:
    """The device to train on; with FSDP, the weights move there only later."""
    device: torch.device = next(adapted.parameters()).device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if is_sharded() else device


def _in_bfloat16(device: torch.device, folder: Path) -> bool:
    """Whether to train in bfloat16; decided once and stored, so that a resumed recovery keeps its precision."""
    file = folder / "precision.txt"
    with first_alone():
        if not file.exists():
            replace_file(file, b"bfloat16" if bfloat16_is_faster(device) else b"float32")
        return file.read_text() == "bfloat16"


def _checkpoints(adapted: Any, settings: RecoverySettings) -> bool:
    """Whether to use activation checkpointing: recompute activations instead of storing them."""
    if settings.checkpointing != "auto":
        return settings.checkpointing == "on"
    tokens, config = settings.batch // world_size() * settings.length, adapted.config.get_text_config()
    needed = activation_bytes(tokens, config.num_hidden_layers, config.hidden_size)
    return needed > free_bytes_on(_training_device(adapted)) / 2


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


class _Watch(TrainerCallback):
    """Reports numbers after each step, and stops training cleanly: with a checkpoint if the user cancelled.

    Checkpoints between those that the Trainer writes itself are as frequent as they are cheap, so that little is lost
    with a process that is killed; a job on a cluster, whose nodes come and go, writes one of adapters after each step.
    """

    def __init__(self, steps: int, on_step: OnStep | None, small: bool = True) -> None:
        self.failure: BaseException | None = None
        self._steps, self._on_step = steps, on_step or (lambda step, steps, numbers: None)
        self._saved = self._ready = time.monotonic()  # of the last checkpoint, and when the next one could begin
        self._took = 0.0  # seconds that the last checkpoint took
        self._every_step = small and bool(os.environ.get(CLUSTER_JOB))

    def on_step_end(  # type: ignore[override]
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._ready = time.monotonic()
        if any_of(self._every_step or self._took <= SAVING_SHARE * (self._ready - self._saved)):
            control.should_save = True

    def on_evaluate(  # type: ignore[override]
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._ready = time.monotonic()

    def on_save(  # type: ignore[override]
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._saved = time.monotonic()
        self._took = self._saved - self._ready

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
        if not numbers or self.failure:
            return
        if any_of(not all(math.isfinite(value) for value in numbers.values())):
            self.failure = ModelError(
                f"Training diverged: the loss is not finite at step {state.global_step}. Recover again with a lower "
                "--learning-rate."
                if state.global_step
                else "The loss is not finite before the first step: the model is broken. Merge fewer layers, or with "
                "another rule."
            )
            control.should_training_stop = True
            return
        cancelled = False
        try:
            self._on_step(state.global_step, self._steps, numbers)
        except Cancelled:
            cancelled = True
        if any_of(cancelled):  # all processes stop at the same step
            self.failure = Cancelled()
            control.should_training_stop = control.should_save = True
