"""Abilities that a plan is judged by, in place of perplexity: the mean rise of their bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.evaluation.ability_scores import PackReplay, Scores, sharing_packs
from swm.evaluation.packs import encoded
from swm.evaluation.paired import bits_per_byte
from swm.merging.merged_layer import MergedLayer
from swm.plan import Window
from swm.search.plan_loss import PlanLoss
from swm.texts.requests import Request


class KeptAbilities:
    """Requests that plans are judged by.

    Args:
        requests: of each ability, in the order of their numbers in packs.
        weights: of each ability, above 0.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Mapping[str, Sequence[Request]],
        weights: Mapping[str, float],
        fast: bool = False,
    ) -> None:
        read = {name: encoded(tokenizer, asked, model) for name, asked in requests.items()}
        make = sharing_packs(model, [each for one in read.values() for each in one], fast)
        self._packs = [(name, pack) for name, one in read.items() for pack in make(one)]
        self._requests, self._weights, self._fast = requests, weights, fast
        self._original: dict[str, float] = {}

    def rise(self, scores: Iterable[tuple[str, Scores]]) -> float:
        """The weighted mean of the abilities' rises against the original, as a share; from the scores of all packs."""
        bits = self._bits(scores)
        rises = {name: value / self._original[name] - 1 for name, value in bits.items()}
        total = math.fsum(self._weights[name] * value for name, value in rises.items())
        return total / math.fsum(self._weights.values())

    def _bits(self, scores: Iterable[tuple[str, Scores]]) -> dict[str, float]:
        """The mean of bits per byte of the right answers of each ability."""
        found: dict[str, list[float]] = {name: [] for name in self._requests}
        for name, some in scores:
            for (number, choice), value in some.items():
                request = self._requests[name][number]
                if choice == request.right:
                    found[name].append(bits_per_byte(value, len(request.answer.encode("utf-8", "replace"))))
        return {name: math.fsum(values) / len(values) for name, values in found.items()}

    def rise_of(self, model: PreTrainedModel) -> float:
        """The rise of another model with the same tokens, such as one that was merged."""
        return self.rise((name, PackReplay(model, pack, self._fast).original()) for name, pack in self._packs)

    def loss(
        self, model: PreTrainedModel, make: Callable[[Window], MergedLayer] | None = None, fast: bool = False
    ) -> PlanLoss:
        """The rise that a plan of the original model causes; `make` as for `PlanLoss`."""
        replays = [(name, PackReplay(model, pack, self._fast or fast)) for name, pack in self._packs]
        self._original = self._original or self._bits((name, replay.original()) for name, replay in replays)
        return _Loss(self, replays, make)


class _Loss(PlanLoss):
    """A PlanLoss whose value is a rise."""

    def __init__(
        self,
        kept: KeptAbilities,
        replays: Sequence[tuple[str, PackReplay]],
        make: Callable[[Window], MergedLayer] | None,
    ) -> None:
        self._kept, self._replays, self._make = kept, replays, make
        self._layers = replays[0][1].replay.layers

    @torch.no_grad()
    def of(self, layers: Iterable[MergedLayer], lowest: int) -> float:
        """The rise of the model that runs these layers from what the original's layer `lowest` receives."""
        made, scores = list(layers), []
        for name, pack in self._replays:
            hidden = pack.replay.input_of(lowest)
            with pack.running() as replay:
                for merged in made:
                    hidden = merged.run(replay, hidden)
            scores.append((name, pack.of(hidden)))
        value = self._kept.rise(scores)
        return value if math.isfinite(value) else math.inf
