"""What every planner is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swm.progress import Progress, no_progress

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PlanRequest:
    """A model, text, and the number of layers to leave.

    Attributes:
        model: causal LM in eval mode; not to be changed.
        tokens: calibration text, ids of shape (texts, length), int64, no padding.
        layer_count, layers: of the model, and how many are to be left.
        seed: of what is drawn by chance.
        fast: similarities and losses may be computed in bfloat16, which moves a similarity by up to 0.001.
        budget: plans to try at most, for planners that take one.
        fit_tokens: gives about so many tokens of text to fit merged layers on, in the form of `tokens`.
        progress: called with what has been tried; may raise to stop.
    """

    model: PreTrainedModel
    tokens: Tensor
    layer_count: int
    layers: int
    seed: int
    fast: bool
    budget: int
    fit_tokens: Callable[[int], Tensor]
    progress: Progress = no_progress

    @property
    def drop(self) -> int:
        """How many layers are to go."""
        return self.layer_count - self.layers

    def tried(self, done: int, total: int) -> None:
        """Report how many plans have been tried; total 0 where that is unknown."""
        self.progress(done, total, f"{done} plans tried")
