"""Width pruning: attention heads (whole key-value groups) and MLP channels, the same number in every layer.

A model's config states its widths once for all layers, so only uniform shapes load with plain `from_pretrained`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import ModelError
from swm.models.decoder import find_decoder
from swm.models.gradients import loss_gradients
from swm.models.hooks import hooked
from swm.models.layer_outputs import check_tokens, run_decoder
from swm.plan import WidthCut

log = logging.getLogger(__name__)

STEP = 8  # channels are kept in multiples of this if there are many: matrix products are then fastest
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
OnText = Callable[[int, int], None]
Scores = dict[tuple[int, str], Tensor]  # by (layer, reader): a score for each structure, or a mean for each column


@dataclass(frozen=True)
class Coupled:
    """Structures to remove from several linear maps at once: rows of those that produce them, columns of their reader.

    Attributes:
        makers: name of a producing map in the layer -> its rows for one structure.
        reader: name of the map that reads them.
        columns: columns of the reader for one structure.
        count: number of structures in a layer.
    """

    makers: dict[str, int]
    reader: str
    columns: int
    count: int


def prune_width(
    model: PreTrainedModel, cut: WidthCut, tokens: Tensor, on_text: OnText = lambda done, total: None
) -> PreTrainedModel:
    """A new model with narrower layers, without training.

    Args:
        model: not changed; the new model shares its uncut tensors.
        cut: removes whole groups of heads, the share rounded to a whole number; channels make up the difference.
        tokens: calibration text, ids of shape (texts, length), int64, no padding.
        on_text: called with (texts done, total texts); may raise to stop.

    Raises:
        ModelError: if the layers do not consist of q, k, v, o and gate, up, down projections of the same shapes.

    Source: LLM-Pruner, arXiv:2305.11627, sections 3.1 and 3.2 (coupled structures, |weight * gradient| summed); FLAP,
    arXiv:2312.11983, sections 3.2 and 3.4 (variance of a channel times the weights that read it; the mean of removed
    channels becomes a bias). Differs: every layer loses the same number, where FLAP's search chooses one per layer; no
    bias where the config cannot express it (all but Llama-like models); heads are kept where the config cannot express
    their size.
    """
    check_tokens(tokens)
    heads, channels = coupled_structures(model)
    score = _taylor_scores if cut.method == "taylor" else _fluctuation_scores
    scores, means = score(model, tokens, (heads, channels), on_text)
    fewer_groups = max(1, round(heads.count * (1 - cut.ratio)))
    for groups, biased in ((fewer_groups, True), (fewer_groups, False), (heads.count, True), (heads.count, False)):
        if biased and not means:
            continue
        keep = (groups, _kept_channels(model, heads, channels, cut.ratio, groups))
        small = _cut_model(model, (heads, channels), keep, scores, means if biased else {})
        if _is_as_configured(small):
            if means and not biased:
                log.info(
                    "The config of %s allows no biases: the means of the removed channels are dropped.",
                    type(model).__name__,
                )
            return small
    raise _uncuttable(model, "its config cannot describe other widths")


def _cut_model(
    model: PreTrainedModel, both: tuple[Coupled, Coupled], keep: tuple[int, int], scores: Scores, means: Scores
) -> PreTrainedModel:
    tensors = [*model.parameters(), *model.buffers()]
    small = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    with torch.no_grad():
        for index, layer in enumerate(find_decoder(small).layers):
            for coupled, count in zip(both, keep, strict=True):
                kept = scores[index, coupled.reader].topk(count).indices.sort().values
                _cut(layer, coupled, kept, means.get((index, coupled.reader)))
            if means:
                _give_biases(layer)
    _set_widths(small, both[0], keep, biased=bool(means))
    return small


def _is_as_configured(model: PreTrainedModel) -> bool:
    """Whether a model built from the config has layers of the same shapes, biases included."""
    with torch.device("meta"):
        rebuilt = type(model)(model.config)
    shapes, rebuilt_shapes = (
        {name: parameter.shape for name, parameter in find_decoder(version).layers[0].named_parameters()}
        for version in (model, rebuilt)
    )
    return shapes == rebuilt_shapes


def coupled_structures(model: PreTrainedModel) -> tuple[Coupled, Coupled]:
    """The key-value groups of heads and the MLP channels of a layer.

    Raises:
        ModelError: if the layers have another structure, or differ in shape.
    """
    layers = find_decoder(model).layers
    maps = [
        {name: tuple(m.weight.shape) for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
        for layer in layers
    ]
    by_end = {name.rpartition(".")[2]: name for name in maps[0]}
    if set(by_end) != {*ATTENTION, *MLP} or len(maps[0]) != len(by_end) or any(shapes != maps[0] for shapes in maps):
        raise _uncuttable(model, "they do not consist of q, k, v, o and gate, up, down projections of the same shapes")
    q, k, v, o, gate, up, down = (by_end[end] for end in (*ATTENTION, *MLP))
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = q.rpartition(".")[0]
    norms = [p for name, p in layers[0].named_parameters() if name.startswith(attention) and "norm" in name]
    if any(norm.numel() > size for norm in norms):
        raise _uncuttable(model, "a norm spans all heads")
    groups = maps[0][k][0] // size
    rows = maps[0][q][0] // groups
    return Coupled({q: rows, k: size, v: size}, o, rows, groups), Coupled({gate: 1, up: 1}, down, 1, maps[0][up][0])


def _uncuttable(model: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(f"Cannot prune the width of {type(model).__name__} layers: {reason}. Prune depth only.")


def _kept_channels(model: PreTrainedModel, heads: Coupled, channels: Coupled, ratio: float, groups: int) -> int:
    """How many channels to keep with `groups` groups of heads, so that a layer loses about `ratio` of its weights."""
    layer = find_decoder(model).layers[0]
    group, channel = (_weights(layer, coupled) // coupled.count for coupled in (heads, channels))
    left = ratio * (group * heads.count + channel * channels.count) - group * (heads.count - groups)
    step = STEP if channels.count >= 8 * STEP else 1
    return max(step, channels.count - step * round(max(0.0, left) / channel / step))


def _weights(layer: nn.Module, coupled: Coupled) -> int:
    return sum(_map(layer, name).weight.numel() for name in (*coupled.makers, coupled.reader))


def _map(layer: nn.Module, name: str) -> nn.Linear:
    module = layer.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def _taylor_scores(
    model: PreTrainedModel, tokens: Tensor, both: tuple[Coupled, Coupled], on_text: OnText
) -> tuple[Scores, Scores]:
    layers = find_decoder(model).layers
    names = [(i, name) for i in range(len(layers)) for c in both for name in (*c.makers, c.reader)]
    weights = [cast(nn.Parameter, _map(layers[index], name).weight) for index, name in names]
    gradients = loss_gradients(model, tokens, weights, on_text)
    sums = {}  # over the rows and columns of each map: keeping every element would need as much memory as the model
    for place, weight, gradient in zip(names, weights, gradients, strict=True):
        importance = (weight.detach().float() * gradient).abs()
        sums[place] = (importance.sum(0, dtype=torch.float64), importance.sum(1, dtype=torch.float64))
    scores: Scores = {}
    for index in range(len(layers)):
        for coupled in both:
            by_reader = sums[index, coupled.reader][0].view(coupled.count, -1).sum(1)
            by_makers = [sums[index, name][1].view(coupled.count, -1).sum(1) for name in coupled.makers]
            scores[index, coupled.reader] = by_reader + torch.stack(by_makers).sum(0)
    return scores, {}


def _fluctuation_scores(
    model: PreTrainedModel, tokens: Tensor, both: tuple[Coupled, Coupled], on_text: OnText
) -> tuple[Scores, Scores]:
    """Scores, and the mean input of each reader."""
    layers = find_decoder(model).layers
    sums: dict[tuple[int, str], list[Tensor]] = {}

    def watch(place: tuple[int, str]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2).double()
            totals = sums.setdefault(place, [torch.zeros_like(x[0]), torch.zeros_like(x[0])])
            totals[0] += x.sum(0)
            totals[1] += x.square().sum(0)

        return add

    places = [(index, coupled) for index in range(len(layers)) for coupled in both]
    watching = (_map(layers[i], c.reader).register_forward_pre_hook(watch((i, c.reader))) for i, c in places)
    with hooked(watching), torch.inference_mode():
        for done, text in enumerate(tokens.to(model.device).split(1), 1):
            run_decoder(model, text)
            on_text(done, len(tokens))
    scores, means = {}, {}
    for index, coupled in places:
        mean, mean_square = (total / tokens.numel() for total in sums[index, coupled.reader])
        variance = (mean_square - mean.square()).clamp(min=0)
        norms = _map(layers[index], coupled.reader).weight.detach().double().square().sum(0)
        scores[index, coupled.reader] = (variance * norms).view(coupled.count, -1).sum(1)
        means[index, coupled.reader] = mean
    return scores, means


def _cut(layer: nn.Module, coupled: Coupled, kept: Tensor, mean: Tensor | None) -> None:
    for name, rows in coupled.makers.items():
        maker, places = _map(layer, name), _expanded(kept, rows)
        _set(maker, maker.weight[places], None if maker.bias is None else maker.bias[places])
    reader, columns = _map(layer, coupled.reader), _expanded(kept, coupled.columns)
    bias: Tensor | None = reader.bias
    if mean is not None:
        removed = torch.ones(reader.in_features, dtype=torch.bool, device=columns.device)
        removed[columns] = False
        compensation = (reader.weight[:, removed].double() @ mean[removed]).to(reader.weight.dtype)
        bias = compensation if bias is None else bias + compensation
    _set(reader, reader.weight[:, columns], bias)


def _expanded(kept: Tensor, size: int) -> Tensor:
    """Indexes of all rows that belong to the kept structures."""
    return (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    linear.out_features, linear.in_features = weight.shape


def _give_biases(layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, nn.Linear) and module.bias is None:
            _set(module, module.weight.detach(), torch.zeros(module.out_features).to(module.weight))


def _set_widths(model: PreTrainedModel, heads: Coupled, keep: tuple[int, int], biased: bool) -> None:
    """Write the new widths into the config, and into modules that store a copy of them."""
    config, size = model.config, next(iter(rows for name, rows in heads.makers.items() if name.endswith("k_proj")))
    per_group = heads.columns // size
    config.head_dim, config.num_key_value_heads, config.intermediate_size = size, keep[0], keep[1]
    config.num_attention_heads = per_group * keep[0]
    if biased:
        config.attention_bias = config.mlp_bias = True
    for layer in find_decoder(model).layers:
        for module in layer.modules():
            for name in ("num_heads", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
                if isinstance(module.__dict__.get(name), int):
                    setattr(module, name, getattr(config, name.replace("num_heads", "num_attention_heads")))
