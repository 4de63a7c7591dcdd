"""The similarity of all layer pairs of a model, summed over batches of text.

All pairs at once: each layer gives one feature vector per block of tokens (its centred Gram matrix or its normalised
states), and the layers x layers matrix of their products is summed over the blocks. Memory grows with the length of a
text (the states of one text), not with the number of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from swm.errors import ModelError, SettingsError
from swm.models.layer_outputs import layer_outputs
from swm.models.processes import rank, summed, world_size
from swm.registry import METRICS
from swm.similarity.measure import Measure

BATCH_TOKENS = 512
BLOCK_TEXTS = 256
FEWEST_SAMPLES = 64  # in a batch, if the text has that many


@dataclass(frozen=True)
class LayerSimilarity:
    """Similarity of all layer pairs, with other facts about each layer from the same pass over the text.

    Attributes:
        matrix: shape (layers, layers), float64.
        block_influence: shape (layers,): 1 - mean cosine between a layer's input and output; high means that the layer
            changes the hidden state a lot. Source: ShortGPT, arXiv:2403.03853, section 3.2.
        norm: shape (layers,): mean norm of the hidden state after the layer.
        norm_median, norm_max: shape (layers,): median and largest norm; None if several processes measured.
        tokens: number of tokens measured.
        warning: why the sample is too small, and how large it should be; empty if it is large enough.
    """

    matrix: Tensor
    block_influence: Tensor
    norm: Tensor
    tokens: int
    warning: str = ""
    norm_median: Tensor | None = None
    norm_max: Tensor | None = None


def layer_similarity(model: PreTrainedModel, tokens: Tensor, metric: str = "cka") -> Tensor:
    """Similarity of the outputs of all layer pairs.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.
        metric: one of METRICS.

    Returns:
        Shape (layers, layers), float64, symmetric, ones on the diagonal. CKA and cosine in [-1, 1] (a debiased
        estimate can fall below 0 by chance), angular in [0, 1].

    Raises:
        SettingsError: if the metric is unknown. TextError: if a text batch has fewer than 4 tokens.
        ModelError: if a layer's output is not finite, or the same for every token.
    """
    return measure_similarity(model, tokens, metric).matrix


def measure_similarity(
    model: PreTrainedModel,
    tokens: Tensor,
    measure: Measure | str = "cka",
    on_batch: Callable[[int, int], None] | None = None,
) -> LayerSimilarity:
    """As `layer_similarity`, with block influence and norms from the same pass; calls `on_batch(done, total)`.

    Args:
        measure: metric, layer output or update, kind of sample, number of first tokens to skip.

    Memory: the states of one text batch (about 512 tokens, at least one text), or the means of 256 texts.
    """
    measure = Measure(measure) if isinstance(measure, str) else measure
    if measure.skip_tokens >= tokens.shape[1]:
        raise SettingsError(
            f"--skip {measure.skip_tokens} leaves no tokens: the texts have {tokens.shape[1]}. Skip fewer."
        )
    metric, processes, own = METRICS[measure.metric], world_size(), rank()
    sums, pair = _Sums(), metric.products()
    means: list[Tensor] = []
    seen, influence, norms = 0, torch.zeros(()), list[Tensor]()
    if processes > 1 and measure.samples != "tokens":
        raise SettingsError("Comparing means of texts works in one process only. Run it without accelerate launch.")
    batches = tokens.tensor_split(_batch_count(tokens, measure.skip_tokens))
    if processes > len(batches):
        raise SettingsError(
            f"{processes} processes cannot share {len(batches)} batches of text. Use more text or fewer processes."
        )
    if own and metric.first_block_counts:  # every process needs the first block
        pair(_blocks(_parts(*_outputs_of(model, batches[0]), measure))[0])
    for done, texts in enumerate(batches[own::processes], 1):
        entry, outputs = _outputs_of(model, texts)
        states = torch.cat([entry[None], outputs])[:, :, measure.skip_tokens :]  # (1 + layers, texts, length, width)
        influence = influence + _turned(states)
        norms.append(states[1:].float().norm(dim=-1).double().flatten(1).cpu())  # (layers, tokens)
        parts = _parts(entry, outputs, measure)
        if measure.samples == "tokens":
            for block in _blocks(parts):
                sums.add(pair(block), block)
        else:
            means.append(parts.float().mean(2))
            seen += len(texts)
            gathered, left = sum(mean.shape[1] for mean in means), len(tokens) - seen
            # Never leave a last block with too few texts to compare.
            if not left or (gathered >= BLOCK_TEXTS and left >= BLOCK_TEXTS // 2):
                block = torch.cat(means, dim=1)
                sums.add(pair(block), block)
                means.clear()
        if on_batch:
            on_batch(min(len(batches), done * processes), len(batches))
    assert sums.products is not None
    numbers, of_tokens = torch.tensor([sums.samples, sums.blocks], dtype=torch.float64), torch.cat(norms, dim=1)
    sums.products, influence, norm, numbers = summed([sums.products, influence, of_tokens.sum(1), numbers])
    sums.samples, sums.blocks = (int(number) for number in numbers)
    count = tokens[:, measure.skip_tokens :].numel()
    matrix = normalised(sums.products, sums.samples if metric.mean else None)
    warning = metric.warning(sums.samples / sums.blocks, sums.blocks, sums.width)
    spread = () if processes > 1 else (of_tokens.median(1).values, of_tokens.max(1).values)
    return LayerSimilarity(matrix, influence / count, norm / count, count, warning, *spread)


def block_influence(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Block influence of each layer, shape (layers,), float64, for any number of tokens; see `LayerSimilarity`."""
    total = torch.zeros((), dtype=torch.float64)
    for texts in tokens.tensor_split(_batch_count(tokens)):
        entry, outputs = _outputs_of(model, texts)
        total = total + _turned(torch.cat([entry[None], outputs]))
    return total / tokens.numel()


def _turned(states: Tensor) -> Tensor:
    """1 - cosine of each layer's input and output, summed over tokens; `states` starts with the first layer's input."""
    unit = F.normalize(states.float(), dim=-1)
    return (1 - (unit[:-1] * unit[1:]).sum(-1).double()).sum((1, 2)).cpu()


@dataclass
class _Sums:
    """Products of all layer pairs, summed over blocks of samples."""

    products: Tensor | None = None
    samples: int = 0
    blocks: int = 0
    width: int = 0

    def add(self, products: Tensor, block: Tensor) -> None:
        self.products = products if self.products is None else self.products + products
        self.samples += block.shape[1]
        self.blocks += 1
        self.width = block.shape[2]


def normalised(products: Tensor, samples: int | None = None) -> Tensor:
    """The similarity matrix from the summed products.

    Args:
        samples: take the mean over this many samples; None: divide by the square root of both layers' own products.
    """
    if samples is not None:
        matrix = products / samples
    else:
        own = products.diagonal()
        if not (own > 0).all():
            layer = int((~(own > 0)).nonzero()[0])
            raise ModelError(
                f"Layer {layer} gives the same output for every token, so its similarity is undefined. "
                "Use a text with distinct tokens, or check the model's weights."
            )
        matrix = products / (own[:, None] * own[None, :]).sqrt()
    matrix = (matrix + matrix.T) / 2
    return matrix.fill_diagonal_(1.0).cpu()


def _batch_count(tokens: Tensor, skipped: int = 0) -> int:
    """Number of batches: each of about 512 tokens, and with about 64 or more left after skipping the first tokens."""
    samples = len(tokens) * (tokens.shape[1] - skipped)
    return min(len(tokens), max(1, round(tokens.numel() / BATCH_TOKENS)), max(1, samples // FEWEST_SAMPLES))


@torch.inference_mode()
def _outputs_of(model: PreTrainedModel, texts: Tensor) -> tuple[Tensor, Tensor]:
    return layer_outputs(model, texts)


def _parts(entry: Tensor, outputs: Tensor, measure: Measure) -> Tensor:
    """The states to compare, shape (layers, texts, length, width): layer outputs or updates, first tokens skipped."""
    states = torch.cat([entry[None], outputs])[:, :, measure.skip_tokens :]
    return states[1:] - states[:-1] if measure.part == "update" else states[1:]


def _blocks(parts: Tensor) -> Sequence[Tensor]:
    """The tokens of all texts in blocks of about 512, each of shape (layers, tokens, width)."""
    flat = parts.flatten(1, 2)
    return flat.tensor_split(max(1, round(flat.shape[1] / BATCH_TOKENS)), dim=1)
