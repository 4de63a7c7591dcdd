"""Run a model once, remember how each layer was called, then run any part of it again from any layer upward.

Masks, position embeddings and caches differ by family and by layer; by recording the call instead of rebuilding it,
none of that has to be known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from swm.errors import ModelError, PlanError, TextError
from swm.merge import GrowingMerge, MergedLayer, check_same_shapes, merge_window
from swm.models import find_decoder
from swm.plan import DEFAULT_RULE, Window

CPU_PART_TOKENS = (256, 512)  # least and most run together while scoring: 512 is fastest, 256 17 % slower
GPU_PART_TOKENS = (4096, 16384)  # a GPU is fast only when it has much to do at once
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Replay:
    """The calls of one forward pass, with the hidden states to start from.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.
        keep_every: hidden states are kept for every so-manieth layer; those between are computed again when they are
            asked for, once while the layers asked for lie near each other.
        fast: matrix products in bfloat16 (autocast); the hidden states stay in the model's own format.

    Attributes:
        reference: final hidden state, after the final norm, shape (texts, length, width).
        layer_runs: how many times a layer was run for the whole token batch, the recording included.

    Memory: texts * length * width * bytes for each kept layer.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor, keep_every: int = 1, fast: bool = False) -> None:
        check_tokens(tokens)
        self._fast, self._device = fast, model.device.type
        self.layers = find_decoder(model).layers
        self.keep_every = keep_every
        self.layer_runs = 0
        self._calls: list[Call] = []
        self._inputs: dict[int, Tensor] = {}
        self._between: dict[int, Tensor] = {}  # of the layers from one kept state to the next
        self._tail: list[nn.Module] = []
        self.reference = self._record(model, tokens)
        self._check()

    @torch.inference_mode()
    def run(self, hidden: Tensor, layer: int, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Output of one layer for `hidden`, with some of its parameters replaced if given."""
        args, kwargs = self._calls[layer]
        module = self.layers[layer]
        self.layer_runs += 1
        with self._precision():
            if parameters:
                return hidden_of(functional_call(module, parameters, (hidden, *args), kwargs))
            return hidden_of(module(hidden, *args, **kwargs))

    @torch.inference_mode()
    def input_of(self, layer: int) -> Tensor:
        """What the layer was given in the recorded pass."""
        if layer in self._inputs:
            return self._inputs[layer]
        if layer not in self._between:
            self._between = {}
            below = layer - layer % self.keep_every
            hidden = self._inputs[below]
            for index in range(below, min(below + self.keep_every, len(self.layers)) - 1):
                hidden = self._between[index + 1] = self.run(hidden, index)
        return self._between[layer]

    @torch.inference_mode()
    def finish(self, hidden: Tensor) -> Tensor:
        """The final hidden state from the last layer's output (final norm and whatever else follows the layers)."""
        with self._precision():
            for module in self._tail:
                hidden = module(hidden)
        return hidden

    def _precision(self) -> torch.autocast:
        # No cache: it would keep a second copy of the weights.
        return torch.autocast(self._device, torch.bfloat16, enabled=self._fast, cache_enabled=False)

    @torch.inference_mode()
    def _record(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        output: Tensor | None = None

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, call = _split_call(args, kwargs)
            if output is not None and not (hidden is output or torch.equal(hidden, output)):
                raise ModelError(
                    f"{type(model).__name__} changes the hidden state between layers {len(self._calls) - 1} and "
                    f"{len(self._calls)}, so its layers cannot be run one by one. This architecture is not supported."
                )
            index = len(self._calls)
            if index % self.keep_every == 0:
                self._inputs[index] = hidden
                self._between = {}  # so in the end those above the last one kept: a search begins there
            else:
                self._between[index] = hidden
            self._calls.append(call)

        def after(module: nn.Module, args: Any, result: Any) -> None:
            nonlocal output
            output = hidden_of(result)
            self.layer_runs += 1
            _check_finite(output, len(self._calls) - 1)

        def tail(module: nn.Module, args: Any, result: Any) -> None:
            nonlocal output
            if len(self._calls) == len(self.layers) and isinstance(result, Tensor):
                self._tail.append(module)
                output = result

        parent = find_decoder(model).parent
        handles = [h for layer in self.layers for h in _layer_hooks(layer, before, after)]
        handles += [m.register_forward_hook(tail) for m in parent.children() if m is not self.layers]
        with _removed(handles), self._precision():
            run_decoder(model, tokens)
        if len(self._calls) != len(self.layers) or output is None:
            raise ModelError(
                f"{type(model).__name__} ran {len(self._calls)} of its {len(self.layers)} layers, or some twice. "
                "This architecture is not supported."
            )
        return output

    def _check(self) -> None:
        top = len(self.layers) - 1
        again = self.finish(self.run(self.input_of(top), top))
        if not torch.allclose(again.float(), self.reference.float(), rtol=1e-3, atol=1e-3):
            raise ModelError(
                "The last layer, run again on its recorded input, gives another result. This architecture keeps "
                "state between calls and is not supported."
            )


class WindowScorer:
    """How similar a model with merged windows stays to the original: the score the search asks for.

    Starts at the recorded input of the window's first layer, since everything below is untouched; builds the merged
    layer step by step while the window grows; never copies the model.

    With `fast`, in bfloat16: a similarity then differs by some 0.0001 from the one in the model's own format.

    Source: arXiv:2502.19159, Fig. 2c: cosine of the final hidden states, over all tokens of a text, mean of texts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        rule: str = DEFAULT_RULE,
        keep_every: int = 6,
        fast: bool = False,
    ) -> None:
        check_tokens(tokens)
        self.rule = rule
        self._texts = len(tokens)
        least, most = CPU_PART_TOKENS if model.device.type == "cpu" else GPU_PART_TOKENS
        if fast:
            least, most = 2 * least, 2 * most  # a layer's weights are converted anew for each part
        parts = tokens.to(model.device).split(part_sizes(len(tokens), tokens.shape[1], least, most))
        self._replays = [Replay(model, part, keep_every, fast) for part in parts]
        self._layers = self._replays[0].layers
        self._growing: GrowingMerge | None = None
        self._merged: tuple[Window, MergedLayer] | None = None
        self._committed: dict[Window, MergedLayer] = {}

    @property
    def layer_runs(self) -> float:
        """Layers run so far; one that was run for some of the texts counts by their share."""
        return sum(replay.layer_runs * len(replay.reference) for replay in self._replays) / self._texts

    @torch.inference_mode()
    def score(self, merged_above: tuple[Window, ...], window: Window, needed: float = -1.0) -> float:
        """Mean cosine to the original's final hidden state, in [-1, 1]; NaN if the merged model overflows.

        Args:
            needed: texts are left out as soon as the rest of them cannot lift the mean to this, as no cosine is above
                1. A value below `needed` is then the most that the mean could be.

        A window whose layers differ in shape cannot be merged: its score is 0, which every threshold rejects.
        """
        try:
            check_same_shapes(self._layers, window)
        except PlanError:
            return 0.0
        layers = list(self._layers_from(merged_above, window))
        lost = 0.0  # of the sum of cosines, against all being 1
        means = {}
        for replay in self._replays:
            hidden = replay.input_of(window.first)
            for base, parameters in layers:
                hidden = replay.run(hidden, base, parameters)
            cosines = text_cosines(replay.finish(hidden), replay.reference).clamp(max=1.0)
            means[replay] = float(cosines.mean())
            lost += float((1 - cosines).sum())
            if 1 - lost / self._texts < needed:
                break
        # The texts that lost most come first the next time: what fails then fails sooner.
        self._replays.sort(key=lambda replay: means.get(replay, 1.0))
        return 1 - lost / self._texts

    def _layers_from(self, merged_above: tuple[Window, ...], window: Window) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The layers of the merged model from the window upward, as (layer to run, parameters to replace)."""
        known = self._committed
        self._committed = {w: known.get(w) or merge_window(self._layers, w, self.rule) for w in merged_above}
        merged = self._grown(window)
        yield merged.base, merged.parameters
        layer, by_first = window.last + 1, {w.first: w for w in merged_above}
        while layer < len(self._layers):
            above = by_first.get(layer)
            if above:
                yield self._committed[above].base, self._committed[above].parameters
                layer = above.last + 1
            else:
                yield layer, {}
                layer += 1

    def _grown(self, window: Window) -> MergedLayer:
        """The merged layer; grown by one step when the window asked for last was the same less its first layer."""
        if self._merged and self._merged[0] == window:
            return self._merged[1]
        self._merged = None  # its memory is wanted for the next one
        growing = self._growing
        if not growing or growing.window.last != window.last or growing.window.first <= window.first:
            self._growing = None
            growing = GrowingMerge(self._layers, window.last, self.rule)
        while growing.window != window:
            merged = growing.grow()
        self._growing, self._merged = growing, (window, merged)
        return merged


def part_sizes(texts: int, length: int, least: int, most: int) -> list[int]:
    """How many texts to run together: half of those left, within least and most tokens where `length` allows.

    The smaller a part is the less is run in vain when its texts settle the matter, and the slower it is per token.
    """
    sizes: list[int] = []
    while (left := texts - sum(sizes)) > 0:
        fewest, many = max(1, least // length), max(1, most // length)
        half = left if left < 2 * fewest else (left + 1) // 2
        sizes.append(min(many, half))
    return sizes


def text_cosines(states: Tensor, reference: Tensor) -> Tensor:
    """Cosine of each text's states, flattened over its tokens, shape (texts,), float64.

    Args:
        states, reference: shape (texts, length, width); compared in float32, summed in float64.
    """
    x, y = states.float().flatten(1), reference.float().flatten(1)
    dot, xx, yy = ((a * b).sum(1, dtype=torch.float64) for a, b in ((x, y), (x, x), (y, y)))
    return dot / (xx * yy).sqrt()


@torch.inference_mode()
def layer_outputs(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Input of the first layer, and output of each layer, for every token.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.

    Returns:
        Input, shape (texts, length, width), and outputs, shape (layers, texts, length, width), in the model's dtype.
        Needs layers * texts * length * width numbers of memory.

    Source: hooks, not `output_hidden_states`: there transformers (5.24) has applied the final norm to the last entry.
    """
    check_tokens(tokens)
    first: list[Tensor] = []
    outputs: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not first:
            first.append(_split_call(args, kwargs)[0])

    def after(module: nn.Module, args: Any, result: Any) -> None:
        hidden = hidden_of(result)
        _check_finite(hidden, len(outputs))
        outputs.append(hidden)

    with _removed([h for layer in find_decoder(model).layers for h in _layer_hooks(layer, before, after)]):
        run_decoder(model, tokens.to(model.device))
    return first[0], torch.stack(outputs)


def run_decoder(model: PreTrainedModel, tokens: Tensor) -> None:
    """One forward pass without the output head, whose logits nobody here needs."""
    model.base_model(input_ids=tokens, use_cache=False)


def hidden_of(result: Any) -> Tensor:
    """The hidden state in a layer's result: the result itself, or the first of a tuple (older transformers)."""
    return result[0] if isinstance(result, tuple) else result


def check_tokens(tokens: Tensor) -> None:
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise TextError(f"Tokens of shape {tuple(tokens.shape)}: one row for each text is needed. Choose another text.")


def _split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    if args:
        return args[0], (args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), ((), rest)


def _check_finite(hidden: Tensor, layer: int) -> None:
    if not torch.isfinite(hidden).all():
        raise ModelError(
            f"Layer {layer} gives numbers that are not finite in {str(hidden.dtype).removeprefix('torch.')}. "
            "Check the model's weights; if they are sound, create the experiment with --dtype float32."
        )


def _layer_hooks(layer: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> list[Any]:
    return [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]


@contextmanager
def _removed(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
