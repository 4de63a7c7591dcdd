"""Rule `fit`: a merged layer whose last projection is solved by least squares, so that it gives what its window gave.

No training and no new parameters. Also repairs the merged layers of any other rule before a recovery.

Source: the idea of ReplaceMe, arXiv:2505.02819, section 3 (a linear map in the place of dropped blocks, estimated on
calibration text and folded into a projection). Differs: what is solved is the MLP's output projection itself, for the
relative error of each token, bottom up on the model that is merged below already; the ridge is chosen on texts apart.
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

SKIP_TOKENS = 4  # of each text: the first ones have norms of their own, and no word before them to go by
PART_TOKENS = 2048  # run together
HELD_OUT = 8  # one of so many parts is kept apart to choose the ridge
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # in mean squares of the features
DEFAULT_RIDGE = 0.1  # where there is too little text to choose
OnLayer = Callable[[int, int], None]
_Sums = tuple[Tensor, Tensor]


def apply_fitted_plan(
    model: PreTrainedModel, plan: MergePlan, tokens: Tensor, on_layer: OnLayer | None = None
) -> PreTrainedModel:
    """As `merge.apply_plan`, then each merged layer is fitted to what its window gave in the given model.

    Rule `fit` starts from the window's first layer; the layer that another rule gives is repaired.

    Raises:
        ModelError: if the family's layers end in something else than a sum with a projection.
    """
    merged = apply_plan(model, replace(plan, rule="keep_first") if plan.rule == "fit" else plan)
    fit_merged(merged, model, plan, tokens, on_layer)
    return merged


@torch.no_grad()  # not inference mode: the weights made here may be trained on
def fit_merged(
    merged: PreTrainedModel,
    original: PreTrainedModel,
    plan: MergePlan,
    tokens: Tensor,
    on_layer: OnLayer | None = None,
) -> None:
    """Solve the last projection of each merged layer, from the lowest up; `merged` is changed, `original` is not.

    Args:
        merged: what `apply_plan` made of `original`.
        tokens: ids, shape (texts, length), int64, no padding; some 20,000 tokens for a width of 576.
        on_layer: called after each layer with (layers done, layers in all); may raise to stop.

    Memory: two hidden states of all tokens. Time: two forward passes and one layer more for each window.
    """
    check_tokens(tokens)
    tokens = tokens.to(merged.device)
    part = max(1, PART_TOKENS // tokens.shape[1])
    rows = torch.arange(len(tokens)).split(part)
    ours, theirs = (Replay(model, tokens[:part]) for model in (merged, original))
    wanted = torch.cat([theirs.embedded(tokens[some]) for some in rows])
    found, changed = wanted, False
    if plan.windows and plan.windows[0].first < 0:  # the lowest layers are dropped
        found, changed = wanted.clone(), True
        for below in range(plan.windows[0].last + 1):
            _advance(theirs, below, wanted, rows)
    for layer, window in enumerate(plan.kept_layers()):
        fits = len(window) > 1
        if fits and not changed:  # up to here both give the same
            found, changed = wanted.clone(), True
        for below in range(window.first, window.last + 1):
            _advance(theirs, below, wanted, rows)
        if fits:
            projection = last_projection(ours, layer, found[:1])
            projection.add(_solved(ours, layer, projection, ((found[some], wanted[some]) for some in rows), len(rows)))
        if changed:
            _advance(ours, layer, found, rows)
        if on_layer:
            on_layer(layer + 1, plan.layers_left)


def check_fits(model: PreTrainedModel) -> None:
    """Raise ModelError if the layers of such a model cannot be fitted: known from one of each kind, in a moment."""
    layers = find_decoder(model).layers
    size = int(model.config.get_text_config().vocab_size)
    replay = Replay(model, (torch.arange(8)[None] % size).to(model.device), keep_every=4)
    for kind in dict.fromkeys(type(layer) for layer in layers):
        index = next(i for i, layer in enumerate(layers) if type(layer) is kind)
        last_projection(replay, index, replay.input_of(index))


def window_fitter(model: PreTrainedModel, tokens: Tensor) -> Callable[[Window], MergedLayer]:
    """Makes the merged layer of a window by rule `fit`; those made last are kept in up to a quarter of free memory."""
    room = free_bytes_on(model.device) // (4 * size_bytes(find_decoder(model).layers[0]))
    return lru_cache(max(1, room))(WindowFitter(model, tokens).merged)


class WindowFitter:
    """Merged layers of rule `fit` for windows of a model in which everything below is as it was.

    Args:
        model: not changed.
        tokens: as for `fit_merged`; other texts than those the windows are scored on.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        part = max(1, PART_TOKENS // tokens.shape[1])
        self._rows = torch.arange(len(tokens)).split(part)
        width = cast(Tensor, model.get_input_embeddings().weight).shape[-1]
        states = len(find_decoder(model).layers) * tokens.numel() * width * model.dtype.itemsize
        keep_every = 1 if states < free_bytes_on(model.device) // 4 else 4  # what lies between is run anew each time
        self._replay = Replay(model, tokens.to(model.device), keep_every, part=part)

    @torch.no_grad()
    def merged(self, window: Window) -> MergedLayer:
        """The window's first layer with its last projection solved."""
        replay, first = self._replay, window.first
        projection = last_projection(replay, first, replay.input_of(first)[:1])
        wanted = self._output_of(window.last)
        states = ((replay.input_of(first, some), wanted[some]) for some in self._rows)
        change = _solved(replay, first, projection, states, len(self._rows))
        return MergedLayer(first, {f"{projection.name}.weight": projection.weight_with(change)})

    def _output_of(self, layer: int) -> Tensor:
        if layer + 1 < len(self._replay.layers):
            return self._replay.input_of(layer + 1)
        replay = self._replay
        return torch.cat([replay.run(replay.input_of(layer, some), layer) for some in self._rows])


@dataclass(frozen=True)
class Projection:
    """A linear map of a layer whose output, times `scale`, is a term of the layer's output."""

    name: str
    module: nn.Module
    scale: float

    def weight_with(self, change: Tensor) -> Tensor:
        """The weight when `change`, shape (in, out), is added to the map."""
        weight = cast(Tensor, self.module.weight).detach()
        change = change / self.scale
        return (weight + (change if isinstance(self.module, Conv1D) else change.T)).to(weight.dtype)

    def add(self, change: Tensor) -> None:
        """Add a change to the projection's weights."""
        self.module.weight = nn.Parameter(self.weight_with(change), requires_grad=False)


def last_projection(replay: Replay, layer: int, hidden: Tensor) -> Projection:
    """The widest linear map whose output is a term of the layer's output: in most families the MLP's last one.

    Found by trying: something is added to the map's output, and has to come out of the layer as it went in.

    Raises:
        ModelError: if there is none, as where a norm follows the MLP.
    """
    width = hidden.shape[-1]
    linear = [(name, module) for name, module in replay.layers[layer].named_modules() if _shape(module)[1] == width]
    before = replay.run(hidden, layer).float()
    for name, module in sorted(linear, key=lambda one: -_shape(one[1])[0]):
        with _bumped(module) as bumps:
            change = replay.run(hidden, layer).float() - before
        if len(bumps) != 1 or bumps[0].numel() != change.numel():
            continue
        bump = bumps[0].float().view_as(change)  # some families put all tokens into one row
        scale = float((change * bump).sum() / (bump * bump).sum())
        if scale and (change - scale * bump).norm() <= 0.1 * change.norm():
            return Projection(name, module, scale)
    raise ModelError(
        f"The layers of {type(replay.layers[layer]).__name__} do not end in a sum with a linear map (a norm follows "
        "it, or experts take turns), so there is nothing to solve. Choose another merge rule, or no repair."
    )


def _shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear map; (0, 0) of anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return 0, 0


@contextmanager
def _bumped(module: nn.Module) -> Iterator[list[Tensor]]:
    """Adds noise as large as the module's output to it; gives the noise of each call."""
    bumps: list[Tensor] = []

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        bumps.append(noise * output.float().std().clamp(min=1e-3).to(output.dtype))
        return output + bumps[-1]

    with hooked([module.register_forward_hook(add)]):
        yield bumps


def _advance(replay: Replay, layer: int, states: Tensor, rows: Sequence[Tensor]) -> None:
    for some in rows:
        states[some] = replay.run(states[some], layer)


def _solved(
    replay: Replay, layer: int, projection: Projection, states: Iterator[tuple[Tensor, Tensor]], parts: int
) -> Tensor:
    """The change of the map, shape (in, out), with the ridge that does best on parts of the text kept apart.

    Args:
        states: for each part the layer's input and its wanted output.
    """
    apart = parts // HELD_OUT
    sums: list[_Sums | None] = [None, None]  # of the parts to solve for, of those kept apart
    for place, (hidden, wanted) in enumerate(states):
        side = int(place < apart)
        sums[side] = _normal_equations(replay, layer, projection, hidden, wanted, sums[side])
    (gram, cross), held_out = sums[0] or sums[1], sums[1]  # type: ignore[misc]
    if held_out is None:
        return _ridge_solution(gram, cross, DEFAULT_RIDGE)
    gram_apart, cross_apart = held_out

    def error(ridge: float) -> float:  # of the parts apart, less what it is without any change
        change = _ridge_solution(gram, cross, ridge)
        return float((change * (gram_apart @ change)).sum() - 2 * (change * cross_apart).sum())

    ridge = min(RIDGES, key=error)
    return _ridge_solution(gram + gram_apart, cross + cross_apart, ridge)


def _normal_equations(
    replay: Replay, layer: int, projection: Projection, hidden: Tensor, wanted: Tensor, before: _Sums | None
) -> _Sums:
    """X'X, shape (in, in), and X'E, shape (in, out), in float64, added to those of other texts.

    X is what the projection is given, E what the layer's output lacks, each row over the norm of the wanted output.
    """
    given: list[Tensor] = []
    with hooked([projection.module.register_forward_pre_hook(lambda module, args: given.append(args[0]))]):
        output = replay.run(hidden, layer)
    target = wanted[:, SKIP_TOKENS:].flatten(0, 1).float()
    weight = 1 / target.norm(dim=1, keepdim=True).clamp(min=1e-6)
    features = given[0].view(*hidden.shape[:2], -1)[:, SKIP_TOKENS:].flatten(0, 1).float() * weight
    lacking = (target - output[:, SKIP_TOKENS:].flatten(0, 1).float()) * weight
    gram, cross = (features.T @ features).double(), (features.T @ lacking).double()
    return (gram, cross) if before is None else (before[0] + gram, before[1] + cross)


def _ridge_solution(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    diagonal = ridge * gram.diagonal().mean().clamp(min=1e-12)
    factor = torch.linalg.cholesky(gram + diagonal * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    return torch.cholesky_solve(cross, factor)
