"""What transformers leaves out when it reads a GGUF file: put back or refused, so that no model is silently another.

And what it repeats: it reads the header for the config, the tokenizer and the weights, and lists for every module what
a tensor may be called.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFReader
from transformers import PreTrainedModel

from swm.errors import ModelError
from swm.progress import Progress, no_progress

READING = threading.Lock()  # one file at a time: what is replaced in transformers and gguf belongs to all threads
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class Reader(GGUFReader):
    """gguf's reader on a plain view of the mapped file: a slice of numpy's own map takes three times as long."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, np.asarray(value) if name == "data" else value)


def complete(file: Path, model: PreTrainedModel) -> None:
    """Give a model read from a GGUF file the rotary scaling that transformers (5.24) drops.

    Raises:
        ModelError: if the scaling is of another kind than Llama 3's, or the file holds more or fewer numbers than the
            model: some were dropped, or made up.
    """
    reader = gguf.GGUFReader(str(file))  # within `read_once` the one that transformers used
    arch = str(reader.fields["general.architecture"].contents())
    kind = reader.fields.get(f"{arch}.rope.scaling.type")
    if kind is not None and kind.contents() not in ("none", ""):
        raise _lost(file, f"its rotary scaling ({kind.contents()})")
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors if not tensor.name.startswith("rope_"))
    held = sum(parameter.numel() for parameter in model.parameters())
    embedding: Any = model.get_input_embeddings()
    tied_twice = embedding.weight.numel()  # a file may hold a tied matrix twice
    if stored - held not in (0, tied_twice):
        raise _lost(file, f"all of its weights: {stored:,} numbers are in it, {held:,} in the model")
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            _scale(file, model.config, torch.from_numpy(tensor.data.copy()).flatten())
        elif tensor.name.startswith("rope_"):
            raise _lost(file, f"its rotary scaling ({tensor.name})")


@contextmanager
def read_once(progress: Progress = no_progress, text: str = "") -> Iterator[None]:
    """Let transformers read a GGUF file's header once, and report each tensor read, in place of its own bar."""
    from transformers import modeling_gguf_pytorch_utils as reading

    def counted(tensors: Sequence[Any], **_: Any) -> Iterator[Any]:
        for done, tensor in enumerate(tensors):
            progress(done, len(tensors), text)
            yield tensor

    ours = (
        (reading, "tqdm", counted),
        (gguf, "GGUFReader", cache(Reader)),
        (gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
    )
    with READING, ExitStack() as restoring:
        for module, name, instead in ours:
            restoring.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, instead)
        yield


def rope_factors(config: Any) -> list[float]:
    """What Llama 3's scaling divides each rotary frequency by; empty for a config without it."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if rope.get("rope_type") != "llama3":
        return []
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(scaled)
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return [float(factor) for factor in plain / scaled.double()]


def _scale(file: Path, config: Any, factors: torch.Tensor) -> None:
    """Set the scaling whose factors these are: Llama 3.1 and later differ in the largest one alone."""
    before = dict(config.rope_parameters)
    config.rope_parameters = {**before, **LLAMA3, "rope_type": "llama3", "factor": round(float(factors.max()), 4)}
    expected = torch.tensor(rope_factors(config))
    if expected.shape != factors.shape or not torch.allclose(expected, factors.float(), rtol=1e-3):
        config.rope_parameters = before
        raise _lost(file, "its rotary scaling (rope_freqs)")


def _lost(file: Path, what: str) -> ModelError:
    return ModelError(
        f"transformers does not read {what} from {file.name}, so the model would be another. Use the safetensors "
        "version of the model."
    )
