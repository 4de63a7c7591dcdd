"""Training towards the original model's own output: its probabilities, and its states behind merged layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer

from swm.models.decoder import find_decoder
from swm.models.hooks import hooked
from swm.models.layer_outputs import hidden_of
from swm.models.processes import world_size

IGNORED = -100  # label of a token whose loss does not count


@dataclass(frozen=True)
class Teacher:
    """The original model, and the pairs of layers (trained, original) whose outputs are to be alike."""

    model: PreTrainedModel
    pairs: Sequence[tuple[nn.Module, nn.Module]]


def layer_pairs(
    model: PreTrainedModel, original: PreTrainedModel, behind: Sequence[tuple[int, int]]
) -> list[tuple[nn.Module, nn.Module]]:
    """The layers of both models whose outputs are to be alike, from their indexes (trained, original)."""
    ours, theirs = find_decoder(model).layers, find_decoder(original).layers
    return [(ours[own], theirs[other]) for own, other in behind]


class Distillation(Trainer):
    """A Trainer whose loss is how far the next-token probabilities are from the original's: KL, nats per token.

    With pairs of layers, the mean squared relative distance of their outputs is added.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, at temperature 1; hidden states: Jiao et al. 2020
    (TinyBERT), arXiv:1909.10351, section 3, there absolute and for every layer.
    """

    def __init__(self, teacher: Teacher, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._teacher = teacher

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The distillation loss of a batch."""
        inputs = dict(inputs)
        counted = inputs.pop("labels")[:, 1:] != IGNORED
        with _outputs([own for own, _ in self._teacher.pairs]) as states:
            outputs = model(**inputs, use_cache=False)
        with torch.no_grad(), _outputs([other for _, other in self._teacher.pairs]) as wanted:
            target = self._teacher.model(**inputs, use_cache=False).logits[:, :-1][counted]
            target = F.log_softmax(target.float(), dim=-1)
        own = F.log_softmax(outputs.logits[:, :-1][counted].float(), dim=-1)
        count = counted.sum() if num_items_in_batch is None else num_items_in_batch / world_size()  # of all processes
        loss = F.kl_div(own, target, reduction="sum", log_target=True) / count
        if states:
            apart = [_relative_distance(a, b)[:, :-1][counted].sum() for a, b in zip(states, wanted, strict=True)]
            loss = loss + torch.stack(apart).mean() / count
        return (loss, outputs) if return_outputs else loss


def _relative_distance(states: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance over the squared norm of what is wanted, for each token."""
    states, wanted = states.float(), wanted.float()
    return (states - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-6)


@contextmanager
def _outputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What each of the layers gives in one forward pass, in their order."""
    found: list[Tensor] = []
    keep = lambda module, args, result: found.append(hidden_of(result))  # noqa: E731
    with hooked(layer.register_forward_hook(keep) for layer in layers):
        yield found
