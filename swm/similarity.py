"""How alike a model's layers are: CKA and its companions. Tensors in, numbers out.

All pairs at once: each layer gives one vector of features per block of tokens (its centred Gram matrix, or its
normalised states), and the layers x layers matrix of their products is added up over the blocks. Memory grows with the
length of a text (the states of one), not with the number of texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from swm.errors import ModelError, SettingsError, TextError
from swm.metrics import Measure
from swm.parallel import rank, summed, world_size
from swm.replay import layer_outputs

BATCH_TOKENS = 512
BLOCK_TEXTS = 256
FEWEST_SAMPLES = 64  # in a batch, so far as there are as many
NOISE_ALLOWED, BIAS_ALLOWED = 0.05, 0.1


@dataclass(frozen=True)
class LayerSimilarity:
    """Similarity of all layer pairs, and what one pass over the text tells about each layer besides.

    Attributes:
        matrix: shape (layers, layers), float64, by output of the layer.
        block_influence: shape (layers,): 1 - mean cosine between a layer's input and output; high means that the layer
            changes much. Source: ShortGPT, arXiv:2403.03853, section 3.2.
        norm: shape (layers,): mean length of a token's state after the layer.
        tokens: how many tokens were measured.
        warning: why the sample is too small, and how large it should be; empty if it is not.
    """

    matrix: Tensor
    block_influence: Tensor
    norm: Tensor
    tokens: int
    warning: str = ""


def layer_similarity(model: PreTrainedModel, tokens: Tensor, metric: str = "cka") -> Tensor:
    """Similarity of the outputs of all layer pairs.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.
        metric: one of metrics.METRICS.

    Returns:
        Shape (layers, layers), float64, symmetric, ones on the diagonal. CKA and cosine in [-1, 1] (a debiased
        estimate can fall below 0 by chance), angular in [0, 1].

    Raises:
        SettingsError: if the metric is unknown. TextError: if there are fewer than 4 tokens in a text batch.
        ModelError: if a layer's output is not finite, or is the same for every token.
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
        measure: metric, part of the layers, kind of sample, first tokens to leave out.

    Memory: the states of one text batch (some 512 tokens, at least one text), or of 256 texts' means.
    """
    measure = Measure(measure) if isinstance(measure, str) else measure
    if measure.skip_tokens >= tokens.shape[1]:
        raise SettingsError(
            f"--skip {measure.skip_tokens} leaves nothing of texts of {tokens.shape[1]} tokens. Skip fewer."
        )
    sums, pair = _Sums(), pair_products(measure.metric)
    means: list[Tensor] = []
    seen = 0
    influence = norm = torch.zeros(())
    several, own = world_size(), rank()
    if several > 1 and measure.samples != "tokens":
        raise SettingsError("Means of texts are compared in one process. Start it without accelerate launch.")
    batches = tokens.tensor_split(_batch_count(tokens, measure.skip_tokens))
    if several > len(batches):
        raise SettingsError(
            f"{several} processes share {len(batches)} batches of text. Use more text, or fewer processes."
        )
    if own and measure.metric == "cka-rbf":  # its width is that of the first batch, wherever that is computed
        pair(_blocks(_parts(*_outputs_of(model, batches[0]), measure))[0])
    for done, texts in enumerate(batches[own::several], 1):
        entry, outputs = _outputs_of(model, texts)
        states = torch.cat([entry[None], outputs])[:, :, measure.skip_tokens :]  # (1 + layers, texts, length, width)
        influence = influence + _turned(states)
        norm = norm + states[1:].float().norm(dim=-1).double().sum((1, 2)).cpu()
        parts = _parts(entry, outputs, measure)
        if measure.samples == "tokens":
            for block in _blocks(parts):
                sums.add(pair(block), block)
        else:
            means.append(parts.float().mean(2))
            seen += len(texts)
            gathered, left = sum(mean.shape[1] for mean in means), len(tokens) - seen
            # No block is left with so few texts that they could not be compared.
            if not left or (gathered >= BLOCK_TEXTS and left >= BLOCK_TEXTS // 2):
                block = torch.cat(means, dim=1)
                sums.add(pair(block), block)
                means.clear()
        if on_batch:
            on_batch(min(len(batches), done * several), len(batches))
    assert sums.products is not None
    numbers = torch.tensor([sums.samples, sums.blocks], dtype=torch.float64)
    sums.products, influence, norm, numbers = summed([sums.products, influence, norm, numbers])
    sums.samples, sums.blocks = (int(number) for number in numbers)
    count = len(tokens) * (tokens.shape[1] - measure.skip_tokens)
    matrix = normalised(sums.products, measure.metric, sums.samples)
    return LayerSimilarity(matrix, influence / count, norm / count, count, sums.warning(measure))


def block_influence(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Block influence of each layer, shape (layers,), float64: see `LayerSimilarity`. Any number of tokens will do."""
    total = torch.zeros((), dtype=torch.float64)
    for texts in tokens.tensor_split(_batch_count(tokens)):
        entry, outputs = _outputs_of(model, texts)
        total = total + _turned(torch.cat([entry[None], outputs]))
    return total / tokens.numel()


def _turned(states: Tensor) -> Tensor:
    """1 - cosine of each layer's input and output, summed over tokens; `states` begin with the first layer's input."""
    unit = F.normalize(states.float(), dim=-1)
    return (1 - (unit[:-1] * unit[1:]).sum(-1).double()).sum((1, 2)).cpu()


@dataclass
class _Sums:
    """Products of all layer pairs, added up over blocks of samples."""

    products: Tensor | None = None
    samples: int = 0
    blocks: int = 0
    width: int = 0

    def add(self, products: Tensor, block: Tensor) -> None:
        self.products = products if self.products is None else self.products + products
        self.samples += block.shape[1]
        self.blocks += 1
        self.width = block.shape[2]

    def warning(self, measure: Measure) -> str:
        """Whether independent layers could seem alike by the size of the sample alone.

        For white data of width p and n samples in a block: biased CKA is about p / (p + n); debiased CKA scatters about
        0 by sqrt(2) / n, less by the root of the number of blocks.
        """
        if not measure.metric.startswith("cka"):
            return ""
        n = self.samples / self.blocks
        bias, noise = self.width / (self.width + n), 2**0.5 / n / self.blocks**0.5
        if measure.metric == "cka-biased" and bias > BIAS_ALLOWED:
            return (
                f"Independent layers would seem {bias:.2f} alike: biased CKA sees {n:.0f} samples at a time of width "
                f"{self.width:,}; {self.width * (1 / BIAS_ALLOWED - 1):,.0f} would do. Take debiased CKA instead."
            )
        if measure.metric != "cka-biased" and noise > NOISE_ALLOWED:
            return (
                f"{self.samples} samples are few: independent layers would scatter by {noise:.2f} about 0. "
                f"{math.ceil(2**0.5 / NOISE_ALLOWED)} samples or more would do."
            )
        return ""


def pair_products(metric: str) -> Callable[[Tensor], Tensor]:
    """The function (layers, tokens, width) -> (layers, layers), float64, whose sums over batches `normalised` reads.

    An RBF kernel freezes its width per layer at the first batch, so one function serves one measurement.
    """
    if metric == "cka":
        return lambda states: _debiased(u_centred(_linear_gram(states)))
    if metric == "cka-biased":
        return _biased
    if metric == "cosine":
        return lambda states: _token_cosines(states).sum(0)
    if metric == "angular":
        return lambda states: (1 - _token_cosines(states).clamp(-1, 1).acos() / torch.pi).sum(0)
    widths: list[Tensor] = []

    def rbf(states: Tensor) -> Tensor:
        _check_samples(states.shape[1])
        distances = _squared_distances(states)
        if not widths:
            widths.append(_median_distance(distances))
        sigma = 0.5 * widths[0][:, None, None]
        return _debiased(u_centred(torch.exp(-distances / (2 * sigma**2))))

    return rbf


def normalised(products: Tensor, metric: str, samples: int) -> Tensor:
    """The similarity matrix from the summed products."""
    if metric in ("cosine", "angular"):
        matrix = products / samples
    else:
        own = products.diagonal()
        if not (own > 0).all():
            layer = int((~(own > 0)).nonzero()[0])
            raise ModelError(
                f"Layer {layer} gives the same output for every token, so its similarity is undefined. "
                "Use a text with different tokens, or check the model's weights."
            )
        matrix = products / (own[:, None] * own[None, :]).sqrt()
    matrix = (matrix + matrix.T) / 2
    return matrix.fill_diagonal_(1.0).cpu()


def u_centred(gram: Tensor) -> Tensor:
    """Gram matrices with zero diagonal, centred so that <K, L> / (n (n-3)) is the unbiased HSIC.

    Args:
        gram: shape (layers, n, n), n at least 4.

    Source: Song et al. 2012 (JMLR 13) and Nguyen et al. 2020, arXiv:2010.15327, section 2.
    """
    n = gram.shape[-1]
    _check_samples(n)
    gram = gram.clone()
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    means = gram.sum(-1, dtype=torch.float64) / (n - 2)
    means = means - means.sum(-1, keepdim=True) / (2 * (n - 1))
    gram = gram - (means[..., :, None] + means[..., None, :]).to(gram.dtype)
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    return gram


def _check_samples(n: int) -> None:
    if n < 4:
        raise TextError(f"{n} tokens are too few for CKA: at least 4 are needed. Use longer or more texts.")


def centred(gram: Tensor) -> Tensor:
    """HKH with H the centring matrix, for Gram matrices of shape (layers, n, n)."""
    rows = gram.mean(-1, keepdim=True, dtype=torch.float64)
    return gram - (rows + rows.transpose(-1, -2) - rows.mean(-2, keepdim=True)).to(gram.dtype)


def _linear_gram(states: Tensor) -> Tensor:
    """X X^T of each layer; float32, of centred states, which loses less precision and changes no CKA."""
    x = states.float()
    x = x - x.mean(-2, keepdim=True)
    return x @ x.transpose(-1, -2)


def _debiased(gram: Tensor) -> Tensor:
    """n times the unbiased HSIC of all pairs, weighing batches of unequal size by their tokens; `gram` U-centred."""
    return _products(gram) / (gram.shape[-1] - 3)


def _biased(states: Tensor) -> Tensor:
    """n times the HSIC as first published, <HKH, HLH> / (n - 1)^2, of all pairs."""
    n = states.shape[1]
    if n < 2:
        raise TextError("One token has nothing to be compared with. Use longer or more texts.")
    return _products(centred(_linear_gram(states))) * n / (n - 1) ** 2


def _products(gram: Tensor) -> Tensor:
    vectors = gram.flatten(1).double()
    return vectors @ vectors.T


def _squared_distances(states: Tensor) -> Tensor:
    gram = _linear_gram(states)
    square = gram.diagonal(dim1=-2, dim2=-1)
    return (square[:, :, None] + square[:, None, :] - 2 * gram).clamp_(min=0)


def _median_distance(squared: Tensor) -> Tensor:
    """Median distance between different samples, shape (layers,)."""
    n = squared.shape[-1]
    above = torch.triu_indices(n, n, 1, device=squared.device)
    distances = squared[:, above[0], above[1]].sqrt().double()
    return (
        torch.quantile(distances, 0.5, dim=-1).float()
        if distances.shape[1] <= 2**23
        else distances.median(-1)[0].float()
    )


def _token_cosines(states: Tensor) -> Tensor:
    """Cosines between layers, shape (tokens, layers, layers), float64."""
    unit = F.normalize(states.float(), dim=-1).transpose(0, 1)
    return (unit @ unit.transpose(-1, -2)).double()


def _batch_count(tokens: Tensor, skipped: int = 0) -> int:
    """Batches of some 512 tokens, or as many texts as leave some 64 when the first tokens are skipped."""
    samples = len(tokens) * (tokens.shape[1] - skipped)
    return min(len(tokens), max(1, round(tokens.numel() / BATCH_TOKENS)), max(1, samples // FEWEST_SAMPLES))


@torch.inference_mode()
def _outputs_of(model: PreTrainedModel, texts: Tensor) -> tuple[Tensor, Tensor]:
    return layer_outputs(model, texts)


def _parts(entry: Tensor, outputs: Tensor, measure: Measure) -> Tensor:
    """What of the layers is compared, shape (layers, texts, length, width)."""
    states = torch.cat([entry[None], outputs])[:, :, measure.skip_tokens :]
    return states[1:] - states[:-1] if measure.part == "update" else states[1:]


def _blocks(parts: Tensor) -> Sequence[Tensor]:
    """Tokens of all texts in blocks of some 512, shape (layers, tokens, width) each."""
    flat = parts.flatten(1, 2)
    return flat.tensor_split(max(1, round(flat.shape[1] / BATCH_TOKENS)), dim=1)
