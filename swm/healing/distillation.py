"""Training towards the original model's output: its token probabilities, and its hidden states after merged layers."""

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
    """The original model, and the pairs of layers (trained, original) whose outputs should match."""

    model: PreTrainedModel
    pairs: Sequence[tuple[nn.Module, nn.Module]]


def layer_pairs(
    model: PreTrainedModel, original: PreTrainedModel, behind: Sequence[tuple[int, int]]
) -> list[tuple[nn.Module, nn.Module]]:
    """The layers of both models whose outputs should match, from their indexes (trained, original)."""
    trained, reference = find_decoder(model).layers, find_decoder(original).layers
    return [(trained[index], reference[original_index]) for index, original_index in behind]


class Distillation(Trainer):
    """A Trainer whose loss is the KL divergence of next-token probabilities from the original's, in nats per token.

    If there are pairs of layers, adds the mean squared relative distance of their outputs.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, at temperature 1; hidden states: Jiao et al. 2020
    (TinyBERT), arXiv:1909.10351, section 3, which uses the absolute distance for every layer.
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
        with _outputs([layer for layer, _ in self._teacher.pairs]) as states:
            outputs = model(**inputs, use_cache=False)
        with torch.no_grad(), _outputs([layer for _, layer in self._teacher.pairs]) as targets:
            teacher_logits = self._teacher.model(**inputs, use_cache=False).logits[:, :-1][counted]
            teacher_probabilities = F.log_softmax(teacher_logits.float(), dim=-1)
        probabilities = F.log_softmax(outputs.logits[:, :-1][counted].float(), dim=-1)
        count = counted.sum() if num_items_in_batch is None else num_items_in_batch / world_size()  # over all processes
        loss = F.kl_div(probabilities, teacher_probabilities, reduction="sum", log_target=True) / count
        if states:
            distances = [_relative_distance(a, b)[:, :-1][counted].sum() for a, b in zip(states, targets, strict=True)]
            loss = loss + torch.stack(distances).mean() / count
        return (loss, outputs) if return_outputs else loss


def _relative_distance(states: Tensor, targets: Tensor) -> Tensor:
    """Squared distance divided by the squared norm of the target, for each token."""
    states, targets = states.float(), targets.float()
    return (states - targets).square().sum(-1) / targets.square().sum(-1).clamp(min=1e-6)


@contextmanager
def _outputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The output of each layer in one forward pass, in the order in which the layers run."""
    outputs: list[Tensor] = []
    keep = lambda module, args, result: outputs.append(hidden_of(result))  # noqa: E731
    with hooked(layer.register_forward_hook(keep) for layer in layers):
        yield outputs
