"""Rule `fit`: solves the end of a merged layer by least squares to reproduce the output of its window.

No training and no new parameters. Also repairs the merged layers of any other rule before a recovery.

Source: the idea of ReplaceMe, arXiv:2505.02819, section 3 (a linear map that replaces dropped blocks, estimated on
calibration text and folded into a projection). Differs: solves the MLP's output projection itself, with the norm after
it or for each expert where a family has them, minimises each token's relative error, works bottom up on the model
already merged below, and chooses the ridge on held-out texts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import NoFitError, NoScaleError
from swm.merging.apply import apply_plan, check_plan, merge_window
from swm.merging.merged_layer import MergedLayer
from swm.merging.projection import ending_of
from swm.merging.scale import check_scales, magnitude_factor
from swm.merging.solve import Wanted, solved
from swm.models.decoder import find_decoder, size_bytes
from swm.models.layer_outputs import check_tokens
from swm.models.offload import free_bytes_on
from swm.models.one_layer import OneLayer
from swm.models.replay import Replay
from swm.plan import MergePlan, Window
from swm.registry import MERGE_RULES

log = logging.getLogger(__name__)
PART_TOKENS = 2048  # in one forward pass
OnLayer = Callable[[int, int], None]


def apply_fitted_plan(
    model: PreTrainedModel,
    plan: MergePlan,
    tokens: Tensor,
    on_layer: OnLayer | None = None,
    fast: bool = False,
    how: str = "fit",
) -> PreTrainedModel:
    """A new model with the plan's windows merged as by `apply_plan`, each merged layer fitted to its window's output.

    Arguments, errors and time: as of `fitted_layers`.
    """
    return apply_plan(model, plan, fitted_layers(model, plan, tokens, on_layer, fast, how).__getitem__)


@torch.no_grad()  # not inference mode: these weights may be trained later
def fitted_layers(
    model: PreTrainedModel,
    plan: MergePlan,
    tokens: Tensor,
    on_layer: OnLayer | None = None,
    fast: bool = False,
    how: str = "fit",
) -> dict[Window, MergedLayer]:
    """The merged layer of each window, its end solved to reproduce the window's output, from the lowest window up.

    Rules `fit` and `scale` start from the window's first layer; for another rule, its merged layer is repaired.

    Args:
        model: not changed; its weights may be spread over devices or disk.
        tokens: ids, shape (texts, length), int64, no padding; about 20,000 tokens for a hidden size of 576.
        on_layer: called after each layer with (layers done, total layers); may raise to stop.
        fast: the layers' matrix products in bfloat16; what is solved stays in float32.
        how: "fit", or "scale": nothing is solved, but the state after the layer gets the size that it has in the
            original; `apply_plan` folds that into the layers above.

    Raises:
        NoFitError: if nothing at the end of a merged layer can be solved. PlanError, NoScaleError: as of `apply_plan`.

    Memory: two hidden states of all tokens; a layer for each window; what `solving_bytes` says. Time: two forward
    passes, and three runs of a layer for each window; weights on disk are read some three times.
    """
    check_tokens(tokens)
    check_plan(model, plan)
    tokens = tokens.to(model.device)
    part = max(1, PART_TOKENS // tokens.shape[1])
    rows = torch.arange(len(tokens)).split(part)
    replay, made = Replay(model, tokens[:part], keep_every=4, fast=fast), dict[Window, MergedLayer]()
    targets = torch.cat([replay.embedded(tokens[part_rows]) for part_rows in rows])  # states in the original
    states, diverged = targets, False  # states in the merged model
    rule = "keep_first" if MERGE_RULES[plan.rule].needs_text else plan.rule
    advance = partial(_advance, rows)
    if plan.windows and plan.windows[0].first < 0:  # the lowest layers are dropped
        states, diverged = targets.clone(), True
        made[plan.windows[0]] = MergedLayer(-1)
        for below in range(plan.windows[0].last + 1):
            advance(targets, OneLayer(replay, below, targets.device))
        if how == "scale":
            made[plan.windows[0]] = _scaled(MergedLayer(-1), targets, states)
    for index, window in enumerate(plan.kept_layers()):
        merges = len(window) > 1
        if merges and not diverged:  # up to here both models have the same states
            states, diverged = targets.clone(), True
        for below in range(window.first, window.last + 1):
            layer = OneLayer(replay, below, targets.device)  # read once for both models and all parts of the text
            advance(targets, layer)
            if diverged and not merges:
                advance(states, layer)
        if merges:
            made[window] = _merged(replay, window, rule, how, states, targets, rows)
        if on_layer:
            on_layer(index + 1, plan.layers_left)
    return made


def _merged(
    replay: Replay, window: Window, rule: str, how: str, states: Tensor, targets: Tensor, rows: Sequence[Tensor]
) -> MergedLayer:
    """The merged layer of a window; advances the merged model's states through it, in place."""
    start = merge_window(replay.layers, window, rule)
    layer = OneLayer(replay, start.base, targets.device, start.parameters)
    if how == "scale":
        _advance(rows, states, layer)
        return _scaled(start, targets, states)
    change = solved(ending_of(layer, states[:1]), Wanted(layer, len(rows), partial(_pair, states, targets, rows)))
    layer.replace(change)
    _advance(rows, states, layer)
    return replace(start, parameters=start.parameters | change)


def _advance(rows: Sequence[Tensor], states: Tensor, layer: OneLayer) -> None:
    """Run the layer for the states, in place, a part at a time."""
    for part_rows in rows:
        states[part_rows] = layer.run(states[part_rows])


def _scaled(layer: MergedLayer, targets: Tensor, states: Tensor) -> MergedLayer:
    """The layer with the factor that its output needs; `states`, its output, is multiplied in place."""
    factor = magnitude_factor(targets, states)
    states *= factor
    return replace(layer, factor=factor)


def _pair(states: Tensor, targets: Tensor, rows: Sequence[Tensor], part: int) -> tuple[Tensor, Tensor]:
    return states[rows[part]], targets[rows[part]]


def solving_bytes(model: PreTrainedModel) -> int:
    """Memory of solving one linear map: four square matrices of its inputs in float64. Reads no weights."""
    layers = find_decoder(model).layers
    inputs = [int(part.in_features) for layer in layers for part in layer.modules() if isinstance(part, nn.Linear)]
    return 4 * 8 * max(inputs, default=0) ** 2


def check_fits(model: PreTrainedModel) -> None:
    """Raise NoFitError if the model's layers cannot be fitted; fast, since it tries one layer of each kind."""
    layers = find_decoder(model).layers
    size = int(model.config.get_text_config().vocab_size)
    replay = Replay(model, (torch.arange(8)[None] % size).to(model.device), keep_every=4)
    for index in {_kind(layer): index for index, layer in enumerate(layers)}.values():
        hidden = replay.input_of(index)
        ending_of(OneLayer(replay, index, hidden.device), hidden)


def repair_of(model: PreTrainedModel) -> str | None:
    """The better one of "fit" and "scale" that can be done with the model's layers; None if neither can."""
    for how in ("fit", "scale"):
        try:
            check_how(model, how)
        except (NoFitError, NoScaleError) as error:
            log.warning("Not by %s: %s", how, error)
        else:
            return how
    return None


def check_how(model: PreTrainedModel, how: str) -> None:
    """Raise NoFitError or NoScaleError if layers cannot be made by rule `fit` or `scale`."""
    if how == "fit":
        check_fits(model)
    else:
        check_scales(model)


def _kind(layer: nn.Module) -> tuple[type, frozenset[tuple[str, torch.Size]]]:
    """Layers of one kind have the same class and weights: those with experts may share their class with others."""
    return type(layer), frozenset((name, weight.shape) for name, weight in layer.named_parameters())


def window_fitter(model: PreTrainedModel, tokens: Tensor, how: str = "fit") -> Callable[[Window], MergedLayer]:
    """A function that makes the merged layer of a window; caches results in a quarter of free memory.

    Args:
        how: as of `fitted_layers`.
    """
    room = free_bytes_on(model.device) // (4 * max(map(size_bytes, find_decoder(model).layers)))
    return lru_cache(max(1, room))(WindowFitter(model, tokens, how).merged)


class WindowFitter:
    """Merged layers by rule `fit` or `scale`, each for one window of a model that is otherwise unchanged below it.

    Args:
        model: not changed.
        tokens: as for `fitted_layers`; not the texts that windows are scored on.
        how: as of `fitted_layers`.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor, how: str = "fit") -> None:
        self._how = how
        part = max(1, PART_TOKENS // tokens.shape[1])
        self._rows = torch.arange(len(tokens)).split(part)
        width = cast(Tensor, model.get_input_embeddings().weight).shape[-1]
        states = len(find_decoder(model).layers) * tokens.numel() * width * model.dtype.itemsize
        keep_every = 1 if states < free_bytes_on(model.device) // 4 else 4  # states between are recomputed each time
        self._replay = Replay(model, tokens.to(model.device), keep_every, part=part)

    @torch.no_grad()
    def merged(self, window: Window) -> MergedLayer:
        """The window's first layer, made to reproduce the window's output, or the size of it."""
        replay, first, rows = self._replay, window.first, self._rows
        device = replay.input_of(first).device
        targets, layer = self._output_of(window.last).to(device), OneLayer(replay, first, device)
        if self._how == "scale":
            states = torch.cat([layer.run(replay.input_of(first, part_rows)) for part_rows in rows])
            return MergedLayer(first, factor=magnitude_factor(targets, states))
        wanted = Wanted(layer, len(rows), lambda part: (replay.input_of(first, rows[part]), targets[rows[part]]))
        return MergedLayer(first, solved(ending_of(layer, replay.input_of(first)[:1]), wanted))

    def _output_of(self, layer: int) -> Tensor:
        if layer + 1 < len(self._replay.layers):
            return self._replay.input_of(layer + 1)
        replay = self._replay
        return torch.cat([replay.run(replay.input_of(layer, part_rows), layer) for part_rows in self._rows])
