"""Measures the similarity of an experiment's layers."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.evaluation.cost import decode_cost
from swm.evaluation.generation import keeps_cache
from swm.models.layer_parts import part_weights
from swm.models.offload import is_offloaded, weights_of
from swm.models.processes import is_first, world_size
from swm.models.replay import Replay
from swm.progress import Progress, no_progress
from swm.similarity.layers import measure_similarity
from swm.similarity.measure import Measure
from swm.stages.loading import calibration_of, check_text, conditions_for, load_original
from swm.texts.documents import text_hash
from swm.workspace.experiments import Experiment

PART_TOKENS = 1024  # in one forward pass


def measure_experiment(
    experiment: Experiment,
    how: Measure | str = "cka",
    progress: Progress = no_progress,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    *,
    cost: bool = True,
) -> dict[str, Any]:
    """Similarity of all layer pairs, written to similarity/<name of the measure>.json.

    Args:
        loaded: model and tokenizer, for callers that measure several times.
        cost: also time a token of the original, unless that is known.
    """
    how = Measure(how) if isinstance(how, str) else how
    progress(0, 0, "loading the model")
    model, tokenizer = loaded or load_original(experiment, offload=True)
    tokens = calibration_of(experiment, tokenizer, how.texts)
    check_text(experiment)
    start = time.time()
    similarity = measure_similarity(model, tokens, how, lambda done, total: progress(done, total, "measuring"))
    parts = None if world_size() > 1 else parts_influence(model, tokens, how.skip_tokens)
    data = {
        **asdict(how),
        "matrix": similarity.matrix.tolist(),
        "block_influence": similarity.block_influence.tolist(),
        "norm": similarity.norm.tolist(),
        **({"norm_median": similarity.norm_median.tolist()} if similarity.norm_median is not None else {}),
        **({"norm_max": similarity.norm_max.tolist()} if similarity.norm_max is not None else {}),
        **({"attention_influence": parts[0].tolist(), "mlp_influence": parts[1].tolist()} if parts else {}),
        "tokens": similarity.tokens,
        "warning": similarity.warning,
        "text_hash": text_hash(how.texts) if how.texts else experiment.text_hash,
        "conditions": conditions_for(experiment, model, start),
    }
    if not is_first():
        return data
    experiment.save_similarity(how.name, data)
    if cost and not experiment.cost():
        measure_cost(experiment, (model, tokenizer), progress)
    return data


def measure_cost(
    experiment: Experiment, loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], progress: Progress = no_progress
) -> None:
    """Time a token of the original, written to cost.json; not if its weights are on disk, or it keeps no cache.

    Args:
        loaded: model and tokenizer.
    """
    model, tokenizer = loaded
    prompt = calibration_of(experiment, tokenizer)[:1, :64]
    if not is_offloaded(model) and keeps_cache(model, prompt):  # otherwise the disk would be timed
        progress(0, 0, "timing a token")
        experiment.save_cost(decode_cost(model, prompt))


def parts_influence(model: PreTrainedModel, tokens: Tensor, skip_tokens: int = 0) -> tuple[Tensor, Tensor] | None:
    """Influence of each layer's attention (or other mixer) and of its MLP.

    As block influence (1 - mean cosine), from the layer's input to the state without the MLP, and from there to the
    output. The state without the MLP is the layer's output with all weights of the MLP at 0, so a norm on the MLP's
    result, or an MLP beside the attention, needs no special case.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.
        skip_tokens: number of first tokens of each text to leave out.

    Returns:
        Two of shape (layers,), float64; None if a layer has no part with a usual name.
    """
    replay = Replay(model, tokens, keep_every=4, part=max(1, PART_TOKENS // tokens.shape[1]))
    names = [part_weights(layer, "mlp") for layer in replay.layers]
    if not all(names):
        return None
    rows = torch.arange(len(tokens)).split(max(1, PART_TOKENS // tokens.shape[1]))
    sums = torch.zeros(2, len(names), dtype=torch.float64)
    for index, layer in enumerate(replay.layers):
        weights = weights_of(layer)
        zeros = {name: torch.zeros_like(weights[name]) for name in names[index]}
        for part in rows:
            entry = replay.input_of(index, part)
            output = replay.input_of(index + 1, part) if index + 1 < len(names) else replay.run(entry, index)
            states = [entry, replay.run(entry, index, zeros), output]
            unit = [F.normalize(state[:, skip_tokens:].float(), dim=-1) for state in states]
            for step in range(2):
                sums[step, index] += (1 - (unit[step] * unit[step + 1]).sum(-1).double()).sum().cpu()
    attention, mlp = sums / (len(tokens) * (tokens.shape[1] - skip_tokens))
    return attention, mlp
