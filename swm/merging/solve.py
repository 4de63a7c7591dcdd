"""Solves the end of a layer so that the layer's output comes as near as it can to a target.

Each token counts by its relative error, and the first tokens of each text are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from swm.merging.projection import Ending, Experts, NormedProjection, Projection
from swm.models.hooks import hooked
from swm.models.one_layer import OneLayer
from swm.settings import SKIPPED_TOKENS

TURNS = 2  # at most: how often a projection and the norm after it are solved in turn
NORMED_RIDGES = (0.3, 0.1, 1.0)  # of a projection before a norm; the first one with too little text to choose
GAIN_RIDGE = 0.03  # draws the norm's factors towards the former ones
NEWTON_STEPS = 8
BLOCK = 4096  # tokens whose scaled inputs are in memory at a time
Parameters = dict[str, Tensor]
HELD_OUT = 8  # one part in this many is held out to choose the ridge
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # relative to the mean square of the features
DEFAULT_RIDGE = 0.1  # with too little text to choose one
Sums = tuple[Tensor, Tensor]
"""X'X, shape (in, in), and X'E, shape (in, out), in float64."""


@dataclass(frozen=True)
class Wanted:
    """A layer, and the output it should give.

    Attributes:
        parts: number of parts of the text.
        pair: the layer's input and the wanted output of one part, each of shape (rows, length, width).
    """

    layer: OneLayer
    parts: int
    pair: Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Rows:
    """One row for each token of some texts, without the first tokens of each.

    Attributes:
        given: what a module of the layer is called with.
        lacking: the wanted output minus the layer's, float32, shape (tokens, width).
        weight: 1 / norm of the wanted output, shape (tokens, 1).
    """

    given: tuple[Tensor, ...]
    lacking: Tensor
    weight: Tensor


def solved(ending: Ending, wanted: Wanted) -> Parameters:
    """The layer's parameters that change, by name, in their own dtype."""
    if isinstance(ending, Projection):
        return _solved_projection(ending, wanted)
    return _solved_normed(ending, wanted) if isinstance(ending, NormedProjection) else _solved_experts(ending, wanted)


def _solved_projection(projection: Projection, wanted: Wanted) -> Parameters:
    """One part of the text in HELD_OUT, if there are as many, is apart while the ridge is chosen."""
    sums: list[Sums | None] = [None, None]  # of the fitted parts, of the held-out parts
    for part in range(wanted.parts):
        rows = _rows(wanted, part, projection.module)
        side = int(part < wanted.parts // HELD_OUT)
        sums[side] = added(sums[side], rows.given[0].float() * rows.weight, rows.lacking * rows.weight)
    fitted, held_out = sums
    assert fitted is not None  # the last part is never held out
    ridge = best_ridge(fitted, held_out)
    if held_out is not None:
        fitted[0].add_(held_out[0])
        fitted[1].add_(held_out[1])
    sums[1] = held_out = None
    change = ridge_solution(*fitted, ridge) / projection.scale
    return projection.parameters_for(projection.matrix() + change.float())


def _rows(wanted: Wanted, part: int, module: nn.Module) -> _Rows:
    hidden, targets = wanted.pair(part)
    calls: list[tuple[Tensor, ...]] = []
    with hooked([module.register_forward_pre_hook(lambda module, args: calls.append(args))]):
        output = wanted.layer.run(hidden)
    target, result = (states[:, SKIPPED_TOKENS:].flatten(0, 1).float() for states in (targets, output))
    given = tuple(one.view(*hidden.shape[:2], -1)[:, SKIPPED_TOKENS:].flatten(0, 1) for one in calls[0])
    return _Rows(given, target - result, 1 / target.norm(dim=1, keepdim=True).clamp(min=1e-6))


def _all_rows(wanted: Wanted, module: nn.Module) -> tuple[_Rows, Tensor]:
    """The rows of all texts, and whether each one's text is held out: one text in HELD_OUT, if there are as many."""
    found = [_rows(wanted, part, module) for part in range(wanted.parts)]
    given = tuple(torch.cat(one) for one in zip(*(rows.given for rows in found), strict=True))
    rows = _Rows(given, torch.cat([one.lacking for one in found]), torch.cat([one.weight for one in found]))
    later = wanted.pair(0)[0].shape[1] - SKIPPED_TOKENS
    text = torch.arange(len(rows.weight), device=rows.weight.device) // later
    return rows, text % HELD_OUT == HELD_OUT - 1


def _solved_normed(normed: NormedProjection, wanted: Wanted) -> Parameters:
    """Projection and norm solved in turn, as long as that lowers the error on the held-out texts.

    The projection is solved for what the norm would have to give before its factors, and then the factors for what it
    does give. One turn comes about as far as a hundred steps along gradients; with little text it is all there is.
    """
    rows, apart = _all_rows(wanted, normed.projection.module)
    problem, best = _NormedRows.of(normed, rows), (normed.projection.matrix(), normed.gain())

    def turned(rows: _NormedRows, sums: Sums, ridge: float) -> tuple[Tensor, Tensor]:
        matrix = best[0] + ridge_solution(*sums, ridge).float()
        return matrix, rows.best_gain(matrix, normed.gain())

    if wanted.parts < HELD_OUT:  # too little text to choose by
        return normed.parameters_for(*turned(problem, problem.sums(*best), NORMED_RIDGES[0]))
    fitted, held_out = problem.part(~apart), problem.part(apart)
    least = held_out.error(*best)
    for _ in range(TURNS):
        sums = fitted.sums(*best)
        found = turned(fitted, sums, best_ridge(sums, held_out.sums(*best), NORMED_RIDGES))
        error = held_out.error(*found)
        if error >= least:
            break
        best, least = found, error
    return normed.parameters_for(*best)


@dataclass(frozen=True)
class _NormedRows:
    """Rows of a projection with a norm after it.

    Attributes:
        inputs: of the projection, shape (tokens, in).
        target: the wanted output of the norm, shape (tokens, out).
        weight: of each row, shape (tokens, 1).
        bias: of the projection, shape (out,) or 0.
        eps: of the norm.
    """

    inputs: Tensor
    target: Tensor
    weight: Tensor
    bias: Tensor | float
    eps: float

    @classmethod
    def of(cls, normed: NormedProjection, rows: _Rows) -> _NormedRows:
        bias = getattr(normed.projection.module, "bias", None)
        problem = cls(rows.given[0], rows.lacking, rows.weight, 0.0 if bias is None else bias.float(), normed.eps)
        now = torch.cat([block.output for block in problem.blocks(normed.projection.matrix())]) * normed.gain()
        return replace(problem, target=now + rows.lacking / normed.scale)

    def part(self, mask: Tensor) -> _NormedRows:
        """Some of the rows."""
        return replace(self, inputs=self.inputs[mask], target=self.target[mask], weight=self.weight[mask])

    def blocks(self, matrix: Tensor) -> Iterator[_NormedBlock]:
        """The rows with `matrix` as the projection, BLOCK at a time."""
        for rows in torch.arange(len(self.weight), device=self.weight.device).split(BLOCK):
            inputs = self.inputs[rows].float()
            before = inputs @ matrix + self.bias
            inverse = torch.rsqrt(before.pow(2).mean(1, keepdim=True) + self.eps)
            yield _NormedBlock(inputs * inverse, before * inverse, self.target[rows], self.weight[rows])

    def sums(self, matrix: Tensor, gain: Tensor) -> Sums:
        """The sums for a change of the projection after which the norm gives what comes nearest to the target."""
        sums: Sums | None = None
        for block in self.blocks(matrix):
            lacking = nearest_before_gain(block.target, gain) - block.output
            sums = added(sums, block.inputs * block.weight, lacking * block.weight)
        assert sums is not None
        return sums

    def best_gain(self, matrix: Tensor, former: Tensor) -> Tensor:
        """The norm's factors of least squared error, drawn towards the former ones."""
        cross, own = torch.zeros_like(former), torch.zeros_like(former)
        for block in self.blocks(matrix):
            cross += (block.output * block.target * block.weight.square()).sum(0)
            own += (block.output * block.weight).square().sum(0)
        pull = GAIN_RIDGE * own.mean()
        return (cross + pull * former) / (own + pull)

    def error(self, matrix: Tensor, gain: Tensor) -> float:
        """The squared relative error."""
        blocks = self.blocks(matrix)
        return sum(float(((one.output * gain - one.target) * one.weight).square().sum()) for one in blocks)


def nearest_before_gain(target: Tensor, gain: Tensor) -> Tensor:
    """The rows of mean square 1 that come nearest to the target once each channel is multiplied by its factor.

    That is gain * target / (gain ** 2 + m), with the number m for each row (Lagrange's multiplier) that makes its mean
    square 1, found by Newton's method for the reciprocal of its root mean square, as in trust-region methods (Moré and
    Sorensen 1983). Where m would be negative, target / gain is scaled instead.

    Args:
        target: shape (rows, width).
        gain: the factors, shape (width,); some may be 0.
    """
    product, square = gain * target, gain.square()
    multiplier = (1e-6 * square.mean()).clamp(min=1e-30).expand(len(target), 1)
    for _ in range(NEWTON_STEPS):
        inverse = (square + multiplier).reciprocal()
        squares = (product * inverse).square()
        size, slope = squares.mean(1, keepdim=True).sqrt(), (squares * inverse).mean(1, keepdim=True)
        step = (size - 1) * size.square() / slope.clamp(min=1e-30)
        multiplier = multiplier + torch.where(size > 1, step, 0.0)
    nearest = product / (square + multiplier)
    return nearest * torch.rsqrt(nearest.square().mean(1, keepdim=True).clamp(min=1e-12))


@dataclass(frozen=True)
class _NormedBlock:
    """Some rows: inputs and output, both divided by the root mean square of the output; target and weight."""

    inputs: Tensor
    output: Tensor
    target: Tensor
    weight: Tensor


def _solved_experts(experts: Experts, wanted: Wanted) -> Parameters:
    """The experts' last linear maps, solved one after the other for what the ones before leave of the error.

    An expert changes only if that lowers the error on the held-out texts.
    """
    rows, held_out = _all_rows(wanted, experts.module)
    tokens, chosen, shares = rows.given
    lacking = rows.lacking * rows.weight
    down = cast(Tensor, experts.module.down_proj).detach().clone()
    for expert in range(len(down)):
        taken, places = torch.where(chosen == expert)
        apart = held_out[taken]
        if not (~apart).any() or (held_out.any() and not apart.any()):
            continue
        features = experts.features(tokens[taken], expert).float() * shares[taken, places, None] * rows.weight[taken]
        fitted = added(None, features[~apart], lacking[taken][~apart])
        sums = added(None, features[apart], lacking[taken][apart]) if apart.any() else None
        change = ridge_solution(*fitted, best_ridge(fitted, sums))
        if sums is None or error_change(change, sums) < 0:
            lacking[taken] -= features @ change.float()
            down[expert] += (change.T / experts.scale).to(down.dtype)
    return {f"{experts.name}.down_proj": down}


def added(sums: Sums | None, features: Tensor, residual: Tensor) -> Sums:
    """The sums with those of some more rows, shapes (rows, in) and (rows, out); changes `sums` in place."""
    gram, cross = features.T @ features, features.T @ residual
    return (gram.double(), cross.double()) if sums is None else (sums[0].add_(gram), sums[1].add_(cross))


def best_ridge(fitted: Sums, held_out: Sums | None, ridges: Sequence[float] = RIDGES) -> float:
    """The ridge whose solution does best on the sums of the held-out text; the default one without such text."""
    if held_out is None:
        return DEFAULT_RIDGE
    return min(ridges, key=lambda ridge: error_change(ridge_solution(*fitted, ridge), held_out))


def error_change(change: Tensor, sums: Sums) -> float:
    """The squared error with a change of the linear map, shape (in, out), minus that without it."""
    gram, cross = sums
    return float((change * (gram @ change)).sum() - 2 * (change * cross).sum())


def ridge_solution(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The change of the linear map, shape (in, out), in float64.

    Args:
        ridge: relative to the mean of the gram matrix's diagonal.

    Memory: the gram matrix twice.
    """
    ridged = gram.clone()
    ridged.diagonal().add_(ridge * gram.diagonal().mean().clamp(min=1e-12))
    return torch.cholesky_solve(cross, torch.linalg.cholesky(ridged, out=ridged))
