"""Several processes of one stage, as `accelerate launch` or torchrun start them. The first one writes.

Each process loads the model and takes its share of the texts, documents or batches; what they find is added up or
put together at the end, and every process has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from swm.errors import SettingsError

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the first process may wait for another job on this machine


def world_size() -> int:
    """How many processes work on this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the first, or the only, process."""
    return rank() == 0


def is_sharded() -> bool:
    """Whether the processes share one model's weights (FSDP), as accelerate's settings say."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_sharding() -> None:
    """Raise SettingsError where weights are to be shared and there is no GPU: accelerate would leave that out."""
    import torch

    if is_sharded() and not torch.cuda.is_available():
        raise SettingsError(
            "These settings of accelerate share the weights over GPUs (FSDP), and there is no GPU here. Use "
            "assets/accelerate/gpu-2.yaml, which runs on processors too, or start it without accelerate launch."
        )


def own_part(items: list[T]) -> list[T]:
    """The part of a list that this process works on; the parts of all, `gathered`, are in the list's order."""
    begin, end = (len(items) * number // world_size() for number in (rank(), rank() + 1))
    return items[begin:end]


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor added up over all processes, in its own precision; every process gets the sums."""
    if world_size() == 1:
        return list(tensors)
    from accelerate.utils import reduce

    device = _state().device
    whole: list[Tensor] = reduce([tensor.to(device) for tensor in tensors], "sum")
    return [tensor.cpu() for tensor in whole]


def gathered(items: Sequence[T]) -> list[T]:
    """The items of all processes, those of the first one first; every process gets all."""
    if world_size() == 1:
        return list(items)
    from accelerate.utils import gather_object

    _state()
    return list(gather_object(list(items)))


def any_of(flag: bool) -> bool:
    """Whether it holds in any of the processes."""
    return any(gathered([flag]))


def together() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        _state().wait_for_everyone()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process does the block while the others wait, then they do."""
    if world_size() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
