"""How similar a model with merged windows stays to the original: the score that the search asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swm.merging.apply import MergedLayer, can_merge, merge_window
from swm.models.decoder import find_decoder, size_bytes
from swm.models.layer_outputs import check_tokens
from swm.models.offload import free_bytes_on
from swm.models.replay import Replay
from swm.plan import DEFAULT_RULE, Window
from swm.search.walk import Windows

PART_TOKENS = {"cpu": 384, "gpu": 16384}  # run together at most: on a CPU more is hardly faster and needs more memory
TOGETHER = {"cpu": 1, "gpu": 4}  # windows scored in one batch at most: each needs a merged layer of its own


class WindowScorer:
    """How similar a model with merged windows stays to the original: the score the search asks for.

    Starts at the recorded input of the window's first layer, since everything below is untouched; never copies the
    model. Where memory is short it takes that of one layer more: merged layers are made anew for each use.

    Args:
        merged: makes the merged layer of a window; by default `rule` does, which has to be one of WEIGHT_RULES.

    With `fast`, in bfloat16: a similarity can then be 0.001 off (LOG.md); see `search.find.confirmed_plan`.

    Source: arXiv:2502.19159, Fig. 2c: cosine of the final hidden states, over all tokens of a text, mean of texts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        rule: str = DEFAULT_RULE,
        keep_every: int = 4,
        fast: bool = False,
        merged: Callable[[Window], MergedLayer] | None = None,
    ) -> None:
        check_tokens(tokens)
        self.rule, self._make = rule, merged
        kind = "cpu" if model.device.type == "cpu" else "gpu"
        most = PART_TOKENS[kind]
        if fast:
            most *= 2  # a layer's weights are converted anew for each part
        self.at_once = min(TOGETHER[kind], max(1, most // tokens.numel()))
        self.kept_layers = max(1, free_bytes_on(model.device) // (4 * size_bytes(find_decoder(model).layers[0])))
        lean = self.kept_layers == 1
        self._part = max(1, most // (4 if lean else 1) // tokens.shape[1])
        self._replay = Replay(model, tokens.to(model.device), keep_every, fast, self._part, lean)
        self._layers = self._replay.layers
        self._lost: Tensor | None = None  # of each text's cosine, against 1, when a window was last scored
        self._made: dict[Window, MergedLayer] = {}

    @property
    def layer_runs(self) -> float:
        """Layers run so far; one that was run for some of the texts counts by their share."""
        return round(self._replay.layer_runs, 1)

    @torch.inference_mode()
    def score(self, merged_above: Windows, window: Window, needed: float = -1.0) -> float:
        """Mean cosine to the original's final hidden state, in [-1, 1]; NaN if the merged model overflows.

        Args:
            needed: texts are left out as soon as the rest of them cannot lift the mean to this, as no cosine is above
                1. A value below `needed` is then the most that the mean could be.

        A window whose layers differ in shape cannot be merged: its score is 0, which every threshold rejects.
        """
        if not can_merge(self._layers, window, self.rule):
            return 0.0
        layers = [window, *self._layers_above(merged_above, window.last + 1)]
        self._made = {known: layer for known, layer in self._made.items() if known in layers}  # the search went on
        replay, texts = self._replay, len(self._replay.reference)
        left, mean = texts, 1.0
        lost = torch.zeros(texts, dtype=torch.float64)
        order = torch.arange(texts) if needed <= -1.0 or self._lost is None else self._lost.argsort(descending=True)
        while left and not mean < needed:
            done = texts - left
            rows = order[done : done + self._next_part(order, lost, done, needed)]
            hidden = replay.input_of(max(window.first, 0), rows)
            for each in layers:
                hidden = self._run(hidden, each)
            lost[rows] = 1 - text_cosines(replay.finish(hidden), replay.reference[rows]).clamp(max=1.0).cpu()
            left -= len(rows)
            mean = 1 - float(lost.sum()) / texts
        self._lost = self._expected(order, lost, texts - left)
        return mean

    @torch.inference_mode()
    def score_together(self, merged_above: Windows, windows: Sequence[Window]) -> list[float]:
        """As `score` for each window; the layers above them, which they share, are run once for all in one batch.

        For a GPU, which small batches leave idle; on a CPU it takes as long as one after the other. Memory: one merged
        layer and the hidden states of all texts for each window.
        """
        found = dict.fromkeys(windows, 0.0)
        fitting = sorted((w for w in windows if can_merge(self._layers, w, self.rule)), key=lambda window: window.last)
        replay, batch = self._replay, torch.empty(0)
        for place, window in enumerate(fitting):
            for layer in range(fitting[place - 1].last + 1 if place else 0, window.last + 1 if place else 0):
                batch = replay.run(batch, layer)  # those that start lower, up to where this one ends
            own = self._run(replay.input_of(max(window.first, 0)), window)
            batch = torch.cat([batch.to(own.device), own]) if place else own
        if fitting:
            for each in self._layers_above(merged_above, fitting[-1].last + 1):
                batch = self._run(batch, each)
            for window, states in zip(fitting, replay.finish(batch).split(len(replay.reference)), strict=True):
                found[window] = float(text_cosines(states, replay.reference).clamp(max=1.0).mean())
        return [found[window] for window in windows]

    def _expected(self, order: Tensor, lost: Tensor, done: int) -> Tensor:
        """What each text loses: those run as found, the others as with the window before, in proportion."""
        ran, others = order[:done], order[done:]
        before = torch.ones_like(lost) if self._lost is None else self._lost
        expected = lost.clone()
        expected[others] = before[others] * (lost[ran].sum() / before[ran].sum().clamp(min=1e-12))
        return expected

    def _next_part(self, order: Tensor, lost: Tensor, done: int, needed: float) -> int:
        """How many texts to run together next, so that in all as few are run as will likely settle the matter."""
        texts = len(order)
        enough = texts - done
        if self._lost is not None and needed > -1.0:
            expected = self._expected(order, lost, done) if done else self._lost
            sums = lost[order[:done]].sum() + expected[order[done:]].cumsum(0)
            enough = min(enough, int((sums <= texts * (1 - needed)).sum()) + 1)
        return math.ceil(enough / math.ceil(enough / self._part))  # in parts of one size

    def _layers_above(self, merged_above: Windows, layer: int) -> list[Window]:
        """What each layer of the merged model is made from, from an original one upward; windows of one are as they
        were."""
        found, by_first = [], {window.first: window for window in merged_above}
        while layer < len(self._layers):
            found.append(by_first.get(layer, Window(layer, layer)))
            layer = found[-1].last + 1
        return found

    def _run(self, hidden: Tensor, window: Window) -> Tensor:
        if window.first < 0:  # the embedding stands for it
            return hidden
        if len(window) == 1:
            return self._replay.run(hidden, window.first)
        merged = self._merged(window)
        return self._replay.run(hidden, merged.base, merged.parameters)

    def _merged(self, window: Window) -> MergedLayer:
        """The merged layer; as many are kept as there is room for, those used last."""
        found = self._made.pop(window, None)
        while found is None and len(self._made) >= self.kept_layers:
            del self._made[next(iter(self._made))]
        if found is None:
            found = self._make(window) if self._make else merge_window(self._layers, window, self.rule)
        self._made[window] = found
        return found


def text_cosines(states: Tensor, reference: Tensor) -> Tensor:
    """Cosine of each text's states, flattened over its tokens, shape (texts,), float64.

    Args:
        states, reference: shape (texts, length, width); compared in float32, summed in float64.
    """
    x, y = states.float().flatten(1), reference.float().flatten(1)
    dot, xx, yy = ((a * b).sum(1, dtype=torch.float64) for a, b in ((x, y), (x, x), (y, y)))
    return dot / (xx * yy).sqrt()
