"""A model of the same build with made-up weights: shows what a family's code can do before any weight is read."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from swm.errors import ModelError, PlanError
from swm.models.layer_facts import facts_for, kinds_of, set_facts

Trial = tuple[PreTrainedModel, list[int]]
OF_A_KIND = 2  # layers of each kind that are enough, apart from the last one
DRAWN = 2**22  # numbers of a parameter up to which each is drawn; larger ones share theirs
PERIOD, SHIFTS = 1_000_003, 4096  # of the shared numbers: they repeat, and each parameter begins at another place
SIZE = 0.02  # of the shared numbers, as models are usually initialised
SPREAD = 0.1  # of biases around 0, and of the factors in norms around 1
MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)  # of new tensors
WORDS = 64  # tokens that are left in the output head


def trial_layers(model: PreTrainedModel) -> list[int]:
    """Some layers, lowest first, that show what all of them can do: the lowest of each kind, and the last one.

    Where the family's config cannot describe these, as few of the lowest as have all kinds; or all layers.
    """
    kinds = kinds_of(model)
    last = len(kinds) - 1
    some = [n for n, kind in enumerate(kinds) if n == last or kinds[:n].count(kind) < OF_A_KIND]
    complete = max(map(kinds.index, kinds)) + 1
    for layers in (some, *(list(range(count)) for count in range(complete, last + 1))):
        with suppress(PlanError):
            facts_for(model, layers)
            return layers
    return list(range(last + 1))


def trial_model(model: PreTrainedModel) -> Trial:
    """A model of the same class, of its `trial_layers`, that a CPU can run with little memory: that of one matrix.

    Large matrices are views of the same numbers, each from another place on. The output head is cut to its first
    tokens. In float32; its outputs mean nothing. Buffers, as for positions, take the memory that they take.

    Args:
        model: not changed, no weight is read.

    Returns:
        The model, and its layers' indexes in the original.

    Raises:
        ModelError: if it has a buffer of many numbers. Whatever the model's own code raises.
    """
    layers = trial_layers(model)
    config = copy.deepcopy(model.config)
    made_of: Any = copy.copy(model)  # set_facts writes into its config
    made_of.config = config
    set_facts(made_of, facts_for(model, layers))
    with init_empty_weights(include_buffers=False), _LargeWithoutMemory():
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager")
    head, found = made.get_output_embeddings(), []
    for module in made.modules():
        for name, weight in module.named_parameters(recurse=False):
            words = min(WORDS, len(weight))
            shape = torch.Size([words, *weight.shape[1:]]) if module is head else weight.shape
            found.append((module, name, shape))
    numbers = _Numbers(max(shape[-2:].numel() for module, _, shape in found if not isinstance(module, nn.Embedding)))
    for module, name, shape in found:
        weight = numbers.looked_up(shape) if isinstance(module, nn.Embedding) else numbers.shaped(shape, name)
        setattr(module, name, nn.Parameter(weight, requires_grad=False))
    if any(buffer.is_meta for buffer in made.buffers()):
        raise ModelError(f"{type(model).__name__} has a buffer that is too large to be tried out.")
    made.generation_config = GenerationConfig()  # without an end, and without what only some texts need
    return cast(PreTrainedModel, made.eval()), layers


class _Numbers:
    """Made-up numbers for parameters, with memory for the `largest` matrix."""

    def __init__(self, largest: int) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._shared = (SIZE * self._drawn(torch.Size([PERIOD]))).repeat(1 + (largest + SHIFTS) // PERIOD)

    def shaped(self, shape: torch.Size, name: str) -> Tensor:
        """Numbers for a parameter; those of 3 dimensions are matrices that begin next to each other."""
        if len(shape) < 2:
            return ("bias" not in name) + SPREAD * self._drawn(shape)
        if shape.numel() <= DRAWN:
            return shape[-1] ** -0.5 * self._drawn(shape)
        steps = [1] * (len(shape) - 2) + [shape[-1], 1]
        room = len(self._shared) - shape[-2:].numel() - sum(shape[:-2])
        start = int(torch.randint(0, min(SHIFTS, room) + 1, (1,), generator=self._generator))
        return self._shared.as_strided(shape, steps, start)

    def looked_up(self, shape: torch.Size) -> Tensor:
        """Numbers for an embedding, of which rows are read and nothing is multiplied: row i begins at number i."""
        return self._drawn(torch.Size([sum(shape)])).as_strided(shape, (1, 1))

    def _drawn(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self._generator)


class _LargeWithoutMemory(TorchFunctionMode):
    """Makes large new tensors on the meta device: one of all experts can be larger than the machine's memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS and getattr(kwargs.get("dtype") or torch.float32, "is_floating_point", False):  # not bool
            on_meta = func(*args, **{**kwargs, "device": "meta"})
            return on_meta if on_meta.numel() > DRAWN else func(*args, **kwargs)
        return func(*args, **kwargs)
