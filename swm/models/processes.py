"""Several processes working on one stage, as started by `accelerate launch` or torchrun. The first one writes.

Each process loads the model and takes its share of the texts, documents, batches or plans. Their results are summed or
gathered, and every process gets them: so all come to the same decisions, and none waits for one that never comes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from swm.errors import SettingsError, SwmError

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor
    from transformers import PreTrainedModel

_ON_ITS_OWN = ContextVar("_ON_ITS_OWN", default=False)  # while a process computes its share of plans
T = TypeVar("T")
R = TypeVar("R")
PATIENCE = timedelta(days=7)  # the first process may have to wait for another job on this machine


def world_size() -> int:
    """Number of processes that work on this stage."""
    return 1 if _ON_ITS_OWN.get() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Index of this process, counted from 0."""
    return 0 if _ON_ITS_OWN.get() else int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the first or only process."""
    return rank() == 0


def is_sharded() -> bool:
    """Whether accelerate's settings shard the model's weights over the processes (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_sharding() -> None:
    """Raise SettingsError if the settings shard weights in the old way, or where there is no GPU.

    Accelerate would ignore them silently without a GPU. FSDP 1 cuts up weights in place that are needed whole.
    """
    import torch

    if is_sharded() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise SettingsError(
            "These accelerate settings shard the weights by FSDP 1. Write fsdp_version: 2 into their fsdp_config, or "
            "use assets/accelerate/fsdp2-2.yaml."
        )
    if is_sharded() and not torch.cuda.is_available():
        raise SettingsError(
            "These accelerate settings shard the weights over GPUs (FSDP), but this machine has no GPU. Use "
            "assets/accelerate/gpu-2.yaml, which also runs on CPUs, or run without accelerate launch."
        )


def own_part(items: list[T]) -> list[T]:
    """The part of a list that this process works on; `gathered` restores the list's order."""
    begin, end = (len(items) * number // world_size() for number in (rank(), rank() + 1))
    return items[begin:end]


def shared(
    items: Sequence[T], compute: Callable[[list[T]], list[R]], cost: Callable[[T], float] = lambda item: 1.0
) -> list[R]:
    """The result for each item, in their order; each process computes some of them, and gets the others' results.

    Args:
        items: the same in every process.
        compute: the results of some of the items, in their order; runs as if there were one process.
        cost: about how long an item takes, so that all processes end at the same time.

    Raises:
        SwmError: in every process, what `compute` raised in the first that failed.
    """
    if world_size() == 1:
        return compute(list(items))
    loads, own = [0.0] * world_size(), []
    costs = [cost(item) for item in items]
    for place in sorted(range(len(items)), key=lambda place: -costs[place]):
        taker = loads.index(min(loads))
        loads[taker] += costs[place]
        own += [place] if taker == rank() else []
    own.sort()
    results, error = list[R](), None
    try:
        with on_its_own():
            results = compute([items[place] for place in own])
    except SwmError as raised:  # all processes have to raise it, or those without it would wait for ever
        error = raised
    answers = gathered([(dict(zip(own, results, strict=False)), error)])
    if failed := next((failed for _, failed in answers if failed), None):
        raise failed
    found = {place: result for results, _ in answers for place, result in results.items()}
    return [found[place] for place in range(len(items))]


@contextmanager
def on_its_own() -> Iterator[None]:
    """In the block this process works as if there were no others."""
    token = _ON_ITS_OWN.set(True)
    try:
        yield
    finally:
        _ON_ITS_OWN.reset(token)


def agreed(value: T) -> T:
    """The first process's value: what each reads for itself may differ if another job writes at that moment."""
    return gathered([value])[0]


def handed_out(model: PreTrainedModel | None) -> PreTrainedModel:
    """The first process's model in every process: whole in the first, with weights on the meta device in the others.

    With FSDP, accelerate then gives each process its share of the weights: the first alone needs memory for all.

    Args:
        model: None in every process but the first.
    """
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"  # accelerate reads it, and users' own files may say otherwise
    shape = agreed(_without_weights(model) if model else None)
    return model or cast("PreTrainedModel", shape)


def _without_weights(model: PreTrainedModel) -> PreTrainedModel:
    import torch

    empty = {id(weight): weight.to("meta") for weight in model.parameters()}
    return copy.deepcopy(model, {name: torch.nn.Parameter(weight, False) for name, weight in empty.items()})


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


def leave() -> None:
    """At the end of work that went well, close the connections: threads that still use them would abort the end."""
    if world_size() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
