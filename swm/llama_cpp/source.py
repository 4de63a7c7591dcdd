"""Blocks copied from the GGUF file that a model came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, ReaderTensor
from torch import Tensor

from swm.errors import ModelError, first_line

CHUNK = 2**20  # numbers that are decoded at once


def open_gguf(file: Path) -> GGUFReader:
    """A reader of a GGUF file; raises ModelError if it is none, or is damaged."""
    try:
        return GGUFReader(file)
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise ModelError(
            f"{file} is not a readable GGUF file: {first_line(error)} Copy or download it again."
        ) from None


class Source:
    """A GGUF file, and which of its blocks each layer of the new model began as.

    Args:
        layers: for each layer of the new model, the block of the file.
    """

    def __init__(self, file: Path, layers: Sequence[int]) -> None:
        self.reader = open_gguf(file)
        self._layers = layers
        self._tensors = {tensor.name: tensor for tensor in self.reader.tensors}

    def tensor(self, name: str) -> ReaderTensor | None:
        """The file's tensor that the new model's tensor with this name began as."""
        parts = name.split(".")
        if parts[0] == "blk":
            parts[1] = str(self._layers[int(parts[1])])
        return self._tensors.get(".".join(parts))


def kind_of_changed(kind: Kind) -> Kind:
    """The format of a block that changed: that of the source, but 8 bits where it has fewer.

    Rounding healed weights to 4 bits again undid most of the healing: SmolLM2 with 24 of 30 layers, perplexity 40.5
    healed, 48.5 with its changed blocks in Q4_1 as in the source, 40.5 in Q8_0.
    """
    return kind if kind in (Kind.F32, Kind.F16, Kind.BF16) else Kind.Q8_0


def holds(stored: ReaderTensor, tensor: Tensor) -> bool:
    """Whether a block decodes to exactly these numbers, to the precision that they are in."""
    if tuple(reversed([int(size) for size in stored.shape])) != tuple(tensor.shape):
        return False
    rows = tensor.reshape(-1, tensor.shape[-1])
    return all(
        torch.equal(torch.from_numpy(chunk.copy()).to(tensor.dtype), rows[start : start + len(chunk)])
        for start, chunk in _decoded(stored, rows.shape[-1])
    )


def _decoded(stored: ReaderTensor, columns: int) -> Iterator[tuple[int, np.ndarray]]:
    """The numbers of a block, some rows at a time, with the first row's number."""
    data = stored.data.reshape(-1, stored.data.shape[-1])
    step = max(1, CHUNK // columns)
    for start in range(0, len(data), step):
        yield start, gguf.quants.dequantize(data[start : start + step], stored.tensor_type).reshape(-1, columns)
