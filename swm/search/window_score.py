"""How similar a model with merged windows stays to the original: the score that the search uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swm.merging.apply import can_merge, merge_window
from swm.merging.merged_layer import MergedLayer
from swm.models.decoder import find_decoder, size_bytes
from swm.models.layer_outputs import check_tokens
from swm.models.offload import free_bytes_on
from swm.models.replay import Replay
from swm.plan import DEFAULT_RULE, MergePlan, Needed, Window
from swm.search.walk import Windows

PART_TOKENS = {"cpu": 384, "gpu": 16384}  # at most in one pass: on a CPU, more is hardly faster but needs more memory
TOGETHER = {"cpu": 1, "gpu": 4}  # windows scored in one batch at most: each needs its own merged layer


class WindowScorer:
    """Scores how similar a model with merged windows stays to the original.

    Starts at the recorded input of the window's first layer, since everything below is unchanged; never copies the
    model. If memory is short, it needs only one extra layer: it then recomputes merged layers for each use.

    Args:
        keep_every: as for `Replay`.
        fast: scores in bfloat16, which can be off by 0.001 (LOG.md); see `search.find.confirmed_plan`.
        merged: makes the merged layer of a window; by default `rule`, which must then be one that needs no text.
        needed_layers: sets of layers of which one at least must stay, see `planners.needed`.

    Source: arXiv:2502.19159, Fig. 2c: cosine of the final hidden states over all tokens of a text, averaged over texts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        rule: str = DEFAULT_RULE,
        keep_every: int = 4,
        fast: bool = False,
        merged: Callable[[Window], MergedLayer] | None = None,
        needed_layers: Needed = (),
    ) -> None:
        check_tokens(tokens)
        self.rule, self._make, self._needed = rule, merged, needed_layers
        kind = "cpu" if model.device.type == "cpu" else "gpu"
        most = PART_TOKENS[kind]
        if fast:
            most *= 2  # fewer parts: each one converts a layer's weights again
        self.at_once = min(TOGETHER[kind], max(1, most // tokens.numel()))
        self.kept_layers = max(1, free_bytes_on(model.device) // (4 * size_bytes(find_decoder(model).layers[0])))
        lean = self.kept_layers == 1
        self._part = max(1, most // (4 if lean else 1) // tokens.shape[1])
        self._replay = Replay(model, tokens.to(model.device), keep_every, fast, self._part, lean)
        self._layers = self._replay.layers
        self._lost: Tensor | None = None  # 1 - cosine of each text for the window scored last
        self._made: dict[Window, MergedLayer] = {}

    @property
    def layer_runs(self) -> float:
        """Layer runs so far; a run over some of the texts counts by their share."""
        return round(self._replay.layer_runs, 1)

    @torch.inference_mode()
    def score(self, merged_above: Windows, window: Window, needed: float = -1.0) -> float:
        """Mean cosine to the original's final hidden state, in [-1, 1]; NaN if the merged model overflows.

        Args:
            needed: stop as soon as the remaining texts cannot raise the mean to this value (no cosine is above 1). A
                result below `needed` is then an upper bound.

        A window that cannot be merged scores 0, which every threshold rejects: one whose layers differ in shape, or
        that leaves none of the needed layers.
        """
        if not self._can_merge(merged_above, window):
            return 0.0
        layers = [window, *self._layers_above(merged_above, window.last + 1)]
        self._made = {key: layer for key, layer in self._made.items() if key in layers}  # the search has moved on
        replay, texts = self._replay, len(self._replay.reference)
        left, mean = texts, 1.0
        lost = torch.zeros(texts, dtype=torch.float64)
        order = torch.arange(texts) if needed <= -1.0 or self._lost is None else self._lost.argsort(descending=True)
        while left and not mean < needed:
            done = texts - left
            rows = order[done : done + self._next_part(order, lost, done, needed)]
            hidden = replay.input_of(max(window.first, 0), rows)
            for layer in layers:
                hidden = self._run(hidden, layer)
            lost[rows] = 1 - text_cosines(replay.finish(hidden), replay.reference[rows]).clamp(max=1.0).cpu()
            left -= len(rows)
            mean = 1 - float(lost.sum()) / texts
        self._lost = self._expected(order, lost, texts - left)
        return mean

    @torch.inference_mode()
    def score_together(self, merged_above: Windows, windows: Sequence[Window]) -> list[float]:
        """The `score` of each window; runs the layers above all of them once, in one batch.

        For GPUs, which small batches leave idle; on a CPU it takes as long as scoring one by one. Memory: one merged
        layer and the hidden states of all texts for each window.
        """
        scores = dict.fromkeys(windows, 0.0)
        fitting = sorted((w for w in windows if self._can_merge(merged_above, w)), key=lambda window: window.last)
        replay, batch = self._replay, torch.empty(0)
        for place, window in enumerate(fitting):
            for layer in range(fitting[place - 1].last + 1 if place else 0, window.last + 1 if place else 0):
                batch = replay.run(batch, layer)  # bring the lower windows up to where this one ends
            own = self._run(replay.input_of(max(window.first, 0)), window)
            batch = torch.cat([batch.to(own.device), own]) if place else own
        if fitting:
            for above in self._layers_above(merged_above, fitting[-1].last + 1):
                batch = self._run(batch, above)
            for window, states in zip(fitting, replay.finish(batch).split(len(replay.reference)), strict=True):
                scores[window] = float(text_cosines(states, replay.reference).clamp(max=1.0).mean())
        return [scores[window] for window in windows]

    def _can_merge(self, merged_above: Windows, window: Window) -> bool:
        if not can_merge(self._layers, window, self.rule):
            return False
        windows = (window, *merged_above)
        return not self._needed or not MergePlan(len(self._layers), windows, self.rule).lost(self._needed)

    def score_all(self, keys: Sequence[tuple[Windows, Window]]) -> list[float]:
        """The `score` of each (windows merged above, window), several together where that is faster."""
        groups: dict[Windows, list[Window]] = {}
        for above, window in keys:
            groups.setdefault(above, []).append(window)
        scores: dict[tuple[Windows, Window], float] = {}
        for above, windows in groups.items():
            for place in range(0, len(windows), self.at_once):
                part = windows[place : place + self.at_once]
                found = self.score_together(above, part) if len(part) > 1 else [self.score(above, part[0])]
                scores |= {(above, window): score for window, score in zip(part, found, strict=True)}
        return [scores[key] for key in keys]

    def _expected(self, order: Tensor, lost: Tensor, done: int) -> Tensor:
        """Expected loss of each text: measured for those run, for the others scaled from the previous window."""
        ran, others = order[:done], order[done:]
        before = torch.ones_like(lost) if self._lost is None else self._lost
        expected = lost.clone()
        expected[others] = before[others] * (lost[ran].sum() / before[ran].sum().clamp(min=1e-12))
        return expected

    def _next_part(self, order: Tensor, lost: Tensor, done: int, needed: float) -> int:
        """How many texts to run next: as few as will probably decide whether the window passes."""
        texts = len(order)
        enough = texts - done
        if self._lost is not None and needed > -1.0:
            expected = self._expected(order, lost, done) if done else self._lost
            sums = lost[order[:done]].sum() + expected[order[done:]].cumsum(0)
            enough = min(enough, int((sums <= texts * (1 - needed)).sum()) + 1)
        return math.ceil(enough / math.ceil(enough / self._part))  # in parts of equal size

    def _layers_above(self, merged_above: Windows, layer: int) -> list[Window]:
        """The merged model's layers from an original layer upward, as windows; those of one layer are unmerged."""
        windows, by_first = [], {window.first: window for window in merged_above}
        while layer < len(self._layers):
            windows.append(by_first.get(layer, Window(layer, layer)))
            layer = windows[-1].last + 1
        return windows

    def _run(self, hidden: Tensor, window: Window) -> Tensor:
        if window.first < 0:  # dropped: the embedding feeds the layer above
            return hidden
        if len(window) == 1:
            return self._replay.run(hidden, window.first)
        return self._merged(window).run(self._replay, hidden)

    def _merged(self, window: Window) -> MergedLayer:
        """The window's merged layer, from a cache of the most recently used ones."""
        merged = self._made.pop(window, None)
        while merged is None and len(self._made) >= self.kept_layers:
            del self._made[next(iter(self._made))]
        if merged is None:
            merged = self._make(window) if self._make else merge_window(self._layers, window, self.rule)
        self._made[window] = merged
        return merged


def text_cosines(states: Tensor, reference: Tensor) -> Tensor:
    """Cosine of each text's states, flattened over its tokens, shape (texts,), float64.

    Args:
        states, reference: shape (texts, length, width); compared in float32, summed in float64.
    """
    x, y = states.float().flatten(1), reference.float().flatten(1)
    dot, xx, yy = ((a * b).sum(1, dtype=torch.float64) for a, b in ((x, y), (x, x), (y, y)))
    return dot / (xx * yy).sqrt()
