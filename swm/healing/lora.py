"""Healing a merged model with LoRA, or by training some layers' weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.pytorch_utils import Conv1D

from swm.errors import ModelError, SettingsError, first_line
from swm.healing.distillation import Teacher, layer_pairs
from swm.healing.quantized import check_plain, check_quantizes, four_bit_bytes, in_four_bits, skeleton_of
from swm.healing.rows import training_rows
from swm.healing.trainer import OnStep, make_trainer, train
from swm.models.decoder import find_decoder
from swm.models.processes import is_first, is_sharded, world_size
from swm.settings import RecoverySettings
from swm.texts.example import Example


def recover(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    folder: Path,
    on_step: OnStep | None = None,
    *,
    teacher: Teacher | None = None,
    layers: Sequence[int] | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train LoRA adapters on the linear layers, or the layers' own weights, and fold the result in.

    See `recover_in_four_bits` for quantized weights.

    Several processes (`accelerate launch`) share each batch: a step sees the same sequences for any number of
    processes. The first one writes.

    Args:
        model: the merged model; changed in place, including tensors that it shares with the original.
        examples: recovery examples; the first ones are held out, the others are shuffled by `settings.seed`.
        folder: for checkpoints and `adapter/` (a peft folder); training resumes from a checkpoint in it.
        on_step: called after each step with (step, steps, numbers: loss, learning_rate, held_out_loss, ...); may raise
            Cancelled, in which case a checkpoint is written first.
        teacher: what to learn from if `settings.target` is not "text", see `teacher_of`.
        layers: indexes of the layers that are trained; None for all.

    Returns:
        The healed model (with FSDP, only in the first process), and a summary: trained parameters, tokens, losses.

    Raises:
        TextError: if there are too few examples. ModelError: if the loss is not finite. SettingsError: if the
            processes cannot share a batch.
    """
    if settings.target != "text" and teacher is None:
        raise ValueError(f"Target {settings.target} needs the original model, but none was given.")
    model, whole = _trained_and_folded(model)
    uses_cache = getattr(model.config, "use_cache", None)  # training turns it off; saved like that, the model is slow
    dtypes = {name: parameter.dtype for name, parameter in whole.named_parameters()}
    trainer, adapted, summary = _trained(model, tokenizer, examples, settings, folder, on_step, layers, teacher)
    folded = _folded(trainer, adapted, whole, dtypes, folder / "adapter")
    if uses_cache is not None:
        folded.config.use_cache = uses_cache
    return folded.eval(), summary


def recover_in_four_bits(
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    folder: Path,
    on_step: OnStep | None = None,
    *,
    device: torch.device,
    layers: Sequence[int] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Train LoRA adapters over the weights of a saved model in four bits; the model is never in memory whole.

    Args:
        base: folder of the merged model. Others: as of `recover`.

    Returns:
        peft's model with the adapters, for `fold_adapter`, and the summary, with the bytes of the quantized weights.
    """
    check_quantizes(settings)
    bare = skeleton_of(base)
    names = linear_maps(bare, None)
    check_plain(bare, names)
    small = in_four_bits(base, names, device)
    quantized_bytes = four_bit_bytes(small)
    _, adapted, summary = _trained(small, tokenizer, examples, settings, folder, on_step, layers, None)
    if is_first():
        adapted.save_pretrained(folder / "adapter")
    return adapted, {**summary, "quantized_bytes": quantized_bytes}


def _trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    folder: Path,
    on_step: OnStep | None,
    layers: Sequence[int] | None,
    teacher: Teacher | None,
) -> tuple[Trainer, Any, dict[str, Any]]:
    """The trainer and peft's model, after training, and a summary."""
    check_shared(settings)
    rows = training_rows(tokenizer, examples, settings)
    adapted = _with_adapters(model, settings, layers)
    _allocate_trained(adapted)
    trainer, watch = make_trainer(adapted, rows, settings, folder, on_step, teacher)
    train(trainer, folder)
    if watch.failure:
        raise watch.failure
    summary = {
        "bfloat16": trainer.args.bf16,
        "trained_parameters": sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        "training_tokens": settings.steps * settings.batch * settings.accumulate * settings.length,  # padding included
        "sequences": len(rows) - settings.held_out,
        "held_out_losses": [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row],
    }
    return trainer, adapted, summary


def teacher_of(
    model: PreTrainedModel, original: PreTrainedModel, target: str, behind: Sequence[tuple[int, int]] = ()
) -> Teacher | None:
    """Whom the merged model learns from; None if it is the text.

    Args:
        target: of the settings.
        behind: (layer of the merged model, layer of the original) whose outputs should match with target "hidden".
    """
    if target == "text":
        return None
    return Teacher(original, layer_pairs(model, original, behind if target == "hidden" else ()))


def _trained_and_folded(model: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model to train over, and the one to fold the adapters into."""
    if not is_sharded():
        return model, model
    whole = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})  # FSDP replaces those of model
    for module in model.modules():  # accelerate fails on buffers among what is saved: each process has them
        module._non_persistent_buffers_set.update(module._buffers)
    return model, whole


def _folded(
    trainer: Trainer, adapted: Any, whole: PreTrainedModel, dtypes: dict[str, torch.dtype], folder: Path
) -> PreTrainedModel:
    """Save the adapters and fold them in; into the whole model if the trained one was sharded.

    Args:
        dtypes: of the whole model's parameters by name, which those that were trained in float32 get back.
    """
    weights = _gathered(trainer.model) if is_sharded() else None
    if is_first():
        adapted.save_pretrained(folder, state_dict=weights)
    if is_sharded() and not is_first():
        return whole
    if adapted.base_model.model is not whole:
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(whole, folder)
    folded: PreTrainedModel = adapted.merge_and_unload()
    for name, parameter in folded.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    return folded


def _allocate_trained(adapted: Any) -> None:
    """Give memory to the trained weights of a process without any: accelerate knows those of the optimizer by it."""
    for module in adapted.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.requires_grad and weight.is_meta:
                setattr(module, name, nn.Parameter(torch.zeros_like(weight, device="cpu")))


def _gathered(sharded: Any) -> dict[str, torch.Tensor]:
    """The trained weights alone, whole, in the first process's main memory."""
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return state_dict.get_model_state_dict(sharded, options=options)  # type: ignore[return-value]


def _with_adapters(model: PreTrainedModel, settings: RecoverySettings, layers: Sequence[int] | None) -> Any:
    """The model with new LoRA adapters, or copies of the weights to train, in the given layers.

    The same seed gives the same adapters.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import DUMMY_TARGET_MODULES

    trains_weights = settings.train == "weights"
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=DUMMY_TARGET_MODULES if trains_weights else linear_maps(model, layers),
        modules_to_save=trained_modules(model, layers, settings.adapt == "last") if trains_weights else None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)
    with warnings.catch_warnings():
        # peft warns about what it handles itself: GPT-2's Conv1D, experts that it does not adapt.
        warnings.simplefilter("ignore")
        try:
            return get_peft_model(model, lora)
        except ValueError as error:  # no layers to adapt, or a kind that peft does not support
            raise ModelError(
                f"Cannot heal {type(model).__name__} with LoRA: {first_line(error)} Evaluate it without healing."
            ) from None


def check_adapts(model: PreTrainedModel, settings: RecoverySettings) -> None:
    """Raise ModelError if LoRA cannot adapt such a model; quick, since it needs no weights."""
    with torch.device("meta"):
        bare: Any = type(model)(copy.deepcopy(model.config))
    if settings.quantization != "none":
        check_plain(bare, linear_maps(bare, None))
    _with_adapters(bare, settings, None)


def linear_maps(model: PreTrainedModel, layers: Sequence[int] | None) -> list[str]:
    """Full names of the linear modules in these decoder layers."""
    decoder = find_decoder(model).layers
    chosen = range(len(decoder)) if layers is None else layers
    inside = {id(module) for index in chosen for module in decoder[index].modules()}
    # State-space mixers (with A_log) read these weights without calling the module: an adapter would have no effect.
    mixers = [module for index in chosen for module in decoder[index].modules() if hasattr(module, "A_log")]
    inside -= {id(getattr(mixer, name, None)) for mixer in mixers for name in ("out_proj", "conv1d")}
    return [name for name, module in model.named_modules() if id(module) in inside and _is_linear_map(module)]


def trained_modules(model: PreTrainedModel, layers: Sequence[int] | None, head: bool) -> list[str]:
    """Full names of the modules in these layers whose weights are trained: the outermost that hold some themselves.

    Args:
        head: also the output head, where it does not share its weights with the embedding.
    """
    decoder = find_decoder(model).layers
    chosen = [decoder[index] for index in (range(len(decoder)) if layers is None else layers)]
    output = model.get_output_embeddings()
    if head and output is not None and output.weight is not model.get_input_embeddings().weight:
        chosen.append(output)
    inside = {id(module) for part in chosen for module in part.modules()}
    names: list[str] = []
    for name, module in model.named_modules():  # a module stands before its parts
        whole = id(module) in inside and any(True for _ in module.parameters(recurse=False))
        if whole and not any(name.startswith(f"{outer}.") for outer in names):
            names.append(name)
    return names


def _is_linear_map(module: nn.Module) -> bool:
    """Whether it is a linear map, and not a router of experts that derives from one and gives more than a tensor."""
    return isinstance(module, (nn.Linear, Conv1D)) and not type(module).__name__.endswith("Router")


def check_shared(settings: RecoverySettings) -> None:
    """Raise SettingsError if several processes cannot train with these settings."""
    if settings.batch % world_size():
        raise SettingsError(
            f"{world_size()} processes cannot share a batch of {settings.batch} evenly. Choose --batch "
            f"{-(-settings.batch // world_size()) * world_size()}, or another number of processes."
        )
    if is_sharded() and settings.target != "text":
        raise SettingsError(
            f"--target {settings.target} does not work with sharded weights (FSDP). Choose --target text."
        )
