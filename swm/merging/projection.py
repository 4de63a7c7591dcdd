"""What can be solved at the end of a layer so that it gives another output; found by experiment, not by names.

In most families a layer ends in a sum whose last term is a linear map: the MLP's down projection. In some a norm
follows that map (Gemma 2 and 3, OLMo 2), or a router weighs the maps of several experts (Qwen3-MoE, Mixtral).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from swm.errors import NoFitError
from swm.models.hooks import hooked
from swm.models.one_layer import OneLayer

CLOSE = 1e-2  # relative difference up to which a module is taken to compute what it should


@dataclass(frozen=True)
class Projection:
    """A linear map of a layer whose output, times `scale`, is a term of the layer's output."""

    name: str
    module: nn.Module
    scale: float

    def matrix(self) -> Tensor:
        """The weight as float32, shape (in, out)."""
        weight = cast(Tensor, self.module.weight).detach().float()
        return weight if isinstance(self.module, Conv1D) else weight.T

    def parameters_for(self, matrix: Tensor) -> dict[str, Tensor]:
        """The layer's parameters that change for a matrix of shape (in, out)."""
        weight = cast(Tensor, self.module.weight)
        turned = matrix if isinstance(self.module, Conv1D) else matrix.T
        return {f"{self.name}.weight": turned.to(weight.dtype).contiguous()}


@dataclass(frozen=True)
class NormedProjection:
    """A linear map and the root mean square norm after it; the norm's output, times `scale`, is a term of the layer's.

    Attributes:
        offset: what the norm adds to its weight to get the factor of each channel: 1 in Gemma, 0 in OLMo 2.
        eps: what the norm adds to the mean square.
    """

    projection: Projection
    name: str
    norm: nn.Module
    scale: float
    offset: float
    eps: float

    def gain(self) -> Tensor:
        """The norm's factor for each channel, float32, shape (out,)."""
        return cast(Tensor, self.norm.weight).detach().float() + self.offset

    def parameters_for(self, matrix: Tensor, gain: Tensor) -> dict[str, Tensor]:
        """The layer's parameters that change for a matrix of shape (in, out) and factors of shape (out,)."""
        weight = cast(Tensor, self.norm.weight)
        return {
            **self.projection.parameters_for(matrix),
            f"{self.name}.weight": (gain - self.offset).to(weight.dtype),
        }


@dataclass(frozen=True)
class Experts:
    """Stacked experts whose output, times `scale`, is a term of the layer's output: each a gated MLP.

    The module is called with (tokens of shape (tokens, width), the experts that each token takes, their weights).
    """

    name: str
    module: nn.Module
    scale: float

    def features(self, tokens: Tensor, expert: int) -> Tensor:
        """What the expert's last linear map gets for these tokens, shape (tokens, in)."""
        stacked, activate = cast(Tensor, self.module.gate_up_proj), cast(nn.Module, self.module.act_fn)
        gate, up = nn.functional.linear(tokens, stacked[expert]).chunk(2, dim=-1)
        return cast(Tensor, activate(gate) * up)


Ending = Projection | NormedProjection | Experts


def ending_of(layer: OneLayer, hidden: Tensor) -> Ending:
    """What can be solved at the end of a layer.

    Args:
        hidden: a few of the layer's inputs, shape (rows, length, width).

    Raises:
        NoFitError: if nothing can.
    """
    before = layer.run(hidden).float()
    for find in (_projection, _experts, _normed_projection):
        if found := find(layer, hidden, before):
            return found
    raise NoFitError(
        f"Cannot fit layers of {type(layer.module).__name__}: they end neither in a sum with a linear map "
        "(also with a norm after it) nor in experts of the usual form. Choose another merge rule, or no repair."
    )


def _projection(layer: OneLayer, hidden: Tensor, before: Tensor) -> Projection | None:
    """The widest linear map whose output is a term of the layer's output; None if there is none."""
    modules = layer.module.named_modules()
    linear = [(name, module) for name, module in modules if _shape(module)[1] == hidden.shape[-1]]
    for name, module in sorted(linear, key=lambda item: -_shape(item[1])[0]):
        if scale := _scale_as_term(layer, hidden, before, module):
            return Projection(name, module, scale)
    return None


def _normed_projection(layer: OneLayer, hidden: Tensor, before: Tensor) -> NormedProjection | None:
    """The widest linear map with a norm after it that is a term of the layer's output; None if there is none."""
    found: list[tuple[int, NormedProjection]] = []
    width = hidden.shape[-1]
    modules = dict(layer.module.named_modules())
    norms = {name: m for name, m in modules.items() if getattr(getattr(m, "weight", None), "shape", None) == (width,)}
    for name, norm in norms.items():
        scale = _scale_as_term(layer, hidden, before, norm)
        if not scale:
            continue
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        linear = {n: m for n, m in modules.items() if _shape(m)[1] == width}
        watched = {name: norm, **linear}
        with hooked([m.register_forward_hook(_kept(seen, n)) for n, m in watched.items()]):
            layer.run(hidden)
        given, output = seen[name]
        source = next((n for n in linear if n in seen and _same(seen[n][1], given)), None)
        if source is None:
            continue
        eps = _eps(norm)
        offset = _offset(norm, given.float(), output.float(), eps)
        if offset is not None:
            projection = Projection(source, linear[source], 1.0)
            found.append((_shape(linear[source])[0], NormedProjection(projection, name, norm, scale, offset, eps)))
    return max(found, key=lambda one: one[0])[1] if found else None


def _experts(layer: OneLayer, hidden: Tensor, before: Tensor) -> Experts | None:
    """Stacked experts of the usual form whose output is a term of the layer's output; None if there are none."""
    for name, module in layer.module.named_modules():
        down, stacked = getattr(module, "down_proj", None), getattr(module, "gate_up_proj", None)
        if not (isinstance(down, Tensor) and isinstance(stacked, Tensor) and down.ndim == stacked.ndim == 3):
            continue
        count, width, inner = down.shape
        biases = any(name.endswith("bias") for name, _ in module.named_parameters())
        if stacked.shape != (count, 2 * inner, width) or biases or not hasattr(module, "act_fn"):
            continue
        scale = _scale_as_term(layer, hidden, before, module)
        if scale and _are_gated_maps(layer, hidden, found := Experts(name, module, scale)):
            return found
    return None


def _are_gated_maps(layer: OneLayer, hidden: Tensor, experts: Experts) -> bool:
    """Whether the experts' output is the weighted sum of their last linear maps."""
    calls: list[tuple[Any, ...]] = []
    with hooked([experts.module.register_forward_hook(lambda module, args, output: calls.append((*args, output)))]):
        layer.run(hidden)
    if len(calls) != 1 or len(calls[0]) != 4:
        return False
    tokens, chosen, weights, output = calls[0]
    down = cast(Tensor, experts.module.down_proj)
    if down.shape[1] != tokens.shape[-1]:
        return False
    expected = torch.zeros_like(output)
    for expert in chosen.unique().tolist():
        rows, places = torch.where(chosen == expert)
        maps = nn.functional.linear(experts.features(tokens[rows], expert), down[expert])
        expected.index_add_(0, rows, (maps * weights[rows, places, None]).to(expected.dtype))
    return bool((expected - output).float().norm() <= CLOSE * output.float().norm())


def norm_offset(layer: OneLayer, hidden: Tensor, module: nn.Module) -> float:
    """What a module of the layer adds to its weight before it multiplies by it: 1 if it is such a norm, else 0."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with hooked([module.register_forward_hook(_kept(seen, ""))]):
        layer.run(hidden)
    if "" not in seen or getattr(getattr(module, "weight", None), "ndim", 0) != 1:
        return 0.0
    given, output = seen[""]
    return _offset(module, given.float(), output.float(), _eps(module)) or 0.0


def _eps(norm: nn.Module) -> float:
    return float(getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None) or 0.0)


def _offset(norm: nn.Module, given: Tensor, output: Tensor, eps: float) -> float | None:
    """What a root mean square norm adds to its weight; None if the module computes something else."""
    scaled = given * torch.rsqrt(given.pow(2).mean(-1, keepdim=True) + eps)
    for offset in (0.0, 1.0):
        expected = scaled * (cast(Tensor, norm.weight).float() + offset)
        if (expected - output).norm() <= CLOSE * output.norm():
            return offset
    return None


def _kept(seen: dict[str, tuple[Tensor, Tensor]], name: str) -> Any:
    """A hook that keeps what a module gets and gives."""

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            seen[name] = args[0], output

    return keep


def _same(first: Tensor, second: Tensor) -> bool:
    return first.numel() == second.numel() and torch.equal(first.flatten(), second.flatten())


def is_linear_map(module: nn.Module, width: int) -> bool:
    """Whether it is a linear map with so many outputs."""
    return _shape(module)[1] == width


def _shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear map; (0, 0) for anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return 0, 0


def _scale_as_term(layer: OneLayer, hidden: Tensor, before: Tensor, module: nn.Module) -> float:
    """The factor with which a module's output is a term of the layer's output; 0 if it is none.

    Noise added to the module's output must appear in the layer's output, unchanged up to that factor.
    """
    with bumped(module) as bumps:
        change = layer.run(hidden).float() - before
    if len(bumps) != 1 or bumps[0].numel() != change.numel():
        return 0.0
    bump = bumps[0].float().view_as(change)  # some families flatten all tokens into one row
    scale = float((change * bump).sum() / (bump * bump).sum())
    return scale if (change - scale * bump).norm() <= 0.1 * change.norm() else 0.0


@contextmanager
def bumped(module: nn.Module) -> Iterator[list[Tensor]]:
    """Adds noise of the output's own size to the module's output; gives the noise of each call."""
    bumps: list[Tensor] = []

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        bumps.append(noise * output.float().std().clamp(min=1e-3).to(output.dtype))
        return output + bumps[-1]

    with hooked([module.register_forward_hook(add)]):
        yield bumps
