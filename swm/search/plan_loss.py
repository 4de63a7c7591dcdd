"""The loss of a plan's model on calibration text, without building that model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from swm.merging.apply import can_merge, merge_window
from swm.merging.merged_layer import MergedLayer
from swm.models.replay import Replay
from swm.plan import MergePlan, Window
from swm.search.vocabulary import VocabularySample

PART_TOKENS = 1024  # in one forward pass


class PlanLoss:
    """Loss of a plan's model on calibration text, in nats per token.

    The layers below a plan's lowest window are not run again: their output is recorded once for all plans.

    Args:
        model: not changed.
        make: makes the merged layer of a window; by default the plan's rule.
        fast: matrix products in bfloat16, which changes a loss by about 0.001.
        sample: of the vocabulary, to estimate losses from. Losses near the original's change by less than 0.01, those
            of ruined models by up to a few percent.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        make: Callable[[Window], MergedLayer] | None = None,
        fast: bool = False,
        sample: VocabularySample | None = None,
    ) -> None:
        part = max(1, PART_TOKENS // tokens.shape[1])
        self._tokens = tokens.to(model.device)
        self._replay = Replay(model, self._tokens, keep_every=4, fast=fast, part=part)
        self._layers = self._replay.layers
        self._rows = torch.arange(len(tokens)).split(part)
        self._make = make
        self._sample = sample

    @torch.no_grad()
    def __call__(self, plan: MergePlan) -> float:
        """The loss; infinite if windows cannot be merged or the model overflows."""
        layers = self._layers
        if not all(can_merge(layers, window, plan.rule) for window in plan.windows):
            return math.inf
        make = self._make or (lambda window: merge_window(layers, window, plan.rule))
        lowest = min((window.first for window in plan.windows), default=plan.layer_count - 1)
        made = (
            make(window) if len(window) > 1 else MergedLayer(window.first)
            for window in plan.kept_layers()
            if window.first >= lowest
        )
        return self.of(made, max(lowest, 0))

    @torch.no_grad()
    def of(self, layers: Iterable[MergedLayer], lowest: int) -> float:
        """The loss of the model that runs these layers from what the original's layer `lowest` receives."""
        states = [self._replay.input_of(lowest, rows) for rows in self._rows]
        for merged in layers:
            states = [merged.run(self._replay, hidden) for hidden in states]
        total = 0.0
        for rows, hidden in zip(self._rows, states, strict=True):
            total += float(self._losses(hidden, self._tokens[rows, 1:].flatten()).sum())
        mean = total / self._tokens[:, 1:].numel()
        return mean if math.isfinite(mean) else math.inf

    def _losses(self, hidden: Tensor, text: Tensor) -> Tensor:
        sample = self._sample
        logits = self._replay.logits(hidden, sample.tokens if sample else None)[:, :-1].float().flatten(0, 1)
        return sample.losses(logits, text) if sample else F.cross_entropy(logits, text, reduction="none")
