"""Several processes of one stage, as `accelerate launch` or torchrun start them. The first one writes.

Each process loads the model and takes its share of the text; sums are added up once at the end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def world_size() -> int:
    """How many processes work on this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor added up over all processes, in its own precision; every process gets the sums."""
    if world_size() == 1:
        return list(tensors)
    import torch
    from accelerate import PartialState
    from accelerate.utils import reduce

    state = PartialState(cpu=not torch.cuda.is_available())
    whole: list[Tensor] = reduce([tensor.to(state.device) for tensor in tensors], "sum")
    return [tensor.cpu() for tensor in whole]
