"""A run's model as a GGUF file in which some layers have no attention, for those who need the memory of its cache."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swm.errors import ModelError, SettingsError
from swm.evaluation.perplexity import perplexity
from swm.llama_cpp.attention_free import check_without_attention
from swm.llama_cpp.families import family_of
from swm.llama_cpp.kinds import check_kind
from swm.merging.merged_layer import MergedLayer
from swm.models.decoder import find_decoder, layer_count
from swm.models.locate import load_config
from swm.progress import Progress, no_progress, share_of
from swm.reporting.formats.gguf import check_file, write_gguf
from swm.reporting.numbers import interval
from swm.search.plan_loss import PlanLoss
from swm.settings import PERPLEXITY_TEXTS
from swm.stages.loading import calibration_of, load_run
from swm.texts.calibration import perplexity_tokens
from swm.workspace.runs import Run

OUTPUT = "self_attn.o_proj."  # what an attention adds to the residual stream goes through it


def export_without_attention(
    run: Run, file: Path, count: int, kind: str | None = None, progress: Progress = no_progress
) -> dict[str, Any]:
    """Write the run's model without the attention of the layers that need it least; returns what that costs.

    The layers are chosen on the experiment's calibration text; the perplexity before and after is that of other texts.

    Args:
        count: of layers.

    Returns:
        `without_attention`, the layers; `perplexity` of each text as in scores.json, `before` and `after`.

    Raises:
        SettingsError: if there are not so many layers. ModelError: if llama.cpp has no such form of the model.
    """
    file = file.absolute()
    check_attention(run, file, count, kind)
    model, tokenizer = load_run(run)
    text = calibration_of(run.experiment, tokenizer)
    gone = sorted(least_needed_attention(model, text, count, share_of(progress, 0, 0.6))[0])
    texts = {name: perplexity_tokens(tokenizer, name) for name in PERPLEXITY_TEXTS}
    before = _perplexities(model, texts, share_of(progress, 0.6, 0.7))
    silence(model, gone)
    after = _perplexities(model, texts, share_of(progress, 0.7, 0.8))
    left = layer_count(model)
    del model
    result = {"without_attention": gone, "perplexity": {"before": before, "after": after}}
    note = f"\n## Layers without attention\n\n{cost_sentence(result, left)} What is said of transformers above holds "
    note += "for the run's folder.\n"
    write_gguf(run, file, kind, share_of(progress, 0.8, 1), gone, note)
    return result


def check_attention(run: Run, file: Path, count: int, kind: str | None) -> None:
    """Raise what `export_without_attention` would raise before it computes anything."""
    check_file(run, file)
    if kind is not None:
        check_kind(kind)
    config = load_config(str(run.model_folder))
    layers = config.num_hidden_layers
    if layers < 2:
        raise SettingsError(f"Run {run.name} has one layer, which keeps its attention. Leave out --without-attention.")
    check_without_attention(config, family_of(config), [1])
    if not 1 <= count < layers:
        raise SettingsError(
            f"--without-attention {count} is out of range. Choose 1 to {layers - 1}: the first layer keeps its "
            "attention."
        )


def _perplexities(model: PreTrainedModel, texts: dict[str, Tensor], progress: Progress) -> dict[str, dict[str, Any]]:
    return {
        name: perplexity(model, tokens, on_progress=share_of(progress, place / len(texts), (place + 1) / len(texts)))
        for place, (name, tokens) in enumerate(texts.items())
    }


@torch.no_grad()
def silence(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Let the attention of these layers add nothing."""
    for number in layers:
        layer = find_decoder(model).layers[number]
        weights = dict(layer.named_parameters())
        for name, zeros in without_attention(layer, number).parameters.items():
            weights[name].copy_(zeros)


def cost_sentence(result: dict[str, Any], layers: int) -> str:
    """What leaving out attention saves and costs, in words."""
    gone, perplexities = result["without_attention"], result["perplexity"]
    changes = "; ".join(
        f"{text} {interval(perplexities['before'][text])} → {interval(perplexities['after'][text])}"
        for text in perplexities["before"]
    )
    return (
        f"Without attention in layers {', '.join(map(str, gone))} of {layers}, keys and values take "
        f"{100 * len(gone) / layers:.0f} % less memory. Perplexity: {changes}. Only llama.cpp can run this."
    )


def without_attention(layer: torch.nn.Module, number: int) -> MergedLayer:
    """A layer whose attention adds nothing.

    Raises:
        ModelError: if its attention has no output projection of the usual name.
    """
    silent = {name: torch.zeros_like(weight) for name, weight in layer.named_parameters() if name.startswith(OUTPUT)}
    if not silent:
        raise ModelError("Attention can only be left out of layers whose attention ends in a projection o_proj.")
    return MergedLayer(number, silent)


def least_needed_attention(
    model: PreTrainedModel, tokens: Tensor, count: int, progress: Progress = no_progress
) -> tuple[list[int], list[float]]:
    """The layers whose attention costs least, and the loss on the text without the first, the first two, ...

    One layer after the other is chosen by the loss without its attention and that of those before it. A layer's cost is
    computed again only while it is the lowest known, which finds the same layers as trying all each time unless an
    attention becomes less needed once another is gone.

    Args:
        tokens: ids, shape (texts, length).
        count: of layers. The first layer keeps its attention: llama.cpp reads the size of a head from it.

    Returns:
        Layers in the order in which they were chosen, and losses in nats per token, the first that of the whole model.
    """
    layers = find_decoder(model).layers
    loss = PlanLoss(model, tokens)
    gone: list[int] = []
    losses = [loss.of([MergedLayer(len(layers) - 1)], len(layers) - 1)]
    known = [(-math.inf, -1, layer) for layer in range(1, len(layers))]  # cost, how many were gone then, layer
    while len(gone) < count:
        cost, when, layer = heapq.heappop(known)
        if when == len(gone):
            gone.append(layer)
            losses.append(losses[-1] + cost)
            continue
        progress(len(gone), count, f"attention of layer {layer}")
        silent = {layer, *gone}
        lowest = min(silent)
        made = (
            without_attention(layers[number], number) if number in silent else MergedLayer(number)
            for number in range(lowest, len(layers))
        )
        heapq.heappush(known, (loss.of(made, lowest) - losses[-1], len(gone), layer))
    return gone, losses
