"""Run a model once, remember how each layer was called, then run any part of it again from any layer upward.

Masks, position embeddings and caches differ by family and by layer; by recording the call instead of rebuilding it,
none of that has to be known here.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from swm.errors import ModelError
from swm.models.decoder import find_decoder
from swm.models.hooks import hooked
from swm.models.layer_outputs import (
    Call,
    check_finite,
    check_tokens,
    hidden_of,
    layer_hooks,
    run_decoder,
    split_call,
)
from swm.models.offload import bare, brought, is_offloaded, weights_of
from swm.workspace.files import check_space, disk_errors, home


class Replay:
    """The calls of one forward pass, with the hidden states to start from.

    How a layer is called depends on how many texts there are, not on what they say: so any of the texts, and any number
    of rows, can be run from any layer upward.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.
        keep_every: hidden states are kept for every so-manieth layer; those between are computed again when they are
            asked for, once while the layers asked for lie near each other.
        fast: matrix products in bfloat16 (autocast); the hidden states stay in the model's own format.
        part: texts run together at most, here; None for all.
        lean: hidden states go to a file, which the system drops from memory when others need it.

    Attributes:
        reference: final hidden state, after the final norm, shape (texts, length, width).
        layer_runs: how many times a layer was run for the whole token batch, the recording included; a run for some of
            the texts counts by their share.

    Memory: texts * length * width * bytes for each kept layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        keep_every: int = 1,
        fast: bool = False,
        part: int | None = None,
        lean: bool = False,
    ) -> None:
        check_tokens(tokens)
        self._model, self._tokens, self._fast, self._lean = model, tokens, fast, lean
        self.layers = find_decoder(model).layers
        self._offloaded = is_offloaded(model)
        self._bare: dict[int, nn.Module] = {}  # of layers whose weights accelerate brings where they are run
        self.keep_every = keep_every
        self.layer_runs = 0.0
        self._parts = list(torch.arange(len(tokens)).split(part or len(tokens)))
        self._calls: dict[int, list[Call]] = {}  # by the number of texts
        self._inputs: dict[int, Tensor] = {}
        self._between: dict[int, Tensor] = {}  # of the layers from one kept state to the next
        self._ready = torch.ones(len(tokens), dtype=torch.bool)  # the texts that `_between` is computed for
        self._tail: list[nn.Module] = []
        self._kind: Callable[[list[Tensor]], Any] | None = None  # of the sequence that layers give their output in
        self.reference = self._recorded()
        self._check()

    @torch.inference_mode()
    def run(self, hidden: Tensor, layer: int, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Output of one layer for `hidden`, shape (rows, length, width); some of its parameters replaced if given."""
        args, kwargs = self._calls_for(len(hidden))[layer]
        module = self.layers[layer]
        self.layer_runs += len(hidden) / len(self._tokens)
        with self._precision():
            if not parameters:
                return hidden_of(module(hidden, *args, **kwargs))
            if self._offloaded:
                if layer not in self._bare:
                    self._bare[layer] = bare(module)
                hidden, args, kwargs, parameters = brought(module, (hidden, args, kwargs, parameters))
                weights = weights_of(module)
                parameters = {name: parameters[name] if name in parameters else weights[name] for name in weights}
                module = self._bare[layer]
            return hidden_of(functional_call(module, parameters, (hidden, *args), kwargs))

    @torch.inference_mode()
    def input_of(self, layer: int, rows: Tensor | None = None) -> Tensor:
        """What the layer was given in the recorded pass: for the texts with these indexes, or for all."""
        if layer not in self._inputs:
            self._compute_between(layer - layer % self.keep_every, rows)
        states = self._inputs[layer] if layer in self._inputs else self._between[layer]
        return (states if rows is None else states[rows]).to(self._tokens.device)

    def _compute_between(self, below: int, rows: Tensor | None) -> None:
        """The inputs of the layers from a kept one to the next, for those of the texts that have none yet."""
        if below + 1 not in self._between:
            self._between, self._ready = {}, torch.zeros(len(self._tokens), dtype=torch.bool)
        wanted = torch.arange(len(self._tokens)) if rows is None else rows
        missing = wanted[~self._ready[wanted]]
        for part in missing.split(len(self._parts[0])) if len(missing) else ():
            hidden = self._inputs[below][part].to(self._tokens.device)
            for index in range(below, min(below + self.keep_every, len(self.layers)) - 1):
                hidden = self.run(hidden, index)
                self._put(self._between, index + 1, part, hidden)
        self._ready[missing] = True

    @torch.inference_mode()
    def finish(self, hidden: Tensor) -> Tensor:
        """The final hidden state from the last layer's output (final norm and whatever else follows the layers)."""
        with self._precision():
            for module in self._tail:
                hidden = module(hidden)
        return hidden

    def _precision(self) -> torch.autocast:
        # No cache: it would keep a second copy of the weights.
        return torch.autocast(self._tokens.device.type, torch.bfloat16, enabled=self._fast, cache_enabled=False)

    def _put(self, states: dict[int, Tensor], layer: int, rows: Tensor, hidden: Tensor) -> None:
        if layer not in states:
            states[layer] = self._room(hidden)
        states[layer][rows] = hidden.to(states[layer].device)

    def _room(self, hidden: Tensor) -> Tensor:
        """Room for such states of all texts."""
        shape = (len(self._tokens), *hidden.shape[1:])
        if not self._lean:
            return hidden.new_empty(shape)
        folder, size = home() / "cache", math.prod(shape)
        needed = size * hidden.dtype.itemsize
        with disk_errors(folder, needed):
            folder.mkdir(parents=True, exist_ok=True)
            check_space(folder, needed)
            with tempfile.NamedTemporaryFile(dir=folder, prefix="states-") as file:  # mapped, it stays till unused
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, needed)  # a full disk would end the process later
                return torch.from_file(file.name, shared=True, size=size, dtype=hidden.dtype).view(shape)

    @torch.inference_mode()
    def _recorded(self) -> Tensor:
        return torch.cat([self._record(rows) for rows in self._parts])

    def _record(self, rows: Tensor) -> Tensor:
        """Run the model on some of the texts; keep the calls, the inputs and the modules after the layers."""
        calls: list[Call] = []
        tail: list[nn.Module] = []
        output: Tensor | None = None
        top_kept = (len(self.layers) - 1) // self.keep_every * self.keep_every

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, call = split_call(args, kwargs)
            index = len(calls)
            if output is not None and not (hidden is output or torch.equal(hidden, output)):
                raise ModelError(
                    f"{type(self._model).__name__} changes the hidden state between layers {index - 1} and {index}, so "
                    "its layers cannot be run one by one. This architecture is not supported."
                )
            if index % self.keep_every == 0:
                self._put(self._inputs, index, rows, hidden)
            elif index > top_kept:  # a search begins there
                self._put(self._between, index, rows, hidden)
            calls.append(call)

        def after(module: nn.Module, args: Any, result: Any) -> None:
            nonlocal output
            output = hidden_of(result)
            self._kind = type(result) if isinstance(result, (tuple, list)) else None
            self.layer_runs += len(rows) / len(self._tokens)
            check_finite(output, len(calls) - 1)

        def follow(module: nn.Module, args: Any, result: Any) -> None:
            nonlocal output
            if len(calls) == len(self.layers) and isinstance(result, Tensor):
                tail.append(module)
                output = result

        parent = find_decoder(self._model).parent
        handles = [h for layer in self.layers for h in layer_hooks(layer, before, after)]
        handles += [m.register_forward_hook(follow) for m in parent.children() if m is not self.layers]
        with hooked(handles), self._precision():
            run_decoder(self._model, self._tokens[rows])
        if len(calls) != len(self.layers) or output is None:
            raise ModelError(
                f"{type(self._model).__name__} ran {len(calls)} of its {len(self.layers)} layers, or some twice. "
                "This architecture is not supported."
            )
        self._calls.setdefault(len(rows), calls)
        self._tail = tail
        return output

    @torch.inference_mode()
    def embedded(self, tokens: Tensor) -> Tensor:
        """What the first layer is given for other texts of the same length, shape (texts, length, width)."""
        return self._idle_pass(tokens)[0]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """What the model makes of the last layer's output, shape (rows, length, vocabulary)."""

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            return self._handed_on(hidden)

        with _forward_replaced(self.layers, hand_on), self._precision():
            tokens = self._tokens[torch.arange(len(hidden)) % len(self._tokens)]
            logits: Tensor = self._model(input_ids=tokens, use_cache=False).logits
        return logits

    def _calls_for(self, rows: int) -> list[Call]:
        """How each layer is called with so many texts."""
        if rows not in self._calls:
            self._calls[rows] = self._idle_pass(self._tokens[torch.arange(rows) % len(self._tokens)])[1]
        return self._calls[rows]

    def _idle_pass(self, tokens: Tensor) -> tuple[Tensor, list[Call]]:
        """The layers' input, and how the model calls each of them when none does anything."""
        inputs: list[Tensor] = []
        calls: list[Call] = []

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            hidden, call = split_call(args, kwargs)
            inputs.append(hidden)
            calls.append(call)
            return self._handed_on(hidden)

        with _forward_replaced(self.layers, hand_on), self._precision():
            run_decoder(self._model, tokens)
        return inputs[0], calls

    def _handed_on(self, hidden: Tensor) -> Any:
        return hidden if self._kind is None else self._kind([hidden])

    def _check(self) -> None:
        """The last layer on the last texts, called as it was for the first ones."""
        top, rows = len(self.layers) - 1, torch.arange(len(self._tokens)).flip(0)[: len(self._parts[0])]
        again, before = self.finish(self.run(self.input_of(top, rows), top)).float(), self.reference[rows].float()
        rounding = 1e-3 if self.reference.dtype == torch.float32 and not self._fast else 2e-2
        if not (again - before).norm() <= rounding * before.norm():
            raise ModelError(
                "The last layer, run again on its recorded input, gives another result. This architecture keeps state "
                "between calls, or calls its layers by what the text says, and is not supported."
            )


@contextmanager
def _forward_replaced(layers: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    own = [(layer, layer.__dict__.get("forward")) for layer in layers]
    try:
        for layer, _ in own:
            layer.__dict__["forward"] = forward
        yield
    finally:
        for layer, before in own:
            if before is None:
                del layer.__dict__["forward"]
            else:
                layer.__dict__["forward"] = before
