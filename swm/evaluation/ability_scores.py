"""How well a model answers requests, as a whole and without one of its layers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import ModelError, first_line
from swm.evaluation.packs import Encoded, Pack, attending, packs
from swm.evaluation.token_tree import only_at
from swm.models.layer_parts import PARTS, part_weights
from swm.models.offload import is_offloaded, weights_of
from swm.models.replay import Replay

AT_ONCE = 6_000_000  # logits in memory: the allocator asks the system anew for more
ROUNDING, EXACT_ROUNDING = 0.2, 1e-3  # by which a log-likelihood may differ, relative to it or to 1 nat
BROKEN = -1e4  # nats: log-likelihood of an answer whose model overflows
Scores = dict[tuple[int, int], float]  # log-likelihood in nats, by request and choice
log = logging.getLogger(__name__)


class PackReplay:
    """A pack that runs through a model's layers from any of them upward.

    Args:
        model: causal LM in eval mode; not changed.
        fast: matrix products in bfloat16 (autocast).
    """

    def __init__(self, model: PreTrainedModel, pack: Pack, fast: bool = False) -> None:
        self.model, self.pack, self._fast = model, pack, fast
        positions = pack.positions
        with attending(model, pack):
            self.replay = Replay(
                model,
                pack.tokens.to(model.device),
                fast=fast,
                positions=None if positions is None else positions.to(model.device),
            )
        predicted = torch.tensor([place for places in pack.places for place in places])
        self._places, self._row_of = predicted.unique(return_inverse=True)  # choices that begin alike share places
        self._targets = torch.tensor([token for *_, answer in pack.scored for token in answer])

    @contextmanager
    def running(self) -> Iterator[Replay]:
        """The replay, with attention as the pack needs it."""
        with attending(self.model, self.pack):
            yield self.replay

    @torch.inference_mode()
    def original(self) -> Scores:
        """Log-likelihood of every choice."""
        top = len(self.replay.layers) - 1
        return self.of(self._run(self.replay.input_of(top), range(top, top + 1)))

    @torch.inference_mode()
    def without(self, layer: int, part: str = "layer") -> Scores:
        """Log-likelihood of every choice without a layer, or without one of its PARTS."""
        if part == "layer":
            return self.without_all([layer])
        hidden = self.replay.input_of(layer)
        module = self.replay.layers[layer]
        weights = weights_of(module)
        zeros = {name: torch.zeros_like(weights[name]) for name in part_weights(module, part)}
        with self.running() as replay:
            hidden = replay.run(hidden, layer, zeros)
        return self.of(self._run(hidden, range(layer + 1, len(self.replay.layers))))

    @torch.inference_mode()
    def without_all(self, layers: Collection[int]) -> Scores:
        """Log-likelihood of every choice without these layers, one at least."""
        lowest = min(layers)
        left = (layer for layer in range(lowest, len(self.replay.layers)) if layer not in layers)
        return self.of(self._run(self.replay.input_of(lowest), left))

    def _run(self, hidden: Tensor, layers: Iterable[int]) -> Tensor:
        with self.running() as replay:
            for layer in layers:
                hidden = replay.run(hidden, layer)
        return hidden

    @torch.inference_mode()
    def of(self, hidden: Tensor) -> Scores:
        """Log-likelihood of every choice, from the last layer's output."""
        head, found = self.model.get_output_embeddings(), torch.empty(len(self._targets), dtype=torch.float64)
        at_once = max(1, AT_ONCE // max(1, getattr(self.model.config.get_text_config(), "vocab_size", 1)))
        with self._quick_head(head), self.running() as replay:  # whose attention needs no mask of the whole pack
            for start in range(0, len(self._places), at_once):
                places = self._places[start : start + at_once]
                with only_at(head, places):
                    logits = replay.logits(hidden)[0].float()
                here = (self._row_of >= start) & (self._row_of < start + at_once)
                rows, targets = ((each[here]).to(logits.device) for each in (self._row_of - start, self._targets))
                found[here] = (logits[rows, targets] - logits.logsumexp(1)[rows]).double().cpu()
        parts = found.split([len(answer) for *_, answer in self.pack.scored])
        values = (float(part.sum()) for part in parts)
        return {
            (request, choice): value if math.isfinite(value) else BROKEN
            for (request, choice, _), value in zip(self.pack.scored, values, strict=True)
        }

    @contextmanager
    def _quick_head(self, head: nn.Module) -> Iterator[None]:
        """The head's weights in bfloat16, if products are: autocast would convert them for each few answers."""
        whole = {} if not self._fast or is_offloaded(self.model) else dict(head.named_parameters(recurse=False))
        try:
            for name, parameter in whole.items():
                setattr(head, name, nn.Parameter(parameter.detach().bfloat16(), False))
            yield
        finally:
            for name, parameter in whole.items():
                setattr(head, name, parameter)


def sharing_packs(
    model: PreTrainedModel, requests: Sequence[Encoded], fast: bool = False
) -> Callable[[Sequence[Encoded]], Iterator[Pack]]:
    """What makes packs of requests: with common beginnings computed once, if the model scores the same so.

    Args:
        requests: some of them are tried in both ways.
    """
    return partial(packs, share=_scores_the_same(model, _to_try(requests), fast))


def _to_try(requests: Sequence[Encoded]) -> list[Encoded]:
    """Three short requests that begin alike, with choices if there are some; of any beginning if none share one."""
    ordered = sorted(requests, key=lambda each: each.texts[0])
    triples = [ordered[place : place + 3] for place in range(0, max(1, len(ordered) - 2), 3)]

    def fitness(some: list[Encoded]) -> tuple[bool, bool, int]:
        shared = [pack.shared for pack in packs(some, share=True)]
        return not shared[0], len(some[0].texts) < 2, sum(each.size for each in some)

    return min(triples, key=fitness) if requests else []


def _scores_the_same(model: PreTrainedModel, some: Sequence[Encoded], fast: bool) -> bool:
    """Whether requests score alike in a pack with a common beginning and as plain rows, but for rounding."""
    expected, found = Scores(), Scores()
    try:
        for pack in packs(some, share=True):
            found |= PackReplay(model, pack, fast).original()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, ModelError) as error:
        log.info("Common beginnings are computed again for each request: %s", first_line(error))
        return False
    for pack in packs(some, share=False):
        expected |= PackReplay(model, pack, fast).original()
    rounding = ROUNDING if fast or model.dtype != torch.float32 else EXACT_ROUNDING
    if all(abs(found[key] - value) <= rounding * max(1.0, abs(value)) for key, value in expected.items()):
        return True
    log.info("Common beginnings are computed again for each request: this model's attention cannot be replaced.")
    return False


def parts_of(model: PreTrainedModel, layers: Sequence[nn.Module]) -> tuple[str, ...]:
    """What can be left out of every layer: the layer, and its PARTS if all layers have them."""
    parts = tuple(part for part in PARTS if all(part_weights(layer, part) for layer in layers))
    return ("layer", *parts) if parts == PARTS else ("layer",)
