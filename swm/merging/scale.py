"""Rule `scale`: gives the hidden state after a merged layer the size that it had before layers were dropped.

Source: magnitude compensation of Prune&Comp, arXiv:2507.18212. The state would have to be multiplied by a factor. Where
every layer normalises what it reads, dividing all that the layers above add to it has the same effect and needs no new
parameters: the final norm takes away what is left. What a layer adds is found by experiment, not by names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import NoScaleError
from swm.merging.merged_layer import Divided, MergedLayer
from swm.merging.projection import CLOSE, is_linear_map, norm_offset, scale_as_term
from swm.models.decoder import find_decoder
from swm.models.hooks import hooked
from swm.models.one_layer import OneLayer
from swm.models.replay import Replay
from swm.plan import MergePlan, Window
from swm.settings import SKIPPED_TOKENS

TRIED = 2.0  # factor that is tried out
NEAR = 0.1  # relative difference up to which doing so in two ways is the same, also in bfloat16


def magnitude_factor(targets: Tensor, states: Tensor) -> float:
    """The mean length of the original's states over that of the merged model's, without the first tokens of each text.

    The first tokens have states so long that they alone would decide.

    Args:
        targets, states: of the original and of the merged model, shape (texts, length, width).
    """
    first = min(SKIPPED_TOKENS, targets.shape[1] - 1)
    wanted, own = (part[:, first:].float().norm(dim=-1).mean() for part in (targets, states))
    return float(wanted / own.clamp(min=1e-12))


def folded(model: PreTrainedModel, plan: MergePlan, made: Mapping[Window, MergedLayer]) -> Mapping[Window, MergedLayer]:
    """The same layers, with their factors folded into all layers above; also the plan's other layers where they change.

    Raises:
        NoScaleError: if a layer reads the hidden state without a norm, or adds to it in an unknown way.
    """
    if all(layer.factor == 1 for layer in made.values()):
        return made
    writes, total, result = Writes(model), 1.0, dict[Window, MergedLayer]()
    below = [window for window in plan.windows if window.first < 0]  # dropped; the embedding takes their place
    for window in [*below, *plan.kept_layers()]:
        layer = made.get(window, MergedLayer(window.first))
        if total != 1:
            divided = {name: Divided(total, offset) for name, offset in writes.of(layer.base).items()}
            result[window] = replace(layer, divided=divided, factor=1.0)
        elif window in made:
            result[window] = replace(layer, factor=1.0)
        total *= layer.factor
    return result


def check_scales(model: PreTrainedModel) -> None:
    """Raise NoScaleError if a layer of the model cannot be scaled; fast, since it tries one layer of each kind."""
    writes = Writes(model)
    for index in range(len(find_decoder(model).layers)):
        writes.of(index)


class Writes:
    """The parameters of each layer that must be divided to divide all that the layer adds to the hidden state."""

    def __init__(self, model: PreTrainedModel) -> None:
        size = int(model.config.get_text_config().vocab_size)
        self._replay = Replay(model, (torch.arange(8)[None] % size).to(model.device), keep_every=4)
        self._known: dict[Any, dict[str, float]] = {}
        self._uses = Counter(id(weight) for layer in self._replay.layers for weight in layer.parameters())

    @torch.no_grad()
    def of(self, index: int) -> dict[str, float]:
        """Names of the parameters of a layer, and what the layer adds to each before it multiplies by it."""
        layer = self._replay.layers[index]
        kind = layer_kind(layer)
        if kind not in self._known:
            hidden = self._replay.input_of(index)
            self._known[kind] = _found(OneLayer(self._replay, index, hidden.device), hidden)
        own = dict(layer.named_parameters())
        if any(self._uses[id(own[name])] > 1 for name in self._known[kind]):
            raise _refused(layer, "they share weights")
        return self._known[kind]


def layer_kind(layer: nn.Module) -> tuple[type, frozenset[tuple[str, torch.Size]]]:
    """Layers of one kind have the same class and weights: those with experts may share their class with others."""
    return type(layer), frozenset((name, weight.shape) for name, weight in layer.named_parameters())


def _found(layer: OneLayer, hidden: Tensor) -> dict[str, float]:
    """What to divide in a layer; its weights are divided when this returns."""
    added = (layer.run(hidden).float() - hidden).norm()
    hidden = hidden * (added / hidden.float().norm()).to(hidden.dtype)  # as large: rounding then hides neither
    doubled, terms = layer.run(TRIED * hidden).float(), list[str]()
    candidates, divided = _candidates(layer.module, hidden.shape[-1]), dict[str, float]()
    modules = dict(layer.module.named_modules())
    while True:
        with _silent([modules[name] for name in terms]):
            rest = layer.run(hidden).float()
            if (rest - hidden).norm() <= CLOSE * added:
                break
            term = next(
                (n for n in candidates if n not in terms and scale_as_term(layer, hidden, rest, modules[n])), None
            )
        if term is None:
            raise _refused(layer.module, "what they add to it is not a sum of linear maps, experts and norms")
        offset = norm_offset(layer, hidden, modules[term])
        divided |= {f"{term}.{name}": offset if name == "weight" else 0.0 for name in candidates[term]}
        terms.append(term)
    own = dict(layer.module.named_parameters())
    layer.replace({name: Divided(TRIED, offset).of(own[name]) for name, offset in divided.items()})
    if not (TRIED * layer.run(hidden).float() - doubled).norm() <= NEAR * (doubled - TRIED * hidden).norm():
        raise _refused(layer.module, "they read it without a norm")
    return divided


def _refused(layer: nn.Module, reason: str) -> NoScaleError:
    return NoScaleError(
        f"Cannot rescale the hidden state between layers of {type(layer).__name__}: {reason}. Choose another "
        "merge rule, or another repair."
    )


def _candidates(layer: nn.Module, width: int) -> dict[str, list[str]]:
    """Modules that may add to the hidden state, and their parameters: linear maps first, then experts, then norms."""
    linear, experts, norms = (dict[str, list[str]]() for _ in range(3))
    for name, module in layer.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if is_linear_map(module, width):
            linear[name] = list(own)
        elif any(one.startswith("down_proj") and weight.ndim >= 2 for one, weight in own.items()):
            experts[name] = [one for one in own if one.startswith("down_proj")]
        elif own and all(weight.shape == (width,) for weight in own.values()):
            norms[name] = list(own)
    return {**linear, **experts, **norms}


@contextmanager
def _silent(modules: list[nn.Module]) -> Iterator[None]:
    """Makes these modules give zeros."""
    with hooked([m.register_forward_hook(lambda module, args, output: torch.zeros_like(output)) for m in modules]):
        yield
