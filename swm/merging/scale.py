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
from accelerate.utils.operations import recursively_apply
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from swm.errors import NoScaleError
from swm.merging.merged_layer import Divided, MergedLayer
from swm.merging.projection import bumped, is_linear_map, norm_offset
from swm.models.decoder import find_decoder
from swm.models.hooks import hooked
from swm.models.one_layer import OneLayer
from swm.models.replay import Replay
from swm.plan import MergePlan, Window
from swm.settings import SKIPPED_TOKENS

TRIED = 2.0  # factor that is tried out
LARGE = 100.0  # states over what a layer adds: what norms add to the mean square is nothing then
# Where norms add an epsilon to the mean square: torch's own, by what they take before it, and sums with a small number.
RMS_NORM = ("input", "normalized_shape", "weight")
NORMS: dict[Any, tuple[str, ...]] = {functional.rms_norm: RMS_NORM, functional.layer_norm: (*RMS_NORM, "bias")}
SUMS, SMALL, NOTHING = (Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add), 0.1, 1e-20
SAME, NEAR = 1e-3, 0.1  # relative difference up to which two layers are the same: at all, and where norms show theirs


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
    """Raise NoScaleError if a layer of the model cannot be scaled; takes some runs of every layer for a few tokens."""
    writes = Writes(model)
    for index in range(len(find_decoder(model).layers)):
        writes.of(index)


class Writes:
    """The parameters of each layer that must be divided to divide all that the layer adds to the hidden state.

    Layers are tried out on noise, in float32: in a model's own states a few tokens are so long that nothing else would
    be seen. What was found for one layer is tried first for the next.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        size = int(model.config.get_text_config().vocab_size)
        self._replay = Replay(model, (torch.arange(8)[None] * (size // 8)).to(model.device), keep_every=4)
        self._known: dict[str, float] = {}
        layers, reference = self._replay.layers, self._replay.reference
        self._uses = Counter(id(weight) for layer in layers for weight in layer.parameters())
        self._noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0)).to(reference.device)
        final, doubled = (self._replay.finish(times * self._noise.to(reference)).float() for times in (1.0, TRIED))
        if not (doubled - final).norm() <= NEAR * final.norm():
            raise _refused(layers[-1], "no norm follows the last one")

    @torch.no_grad()
    def of(self, index: int) -> dict[str, float]:
        """Names of the parameters of a layer, and what the layer adds to each before it multiplies by it."""
        layer = OneLayer(self._replay, index, self._noise.device)
        layer.module.float().register_forward_pre_hook(_in_float32, with_kwargs=True)
        added = (layer.run(self._noise) - self._noise).pow(2).mean().sqrt()
        if not added:
            return {}
        large = LARGE * added * self._noise
        if not _divides(layer, large, self._known, SAME):
            self._known = _found(layer, large)
        size = self._replay.input_of(index).float().pow(2).mean(-1).sqrt().median()
        usual = torch.minimum(size, LARGE * added) * self._noise
        exact = _divides(layer, large, self._known, SAME) and _divides(layer, usual, self._known, NEAR)
        with _WithoutEpsilon():
            exact = exact and _divides(layer, usual, self._known, SAME)
        if not exact:
            raise _refused(layer.module, "they read it without a norm")
        own = dict(self._replay.layers[index].named_parameters())
        if any(self._uses[id(own[name])] > 1 for name in self._known):
            raise _refused(layer.module, "they share weights")
        return self._known


def _in_float32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a layer is called with, its numbers in float32."""
    return recursively_apply(lambda numbers: numbers.float(), (args, kwargs), test_type=_has_fractions)


def _has_fractions(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _WithoutEpsilon(TorchFunctionMode):
    """Leaves out what norms add to the mean square, so that with usual states a norm must give exactly the same.

    With large ones alone, an activation function would pass for a norm: it is nearly linear for either sign then.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in NORMS:
            kwargs |= dict(zip(NORMS[func], args, strict=False))
            return func(**{**kwargs, "eps": NOTHING})
        if func in SUMS and len(args) == 2 and isinstance(args[1], float) and 0 < args[1] < SMALL:
            args = (args[0], NOTHING)
        return func(*args, **kwargs)


def _divides(layer: OneLayer, hidden: Tensor, divided: Mapping[str, float], same: float) -> bool:
    """Whether the layer with these parameters divided gives a part of what it gives for states as much larger.

    Args:
        same: relative difference that counts as none.
    """
    own = {name: weight.detach() for name, weight in layer.module.named_parameters()}
    if not divided.keys() <= own.keys():
        return False
    whole = layer.run(TRIED * hidden)
    layer.replace({name: Divided(TRIED, offset).of(own[name]) for name, offset in divided.items()})
    part = layer.run(hidden)
    layer.replace({name: own[name] for name in divided})
    return bool((TRIED * part - whole).norm() <= same * (whole - TRIED * hidden).norm())


def _found(layer: OneLayer, hidden: Tensor) -> dict[str, float]:
    """What to divide in a layer; raises NoScaleError where that is not all that it adds."""
    added = (layer.run(hidden) - hidden).norm()
    candidates, divided, terms = _candidates(layer.module, hidden.shape[-1]), dict[str, float](), list[str]()
    modules = dict(layer.module.named_modules())
    while True:
        with _silent([modules[name] for name in terms]):
            rest = layer.run(hidden)
            if (rest - hidden).norm() <= SAME * added:
                return divided
            left = (name for name in candidates if name not in terms)
            term = next((name for name in left if _is_term(layer, hidden, rest, modules[name])), None)
        if term is None:
            raise _refused(layer.module, "what they add to it is not a sum of linear maps, experts and norms")
        offset = norm_offset(layer, hidden, modules[term])
        divided |= {f"{term}.{name}": offset if name == "weight" else 0.0 for name in candidates[term]}
        terms.append(term)


def _is_term(layer: OneLayer, hidden: Tensor, before: Tensor, module: nn.Module) -> bool:
    """Whether a module's output is a term of the layer's output, up to a factor of each token (a gate's).

    Noise added to the module's output must appear in the layer's output, unchanged up to that.
    """
    with bumped(module) as bumps:
        change = layer.run(hidden) - before
    if len(bumps) != 1 or bumps[0].numel() != change.numel():
        return False
    bump = bumps[0].view_as(change)
    factor = (change * bump).sum(-1, keepdim=True) / (bump * bump).sum(-1, keepdim=True)
    return bool(change.any()) and bool((change - factor * bump).norm() <= 0.1 * change.norm())


def _refused(layer: nn.Module, reason: str) -> NoScaleError:
    return NoScaleError(
        f"Cannot rescale the hidden state between layers of {type(layer).__name__}: {reason}. Choose "
        "rule or repair fit, or --repair none."
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
