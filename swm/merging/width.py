"""Width pruning: attention heads (whole key-value groups) and MLP channels, the same number in every layer.

A model's config says its widths once for all layers, so only uniform shapes load with plain `from_pretrained`.
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

STEP = 8  # channels are kept in multiples of it where there are many: matrix products are fastest so
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
OnText = Callable[[int, int], None]
Scores = dict[tuple[int, str], Tensor]  # of a layer and a reader: one for each structure; or a mean for each column


@dataclass(frozen=True)
class Coupled:
    """Structures that go from several maps at once: rows of those that make them, columns of the one that reads them.

    Attributes:
        makers: name of a map in the layer -> its rows for one structure.
        reader: name of the map that reads them; `columns` of it for one structure.
        count: structures in a layer.
    """

    makers: dict[str, int]
    reader: str
    columns: int
    count: int


def prune_width(
    model: PreTrainedModel, cut: WidthCut, tokens: Tensor, on_text: OnText = lambda done, total: None
) -> PreTrainedModel:
    """A new model with narrower layers; nothing is trained.

    Args:
        model: not changed; what is not cut is shared with the new one.
        cut: heads go in whole groups, as many as the share rounds to; channels make up the rest of it.
        tokens: calibration text, ids of shape (texts, length), int64, no padding.
        on_text: called with (texts done, texts in all); may raise to stop.

    Raises:
        ModelError: if the layers are not made of q, k, v, o and gate, up, down projections of the same shapes.

    Source: LLM-Pruner, arXiv:2305.11627, sections 3.1 and 3.2 (coupled structures, |weight * gradient| summed); FLAP,
    arXiv:2312.11983, sections 3.2 and 3.4 (variance of a channel times the weights that read it, the mean of what goes
    as a bias). Differs: every layer loses the same number, where FLAP's search gives each its own; there is no bias
    where the config cannot say one (all but Llama's kind); heads stay where it cannot say their size.
    """
    check_tokens(tokens)
    heads, channels = coupled_structures(model)
    score = _taylor_scores if cut.method == "taylor" else _fluctuation_scores
    scores, means = score(model, tokens, (heads, channels), on_text)
    fewer = max(1, round(heads.count * (1 - cut.ratio)))
    for groups, biased in ((fewer, True), (fewer, False), (heads.count, True), (heads.count, False)):
        if biased and not means:
            continue
        keep = (groups, _kept_channels(model, heads, channels, cut.ratio, groups))
        small = _cut_model(model, (heads, channels), keep, scores, means if biased else {})
        if _is_as_configured(small):
            if means and not biased:
                log.info("The config of %s says no biases: the means of what goes are lost.", type(model).__name__)
            return small
    raise _uncuttable(model, "its config cannot say other widths")


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
    _tell(small, both[0], keep, biased=bool(means))
    return small


def _is_as_configured(model: PreTrainedModel) -> bool:
    """Whether a model made from the config has layers of these shapes, biases included."""
    with torch.device("meta"):
        made = type(model)(model.config)
    ours, theirs = (
        {name: parameter.shape for name, parameter in find_decoder(one).layers[0].named_parameters()}
        for one in (model, made)
    )
    return ours == theirs


def coupled_structures(model: PreTrainedModel) -> tuple[Coupled, Coupled]:
    """The groups of heads and the channels of a layer.

    Raises:
        ModelError: if the layers are made otherwise, or differ in shape.
    """
    layers = find_decoder(model).layers
    maps = [
        {name: tuple(m.weight.shape) for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
        for layer in layers
    ]
    by_end = {name.rpartition(".")[2]: name for name in maps[0]}
    if set(by_end) != {*ATTENTION, *MLP} or len(maps[0]) != len(by_end) or any(one != maps[0] for one in maps):
        raise _uncuttable(model, "they are not made of q, k, v, o and gate, up, down projections of the same shapes")
    q, k, v, o, gate, up, down = (by_end[end] for end in (*ATTENTION, *MLP))
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = q.rpartition(".")[0]
    norms = [p for name, p in layers[0].named_parameters() if name.startswith(attention) and "norm" in name]
    if any(norm.numel() > size for norm in norms):
        raise _uncuttable(model, "a norm runs over all heads")
    groups = maps[0][k][0] // size
    rows = maps[0][q][0] // groups
    return Coupled({q: rows, k: size, v: size}, o, rows, groups), Coupled({gate: 1, up: 1}, down, 1, maps[0][up][0])


def _uncuttable(model: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(f"The layers of {type(model).__name__} cannot be cut in width: {reason}. Cut depth alone.")


def _kept_channels(model: PreTrainedModel, heads: Coupled, channels: Coupled, ratio: float, groups: int) -> int:
    """How many channels stay beside so many groups, for the layers to lose this share of their weights, or nearly."""
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
    sums = {}  # over the rows and over the columns of a map: a copy of all would be as large as the model
    for place, weight, gradient in zip(names, weights, gradients, strict=True):
        matters = (weight.detach().float() * gradient).abs()
        sums[place] = (matters.sum(0, dtype=torch.float64), matters.sum(1, dtype=torch.float64))
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
    """Scores, and the mean of what each reader is given."""
    layers = find_decoder(model).layers
    sums: dict[tuple[int, str], list[Tensor]] = {}

    def watch(place: tuple[int, str]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2).double()
            found = sums.setdefault(place, [torch.zeros_like(x[0]), torch.zeros_like(x[0])])
            found[0] += x.sum(0)
            found[1] += x.square().sum(0)

        return add

    places = [(index, coupled) for index in range(len(layers)) for coupled in both]
    watching = (_map(layers[i], c.reader).register_forward_pre_hook(watch((i, c.reader))) for i, c in places)
    with hooked(watching), torch.inference_mode():
        for done, text in enumerate(tokens.to(model.device).split(1), 1):
            run_decoder(model, text)
            on_text(done, len(tokens))
    scores, means = {}, {}
    for index, coupled in places:
        total, squares = (part / tokens.numel() for part in sums[index, coupled.reader])
        variance = (squares - total.square()).clamp(min=0)
        norms = _map(layers[index], coupled.reader).weight.detach().double().square().sum(0)
        scores[index, coupled.reader] = (variance * norms).view(coupled.count, -1).sum(1)
        means[index, coupled.reader] = total
    return scores, means


def _cut(layer: nn.Module, coupled: Coupled, kept: Tensor, mean: Tensor | None) -> None:
    for name, rows in coupled.makers.items():
        maker, places = _map(layer, name), _expanded(kept, rows)
        _set(maker, maker.weight[places], None if maker.bias is None else maker.bias[places])
    reader, columns = _map(layer, coupled.reader), _expanded(kept, coupled.columns)
    bias: Tensor | None = reader.bias
    if mean is not None:
        gone = torch.ones(reader.in_features, dtype=torch.bool, device=columns.device)
        gone[columns] = False
        made = (reader.weight[:, gone].double() @ mean[gone]).to(reader.weight.dtype)
        bias = made if bias is None else bias + made
    _set(reader, reader.weight[:, columns], bias)


def _expanded(kept: Tensor, size: int) -> Tensor:
    """Places of all rows of the structures kept."""
    return (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    linear.out_features, linear.in_features = weight.shape


def _give_biases(layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, nn.Linear) and module.bias is None:
            _set(module, module.weight.detach(), torch.zeros(module.out_features).to(module.weight))


def _tell(model: PreTrainedModel, heads: Coupled, keep: tuple[int, int], biased: bool) -> None:
    """The new widths in the config, and in layers that keep a copy of them."""
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
