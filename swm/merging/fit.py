"""Rule `fit`: solves a merged layer's last projection by least squares to reproduce the output of its window.

No training and no new parameters. Also repairs the merged layers of any other rule before a recovery.

Source: the idea of ReplaceMe, arXiv:2505.02819, section 3 (a linear map that replaces dropped blocks, estimated on
calibration text and folded into a projection). Differs: solves the MLP's output projection itself, minimises each
token's relative error, works bottom up on the model already merged below, and chooses the ridge on held-out texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from swm.errors import ModelError
from swm.merging.apply import MergedLayer, apply_plan
from swm.models.decoder import find_decoder, size_bytes
from swm.models.hooks import hooked
from swm.models.layer_outputs import check_tokens
from swm.models.offload import free_bytes_on
from swm.models.replay import Replay
from swm.plan import MergePlan, Window

SKIP_TOKENS = 4  # first tokens of each text: their norms are unusual, and they have little context
PART_TOKENS = 2048  # in one forward pass
HELD_OUT = 8  # one part in this many is held out to choose the ridge
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # relative to the mean square of the features
DEFAULT_RIDGE = 0.1  # with too little text to choose one
OnLayer = Callable[[int, int], None]
_Sums = tuple[Tensor, Tensor]


def apply_fitted_plan(
    model: PreTrainedModel, plan: MergePlan, tokens: Tensor, on_layer: OnLayer | None = None
) -> PreTrainedModel:
    """A new model with the plan's windows merged as by `apply_plan`, each merged layer fitted to its window's output.

    Rule `fit` starts from the window's first layer; for another rule, its merged layer is repaired.

    Raises:
        ModelError: if the family's layers do not end in a sum with a projection.
    """
    merged = apply_plan(model, replace(plan, rule="keep_first") if plan.rule == "fit" else plan)
    fit_merged(merged, model, plan, tokens, on_layer)
    return merged


@torch.no_grad()  # not inference mode: these weights may be trained later
def fit_merged(
    merged: PreTrainedModel,
    original: PreTrainedModel,
    plan: MergePlan,
    tokens: Tensor,
    on_layer: OnLayer | None = None,
) -> None:
    """Solve the last projection of each merged layer, from the lowest up; changes `merged`, not `original`.

    Args:
        merged: the result of `apply_plan` on `original`.
        tokens: ids, shape (texts, length), int64, no padding; about 20,000 tokens for a hidden size of 576.
        on_layer: called after each layer with (layers done, total layers); may raise to stop.

    Memory: two hidden states of all tokens. Time: two forward passes, plus one layer for each window.
    """
    check_tokens(tokens)
    tokens = tokens.to(merged.device)
    part = max(1, PART_TOKENS // tokens.shape[1])
    rows = torch.arange(len(tokens)).split(part)
    small, large = (Replay(model, tokens[:part]) for model in (merged, original))
    targets = torch.cat([large.embedded(tokens[part_rows]) for part_rows in rows])  # states in the original
    states, diverged = targets, False  # states in the merged model
    if plan.windows and plan.windows[0].first < 0:  # the lowest layers are dropped
        states, diverged = targets.clone(), True
        for below in range(plan.windows[0].last + 1):
            _advance(large, below, targets, rows)
    for layer, window in enumerate(plan.kept_layers()):
        fits = len(window) > 1
        if fits and not diverged:  # up to here both models have the same states
            states, diverged = targets.clone(), True
        for below in range(window.first, window.last + 1):
            _advance(large, below, targets, rows)
        if fits:
            projection = last_projection(small, layer, states[:1])
            pairs = ((states[part_rows], targets[part_rows]) for part_rows in rows)
            projection.add(_solved(small, layer, projection, pairs, len(rows)))
        if diverged:
            _advance(small, layer, states, rows)
        if on_layer:
            on_layer(layer + 1, plan.layers_left)


def check_fits(model: PreTrainedModel) -> None:
    """Raise ModelError if the model's layers cannot be fitted; fast, since it tries one layer of each class."""
    layers = find_decoder(model).layers
    size = int(model.config.get_text_config().vocab_size)
    replay = Replay(model, (torch.arange(8)[None] % size).to(model.device), keep_every=4)
    for kind in dict.fromkeys(type(layer) for layer in layers):
        index = next(i for i, layer in enumerate(layers) if type(layer) is kind)
        last_projection(replay, index, replay.input_of(index))


def window_fitter(model: PreTrainedModel, tokens: Tensor) -> Callable[[Window], MergedLayer]:
    """A function that makes the merged layer of a window by rule `fit`; caches results in a quarter of free memory."""
    room = free_bytes_on(model.device) // (4 * size_bytes(find_decoder(model).layers[0]))
    return lru_cache(max(1, room))(WindowFitter(model, tokens).merged)


class WindowFitter:
    """Merged layers by rule `fit`, each for one window of a model that is otherwise unchanged below it.

    Args:
        model: not changed.
        tokens: as for `fit_merged`; not the texts that windows are scored on.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        part = max(1, PART_TOKENS // tokens.shape[1])
        self._rows = torch.arange(len(tokens)).split(part)
        width = cast(Tensor, model.get_input_embeddings().weight).shape[-1]
        states = len(find_decoder(model).layers) * tokens.numel() * width * model.dtype.itemsize
        keep_every = 1 if states < free_bytes_on(model.device) // 4 else 4  # states between are recomputed each time
        self._replay = Replay(model, tokens.to(model.device), keep_every, part=part)

    @torch.no_grad()
    def merged(self, window: Window) -> MergedLayer:
        """The window's first layer, its last projection solved to reproduce the window's output."""
        replay, first = self._replay, window.first
        projection = last_projection(replay, first, replay.input_of(first)[:1])
        targets = self._output_of(window.last)
        pairs = ((replay.input_of(first, part_rows), targets[part_rows]) for part_rows in self._rows)
        change = _solved(replay, first, projection, pairs, len(self._rows))
        return MergedLayer(first, {f"{projection.name}.weight": projection.weight_with(change)})

    def _output_of(self, layer: int) -> Tensor:
        if layer + 1 < len(self._replay.layers):
            return self._replay.input_of(layer + 1)
        replay = self._replay
        return torch.cat([replay.run(replay.input_of(layer, part_rows), layer) for part_rows in self._rows])


@dataclass(frozen=True)
class Projection:
    """A linear map of a layer whose output, times `scale`, is a term of the layer's output."""

    name: str
    module: nn.Module
    scale: float

    def weight_with(self, change: Tensor) -> Tensor:
        """The weight after adding `change`, shape (in, out), to the linear map."""
        weight = cast(Tensor, self.module.weight).detach()
        change = change / self.scale
        return (weight + (change if isinstance(self.module, Conv1D) else change.T)).to(weight.dtype)

    def add(self, change: Tensor) -> None:
        """Add `change`, shape (in, out), to the projection's weight."""
        self.module.weight = nn.Parameter(self.weight_with(change), requires_grad=False)


def last_projection(replay: Replay, layer: int, hidden: Tensor) -> Projection:
    """The widest linear map whose output is a term of the layer's output: in most families the MLP's down projection.

    Found by experiment: noise added to the map's output must appear in the layer's output, unchanged up to scale.

    Raises:
        ModelError: if there is none, for example because a norm follows the MLP.
    """
    width = hidden.shape[-1]
    linear = [(name, module) for name, module in replay.layers[layer].named_modules() if _shape(module)[1] == width]
    before = replay.run(hidden, layer).float()
    for name, module in sorted(linear, key=lambda item: -_shape(item[1])[0]):
        with _bumped(module) as bumps:
            change = replay.run(hidden, layer).float() - before
        if len(bumps) != 1 or bumps[0].numel() != change.numel():
            continue
        bump = bumps[0].float().view_as(change)  # some families flatten all tokens into one row
        scale = float((change * bump).sum() / (bump * bump).sum())
        if scale and (change - scale * bump).norm() <= 0.1 * change.norm():
            return Projection(name, module, scale)
    raise ModelError(
        f"Cannot fit layers of {type(replay.layers[layer]).__name__}: they do not end in a sum with a linear map (a "
        "norm follows it, or experts are routed). Choose another merge rule, or no repair."
    )


def _shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear map; (0, 0) for anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return 0, 0


@contextmanager
def _bumped(module: nn.Module) -> Iterator[list[Tensor]]:
    """Adds noise of the output's own size to the module's output; gives the noise of each call."""
    bumps: list[Tensor] = []

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        bumps.append(noise * output.float().std().clamp(min=1e-3).to(output.dtype))
        return output + bumps[-1]

    with hooked([module.register_forward_hook(add)]):
        yield bumps


def _advance(replay: Replay, layer: int, states: Tensor, rows: Sequence[Tensor]) -> None:
    for part_rows in rows:
        states[part_rows] = replay.run(states[part_rows], layer)


def _solved(
    replay: Replay, layer: int, projection: Projection, pairs: Iterator[tuple[Tensor, Tensor]], parts: int
) -> Tensor:
    """The change of the linear map, shape (in, out), with the ridge that does best on held-out parts of the text.

    Args:
        pairs: for each part, the layer's input and its target output.
        parts: number of pairs.
    """
    held_out_parts = parts // HELD_OUT
    sums: list[_Sums | None] = [None, None]  # of the fitted parts, of the held-out parts
    for place, (hidden, targets) in enumerate(pairs):
        side = int(place < held_out_parts)
        sums[side] = _normal_equations(replay, layer, projection, hidden, targets, sums[side])
    (gram, cross), held_out = sums[0] or sums[1], sums[1]  # type: ignore[misc]
    if held_out is None:
        return _ridge_solution(gram, cross, DEFAULT_RIDGE)
    held_out_gram, held_out_cross = held_out

    def error(ridge: float) -> float:  # squared error on the held-out parts, minus that without any change
        change = _ridge_solution(gram, cross, ridge)
        return float((change * (held_out_gram @ change)).sum() - 2 * (change * held_out_cross).sum())

    ridge = min(RIDGES, key=error)
    return _ridge_solution(gram + held_out_gram, cross + held_out_cross, ridge)


def _normal_equations(
    replay: Replay, layer: int, projection: Projection, hidden: Tensor, targets: Tensor, previous: _Sums | None
) -> _Sums:
    """X'X, shape (in, in), and X'E, shape (in, out), in float64, added to the sums of other texts.

    X is the projection's input and E the residual (target output minus layer output), each row divided by the norm of
    its target.
    """
    inputs: list[Tensor] = []
    with hooked([projection.module.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))]):
        output = replay.run(hidden, layer)
    target = targets[:, SKIP_TOKENS:].flatten(0, 1).float()
    weight = 1 / target.norm(dim=1, keepdim=True).clamp(min=1e-6)
    features = inputs[0].view(*hidden.shape[:2], -1)[:, SKIP_TOKENS:].flatten(0, 1).float() * weight
    residual = (target - output[:, SKIP_TOKENS:].flatten(0, 1).float()) * weight
    gram, cross = (features.T @ features).double(), (features.T @ residual).double()
    return (gram, cross) if previous is None else (previous[0] + gram, previous[1] + cross)


def _ridge_solution(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    diagonal = ridge * gram.diagonal().mean().clamp(min=1e-12)
    factor = torch.linalg.cholesky(gram + diagonal * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    return torch.cholesky_solve(cross, factor)
