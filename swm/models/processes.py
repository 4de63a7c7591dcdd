"""Several processes working on one stage, as started by `accelerate launch` or torchrun. The first one writes.

Each process loads the model and takes its share of the texts, documents or batches. Their results are summed or
gathered at the end, and every process gets them.
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
PATIENCE = timedelta(days=7)  # the first process may have to wait for another job on this machine


def world_size() -> int:
    """Number of processes that work on this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Index of this process, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the first or only process."""
    return rank() == 0


def is_sharded() -> bool:
    """Whether accelerate's settings shard the model's weights over the processes (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_sharding() -> None:
    """Raise SettingsError if the settings shard weights but there is no GPU: accelerate would ignore them silently."""
    import torch

    if is_sharded() and not torch.cuda.is_available():
        raise SettingsError(
            "These accelerate settings shard the weights over GPUs (FSDP), but this machine has no GPU. Use "
            "assets/accelerate/gpu-2.yaml, which also runs on CPUs, or run without accelerate launch."
        )


def own_part(items: list[T]) -> list[T]:
    """The part of a list that this process works on; `gathered` restores the list's order."""
    begin, end = (len(items) * number // world_size() for number in (rank(), rank() + 1))
    return items[begin:end]


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over all processes in its own dtype, on the CPU; every process gets the sums."""
    if world_size() == 1:
        return list(tensors)
    from accelerate.utils import reduce

    device = _state().device
    sums: list[Tensor] = reduce([tensor.to(device) for tensor in tensors], "sum")
    return [tensor.cpu() for tensor in sums]


def gathered(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of their ranks; every process gets all of them."""
    if world_size() == 1:
        return list(items)
    from accelerate.utils import gather_object

    _state()
    return list(gather_object(list(items)))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any of the processes."""
    return any(gathered([flag]))


def together() -> None:
    """Wait until all processes reach this point."""
    if world_size() > 1:
        _state().wait_for_everyone()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process runs the block while the others wait; then they run it."""
    if world_size() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
