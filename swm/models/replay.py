"""Run a model once, record how each layer was called, then re-run it from any layer upward.

Masks, position embeddings and caches differ by family and by layer. This module records the calls instead of rebuilding
them, so it needs to know none of that.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from swm.disk.files import check_space, disk_errors, home
from swm.errors import ModelError
from swm.models.decoder import find_decoder
from swm.models.hooks import forward_replaced, hooked
from swm.models.layer_outputs import Call, check_finite, check_tokens, hidden_of, layer_hooks, run_decoder, split_call
from swm.models.offload import bare, brought, is_offloaded, weights_of


class Replay:
    """The calls of one forward pass, with the hidden states to start from.

    How a layer is called depends on the number of texts, not on their content. So any of the texts, and any number of
    rows, can be run from any layer upward.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.
        keep_every: keep the hidden states of one layer in this many; those between are recomputed on demand, once per
            stretch between two kept layers.
        fast: matrix products in bfloat16 (autocast); the hidden states stay in the model's own dtype.
        part: maximum number of texts per forward pass here; None for all.
        lean: store hidden states in a memory-mapped file, which the system can drop from memory when it runs short.
        positions: of the tokens in their texts, of the same shape, where a row holds several texts: see
            `evaluation.packs`. Then only this one batch can be run.

    Attributes:
        reference: final hidden state, after the final norm, shape (texts, length, width).
        layer_runs: number of layer runs over all texts, including the recording; a run over some of the texts counts
            by their share.

    Memory: texts * length * width * bytes of the dtype for each kept layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        keep_every: int = 1,
        fast: bool = False,
        part: int | None = None,
        lean: bool = False,
        positions: Tensor | None = None,
    ) -> None:
        check_tokens(tokens)
        self._placed = {} if positions is None else {"position_ids": positions}
        self._model, self._tokens, self._fast, self._lean = model, tokens, fast, lean
        self.layers = find_decoder(model).layers
        self._offloaded = is_offloaded(model)
        self._bare: dict[int, nn.Module] = {}  # of offloaded layers
        self.keep_every = keep_every
        self.layer_runs = 0.0
        self._parts = list(torch.arange(len(tokens)).split(part or len(tokens)))
        self._calls: dict[int, list[Call]] = {}  # by the number of texts
        self._inputs: dict[int, Tensor] = {}
        self._between: dict[int, Tensor] = {}  # inputs of the layers between two kept states
        self._ready = torch.ones(len(tokens), dtype=torch.bool)  # the texts that `_between` is computed for
        self._tail: list[nn.Module] = []
        self._cut: dict[str, nn.Parameter] = {}  # the head's parameters for `_cut_to` alone
        self._cut_to: Tensor | None = None
        self._kind: Callable[[list[Any]], Any] | None = None  # sequence type that layers wrap their output in
        self._others = 0  # outputs beside the hidden state
        self.reference = self._recorded()
        self._check()

    @torch.inference_mode()
    def run(
        self,
        hidden: Tensor,
        layer: int,
        parameters: dict[str, Tensor] | None = None,
        module: nn.Module | None = None,
    ) -> Tensor:
        """Output of one layer for `hidden`, shape (rows, length, width).

        Args:
            parameters: in place of the layer's own.
            module: in place of the layer, with its weights where `hidden` is; see `OneLayer`.
        """
        args, kwargs = self._calls_for(len(hidden))[layer]
        self.layer_runs += len(hidden) / len(self._tokens)
        with self._precision():
            if module:
                hidden, args, kwargs = send_to_device((hidden, args, kwargs), hidden.device)
                return hidden_of(module(hidden, *args, **kwargs))
            module = self.layers[layer]
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
        """The layer's input in the recorded pass, for the texts with these indexes or for all."""
        if layer not in self._inputs:
            self._compute_between(layer - layer % self.keep_every, rows)
        states = self._inputs[layer] if layer in self._inputs else self._between[layer]
        return (states if rows is None else states[rows]).to(self._tokens.device)

    def _compute_between(self, below: int, rows: Tensor | None) -> None:
        """Compute the inputs of the layers from a kept one to the next, for the texts that lack them."""
        if below + 1 not in self._between:
            self._between, self._ready = {}, torch.zeros(len(self._tokens), dtype=torch.bool)
        rows = torch.arange(len(self._tokens)) if rows is None else rows
        missing = rows[~self._ready[rows]]
        for part in missing.split(len(self._parts[0])) if len(missing) else ():
            hidden = self._inputs[below][part].to(self._tokens.device)
            for index in range(below, min(below + self.keep_every, len(self.layers)) - 1):
                hidden = self.run(hidden, index)
                self._put(self._between, index + 1, part, hidden)
        self._ready[missing] = True

    @torch.inference_mode()
    def finish(self, hidden: Tensor) -> Tensor:
        """The final hidden state for the last layer's output: applies whatever follows the layers, as a final norm."""
        with self._precision():
            for module in self._tail:
                hidden = module(hidden)
        return hidden

    def _precision(self) -> torch.autocast:
        # Without autocast's cache, which would hold a second copy of the weights.
        return torch.autocast(self._tokens.device.type, torch.bfloat16, enabled=self._fast, cache_enabled=False)

    def _put(self, states: dict[int, Tensor], layer: int, rows: Tensor, hidden: Tensor) -> None:
        if layer not in states:
            states[layer] = self._empty_states(hidden)
        states[layer][rows] = hidden.to(states[layer].device)

    def _empty_states(self, hidden: Tensor) -> Tensor:
        """An empty tensor for the states of all texts: in memory, or on disk if `lean`."""
        shape = (len(self._tokens), *hidden.shape[1:])
        if not self._lean:
            return hidden.new_empty(shape)
        folder, size = home() / "cache", math.prod(shape)
        needed = size * hidden.dtype.itemsize
        with disk_errors(folder, needed):
            folder.mkdir(parents=True, exist_ok=True)
            check_space(folder, needed)
            with tempfile.NamedTemporaryFile(dir=folder, prefix="states-") as file:  # lives on while it is mapped
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, needed)  # else a full disk would kill the process later
                return torch.from_file(file.name, shared=True, size=size, dtype=hidden.dtype).view(shape)

    @torch.inference_mode()
    def _recorded(self) -> Tensor:
        return torch.cat([self._record(rows) for rows in self._parts])

    def _record(self, rows: Tensor) -> Tensor:
        """Run the model on some of the texts; record the calls, the inputs and the modules after the layers."""
        calls: list[Call] = []
        tail: list[nn.Module] = []
        output: Tensor | None = None
        top_kept = (len(self.layers) - 1) // self.keep_every * self.keep_every

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, call = split_call(args, kwargs)
            index = len(calls)
            if output is not None and not (hidden is output or torch.equal(hidden, output)):
                raise ModelError(
                    f"Cannot run the layers of {type(self._model).__name__} one by one: it changes the hidden state "
                    f"between layers {index - 1} and {index}. This architecture is not supported."
                )
            if index % self.keep_every == 0:
                self._put(self._inputs, index, rows, hidden)
            elif index > top_kept:  # where a search starts
                self._put(self._between, index, rows, hidden)
            calls.append(call)

        def after(module: nn.Module, args: Any, result: Any) -> None:
            nonlocal output
            output = hidden_of(result)
            self._kind = type(result) if isinstance(result, (tuple, list)) else None
            self._others = len(result) - 1 if isinstance(result, (tuple, list)) else 0
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
            run_decoder(self._model, self._tokens[rows], **self._placed)
        if len(calls) != len(self.layers) or output is None:
            raise ModelError(
                f"{type(self._model).__name__} called layers {len(calls)} times but has {len(self.layers)}: it skips "
                "or repeats some. This architecture is not supported."
            )
        self._calls.setdefault(len(rows), calls)
        self._tail = tail
        return output

    @torch.inference_mode()
    def embedded(self, tokens: Tensor) -> Tensor:
        """The first layer's input for other texts of the same length, shape (texts, length, width)."""
        return self._idle_pass(tokens)[0]

    @torch.inference_mode()
    def logits(self, hidden: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        """The model's logits for the last layer's output, shape (rows, length, vocabulary).

        Args:
            vocabulary: ids of the tokens whose logits to compute, for a model whose head is linear; None for all.
        """

        def pass_on(*args: Any, **kwargs: Any) -> Any:
            return self._as_layer_result(hidden)

        with forward_replaced(self.layers, pass_on), self._precision(), self._head_cut(vocabulary):
            tokens = self._tokens[torch.arange(len(hidden)) % len(self._tokens)]
            logits: Tensor = self._model(input_ids=tokens, use_cache=False, **self._placed).logits
        return logits

    @contextmanager
    def _head_cut(self, vocabulary: Tensor | None) -> Iterator[None]:
        """Leaves only some tokens in the head, and all of them in the embedding that may share its weight."""
        head = self._model.get_output_embeddings()
        whole = {} if vocabulary is None else dict(head.named_parameters(recurse=False))
        if self._cut_to is not vocabulary:
            self._cut_to = vocabulary
            self._cut = {name: nn.Parameter(one.detach()[vocabulary], False) for name, one in whole.items()}
        try:
            for name, parameter in self._cut.items():
                setattr(head, name, parameter)
            yield
        finally:
            for name, parameter in whole.items():
                setattr(head, name, parameter)

    def _calls_for(self, rows: int) -> list[Call]:
        """How each layer is called for this number of texts."""
        if rows not in self._calls:
            self._calls[rows] = self._idle_pass(self._tokens[torch.arange(rows) % len(self._tokens)])[1]
        return self._calls[rows]

    def _idle_pass(self, tokens: Tensor) -> tuple[Tensor, list[Call]]:
        """The first layer's input, and how each layer is called; the layers pass their input on unchanged."""
        inputs: list[Tensor] = []
        calls: list[Call] = []

        def pass_on(*args: Any, **kwargs: Any) -> Any:
            hidden, call = split_call(args, kwargs)
            inputs.append(hidden)
            calls.append(call)
            return self._as_layer_result(hidden)

        with forward_replaced(self.layers, pass_on), self._precision():
            run_decoder(self._model, tokens, **self._placed)
        return inputs[0], calls

    def _as_layer_result(self, hidden: Tensor) -> Any:
        return hidden if self._kind is None else self._kind([hidden, *[None] * self._others])  # as attention weights

    def _check(self) -> None:
        """Raise ModelError unless the last layer, re-run on the last texts with the first ones' call, reproduces the
        recorded output."""
        top, rows = len(self.layers) - 1, torch.arange(len(self._tokens)).flip(0)[: len(self._parts[0])]
        rerun, recorded = self.finish(self.run(self.input_of(top, rows), top)).float(), self.reference[rows].float()
        rounding = 1e-3 if self.reference.dtype == torch.float32 and not self._fast else 2e-2
        if not (rerun - recorded).norm() <= rounding * recorded.norm():
            raise ModelError(
                "Re-running the last layer on its recorded input gives a different result. This architecture keeps "
                "state between calls, or calls its layers differently for each text, and is not supported."
            )
