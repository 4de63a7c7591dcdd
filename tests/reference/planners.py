"""Which layers other depth pruners drop, by brute force: a plain model without the layers, run from its tokens.

Each returns the set of dropped layers. `tokens` are ids of calibration texts, shape (texts, length), no padding.
`candidates` are the layers that may go; None means the method's own choice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.reference.cka import block_influence
from tests.reference.merging import find_layers, linear_map_parameters, without_layers
from tests.reference.scoring import perplexity

Candidates = Iterable[int] | None


def sleb(model: PreTrainedModel, tokens: Tensor, drop_count: int, candidates: Candidates = None) -> set[int]:
    """Layers dropped one at a time, each time the one without which perplexity is lowest.

    The first and the last layer stay. Of equal layers the lowest goes.
    Source: SLEB, arXiv:2402.09025, algorithm 1.
    """
    allowed = set(range(1, len(find_layers(model)) - 1) if candidates is None else candidates)
    dropped: set[int] = set()
    for _ in range(drop_count):
        costs = {layer: perplexity(without_layers(model, dropped | {layer}), tokens) for layer in allowed - dropped}
        dropped |= lowest(costs, 1)
    return dropped


def one_shot_perplexity(
    model: PreTrainedModel, tokens: Tensor, drop_count: int, candidates: Candidates = None
) -> set[int]:
    """The layers without each of which alone perplexity is lowest. Of equal layers the lowest go.

    Source: Shortened LLaMA, arXiv:2402.02834, section 3, PPL criterion.
    """
    allowed = range(len(find_layers(model))) if candidates is None else candidates
    return lowest({layer: perplexity(without_layers(model, {layer}), tokens) for layer in allowed}, drop_count)


def shortgpt(model: PreTrainedModel, tokens: Tensor, drop_count: int, candidates: Candidates = None) -> set[int]:
    """The layers of lowest block influence over all tokens of all texts. Of equal layers the highest go.

    Source: ShortGPT, arXiv:2403.03853.
    """
    influences = block_influences(model, tokens)
    allowed = range(len(influences)) if candidates is None else candidates
    return lowest({layer: influences[layer] for layer in allowed}, drop_count, tie=lambda layer: -layer)


def angular(model: PreTrainedModel, tokens: Tensor, drop_count: int, candidates: Candidates = None) -> set[int]:
    """The run of `drop_count` layers with the smallest angle between its input and output. Of equal runs the lowest.

    Source: Gromov et al., arXiv:2403.17887, section 3.2.
    """
    count = len(find_layers(model))
    allowed = set(range(count) if candidates is None else candidates)
    runs = [set(range(first, first + drop_count)) for first in range(count - drop_count + 1)]
    states = layer_states(model, tokens)
    angles = {min(run): mean_angle(states[min(run)][0], states[max(run)][1]) for run in runs if run <= allowed}
    (first,) = lowest(angles, 1)
    return set(range(first, first + drop_count))


def taylor(
    model: PreTrainedModel, tokens: Tensor, drop_count: int, first_kept: int = 4, last_kept: int = 2
) -> set[int]:
    """The layers of lowest weight times gradient; the first four and last two stay. Of equal layers the lowest go.

    Source: Shortened LLaMA, arXiv:2402.02834, section 3, Taylor+ criterion.
    """
    importances = taylor_importances(model, tokens)
    allowed = range(first_kept, len(importances) - last_kept)
    return lowest({layer: importances[layer] for layer in allowed}, drop_count)


def taylor_importances(model: PreTrainedModel, tokens: Tensor) -> list[float]:
    """Sum over the matrices of a layer's linear maps of |w * dL/dw|, L the mean over texts of the mean token loss."""
    trained = copy.deepcopy(model).requires_grad_(True)
    for ids in tokens:
        logits = trained(input_ids=ids[None], use_cache=False).logits[0, :-1]
        (nn.functional.cross_entropy(logits, ids[1:]) / len(tokens)).backward()
    return [
        sum(
            float((weight.detach() * weight.grad).abs().double().sum())
            for _, weight in linear_map_parameters(layer)
            if weight.ndim >= 2 and weight.grad is not None
        )
        for layer in find_layers(trained)
    ]


def block_influences(model: PreTrainedModel, tokens: Tensor) -> list[float]:
    """Block influence of each layer."""
    return [block_influence(before.flatten(0, 1), after.flatten(0, 1)) for before, after in layer_states(model, tokens)]


def mean_angle(before: Tensor, after: Tensor) -> float:
    """Angle between the last tokens' states, mean over texts, as a share of pi; states (texts, length, width)."""
    angles = []
    for one, other in zip(before[:, -1].double(), after[:, -1].double(), strict=True):
        cosine = float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))
        angles.append(math.acos(max(-1.0, min(1.0, cosine))) / math.pi)
    return math.fsum(angles) / len(angles)


@torch.no_grad()
def layer_states(model: PreTrainedModel, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Input and output of each layer, both (texts, length, width); one forward pass per text."""
    layers = list(find_layers(model))
    inputs: list[list[Tensor]] = [[] for _ in layers]
    outputs: list[list[Tensor]] = [[] for _ in layers]
    handles = [
        layer.register_forward_hook(_keeper(inputs[index], outputs[index]), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]
    for ids in tokens:
        model.base_model(input_ids=ids[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [(torch.cat(before), torch.cat(after)) for before, after in zip(inputs, outputs, strict=True)]


def _keeper(inputs: list[Tensor], outputs: list[Tensor]) -> Callable[..., None]:
    """A hook that keeps what a layer is given and what it gives; some families give a tuple."""

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs.append((args[0] if args else kwargs["hidden_states"]).clone())
        outputs.append((output[0] if isinstance(output, tuple) else output).clone())

    return keep


def lowest(values: dict[int, float], count: int, tie: Callable[[int], int] = lambda layer: layer) -> set[int]:
    """The `count` layers of lowest value; of equal values those that come first by `tie`."""
    if count > len(values):
        raise ValueError(f"{count} layers cannot be dropped: only {len(values)} may go.")
    return set(sorted(values, key=lambda layer: (values[layer], tie(layer)))[:count])
