"""The number formats that can be written to a GGUF file, and which tensor gets which."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType
from torch import Tensor

from swm.errors import ModelError, SettingsError
from swm.settings import GGUF_TYPES

SMALL = ("Q5_1", "Q5_0", "Q4_1", "Q4_0")
EXACT = ("_norm.weight", "_norm.bias", "ffn_gate_inp.weight", "position_embd.weight", "rope_freqs.weight")


def check_kind(name: str) -> str:
    """The name, if files of that format can be written.

    Raises:
        SettingsError: if they cannot.
    """
    if name in GGUF_TYPES:
        return name
    reason = "K-quants can be read, not written" if "K" in name.upper() else "it is not known"
    raise SettingsError(f"Type {name[:20]} cannot be written: {reason}. Choose one of: {', '.join(GGUF_TYPES)}.")


def file_type(name: str) -> LlamaFileType:
    """The file's type as its metadata says it."""
    return LlamaFileType.ALL_F32 if name == "F32" else LlamaFileType[f"MOSTLY_{name}"]


def kind_of(name: str, shape: tuple[int, ...], wanted: str, gives_logits: bool) -> Kind:
    """The format of one tensor in a file of type `wanted`.

    Vectors, norms and routers stay exact, as llama.cpp computes with them. Small formats leave the matrix that gives
    the logits in 8 bits, as llama.cpp's own tool does with a larger format. Rows that blocks do not fit are F16.

    Args:
        shape: as in the folder: rows, columns.
        gives_logits: the output matrix, or the embedding that serves as one.
    """
    if len(shape) == 1 or name.endswith(EXACT):
        return Kind.F32
    return fitting(Kind["Q8_0" if gives_logits and wanted in SMALL else wanted], shape)


def fitting(kind: Kind, shape: tuple[int, ...]) -> Kind:
    """The format, or F16 if its blocks do not fit the rows."""
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


def encoded(tensor: Tensor, kind: Kind) -> np.ndarray:
    """The bytes of a tensor in a format, as an array of its rows."""
    if kind == Kind.F16:
        half = tensor.contiguous().to(torch.float16)
        if not torch.isfinite(half).all():
            raise ModelError("A weight is too large for F16. Choose type BF16 or F32.")
        return half.numpy()
    whole = tensor.contiguous().float().numpy()
    return whole if kind == Kind.F32 else gguf.quants.quantize(whole, kind)


def bytes_of(shape: tuple[int, ...], kind: Kind) -> int:
    """Size of a tensor in a format."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * size
