"""The sliding-window search of FACTS section 1. Each candidate is a whole merged model, run from its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swm.plan import MergePlan, Window
from tests.reference.merging import find_layers, merged_copy

Windows = tuple[Window, ...]
SimilarityOf = Callable[[Windows], float]


@dataclass(frozen=True)
class Step:
    """The plan of all thresholds above `above` and up to `upto`, that one included."""

    above: float
    upto: float
    windows: Windows


def plan_by_search(
    model: PreTrainedModel, tokens: Tensor, threshold: float, rule: str, protect_last: int = 1
) -> MergePlan:
    """What the sliding-window search makes of a model.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids of the calibration texts, shape (texts, length), int64, no padding.
        threshold: windows grow while the similarity is at least this.
        rule: a rule of merging.MERGED_VALUE.
        protect_last: number of layers at the top that no window contains.
    """
    count = len(find_layers(model))
    similarity_of = model_similarity(model, tokens, rule)
    return MergePlan(count, sliding_window_search(count, similarity_of, threshold, protect_last), rule)


def sliding_window_search(
    layer_count: int, similarity_of: SimilarityOf, threshold: float, protect_last: int = 1
) -> Windows:
    """The committed windows, lowest first.

    Args:
        layer_count: layers of the original model, N.
        similarity_of: similarity of the model with these windows merged (lowest first) to the original.
        threshold: T.
        protect_last: number of layers at the top that no window contains.

    Raises:
        ValueError: if a similarity is NaN; says which layer was tried.

    Source: FACTS section 1, "Search, as released, with its mistakes mended".
    """
    committed: list[Window] = []
    pending: Window | None = None
    high = layer_count - 1 - protect_last
    low = high - 1
    while low >= 0:
        candidate = Window(low, high)
        similarity = similarity_of(tuple(sorted([*committed, candidate])))
        if math.isnan(similarity):
            raise ValueError(f"The similarity is NaN with layers {candidate} merged; layer {low} was tried.")
        if similarity >= threshold:
            pending = candidate
            low -= 1
        elif pending:
            committed.append(pending)
            pending = None
            high = low  # the layer that failed starts the next window
            low = high - 1
        else:
            high -= 1
            low = high - 1
    if pending:
        committed.append(pending)
    return tuple(sorted(committed))


def similarity(original: PreTrainedModel, tokens: Tensor, windows: Iterable[Window], rule: str) -> float:
    """Mean over texts of the cosine between the final hidden states of the original and of the merged model.

    Args:
        original: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.

    Source: FACTS section 1, "Similarity". States in float32; the cosine's sums and the mean in float64.
    """
    merged = merged_copy(original, tuple(windows), rule)
    return mean_cosine(final_states(original, tokens), final_states(merged, tokens))


def model_similarity(model: PreTrainedModel, tokens: Tensor, rule: str) -> SimilarityOf:
    """`similarity` as a function of the windows alone; no set of windows is computed twice."""
    return remembered(lambda windows: similarity(model, tokens, windows, rule))


@torch.no_grad()
def final_states(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Last hidden state after the final norm, shape (texts, length, width), float32; one forward pass per text."""
    states = [model.base_model(input_ids=text[None], use_cache=False).last_hidden_state[0] for text in tokens]
    return torch.stack(states).float()


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """Mean over texts of the cosine of two states, each text's tokens in one long vector; in float64."""
    cosines = []
    for one, other in zip(first.double().flatten(1), second.double().flatten(1), strict=True):
        cosines.append(float(one @ other) / math.sqrt(float(one @ one) * float(other @ other)))
    return math.fsum(cosines) / len(cosines)


def plans_at(
    layer_count: int, similarity_of: SimilarityOf, thresholds: Iterable[float], protect_last: int = 1
) -> dict[float, Windows]:
    """The plan of each threshold, one separate search for each; only the similarities are shared."""
    known = remembered(similarity_of)
    return {value: sliding_window_search(layer_count, known, value, protect_last) for value in thresholds}


def threshold_steps(
    layer_count: int, similarity_of: SimilarityOf, lowest: float, highest: float = 1.0, protect_last: int = 1
) -> list[Step]:
    """Every plan of the thresholds from `highest` down to `lowest`, both included, by separate searches.

    A search only compares similarities with T. So its plan holds from the smallest similarity it accepted (included)
    down to the largest it rejected (not included), and that one is the next T to search with. Neighbouring steps may
    have the same plan: their searches differ, their result need not.
    """
    known = remembered(similarity_of)
    steps: list[Step] = []
    threshold = highest
    while threshold >= lowest:
        compared: list[float] = []

        def note(windows: Windows, compared: list[float] = compared) -> float:
            compared.append(known(windows))
            return compared[-1]

        windows = sliding_window_search(layer_count, note, threshold, protect_last)
        below = max((value for value in compared if value < threshold), default=-math.inf)
        steps.append(Step(below, threshold, windows))
        threshold = below
    return steps


def remembered(similarity_of: SimilarityOf) -> SimilarityOf:
    """The same function, asked once per set of windows."""
    memo: dict[Windows, float] = {}

    def look_up(windows: Windows) -> float:
        if windows not in memo:
            memo[windows] = similarity_of(windows)
        return memo[windows]

    return look_up
