"""A Hugging Face folder as a GGUF file, tensor by tensor."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType, GGUFWriter, ReaderTensor
from torch import Tensor

from swm.disk.files import check_absent, check_space, replaced_file
from swm.errors import ModelError, first_line
from swm.llama_cpp.attention_free import DECI, check_without_attention, heads_by_layer, kept_targets
from swm.llama_cpp.families import Family, family_of, period_broken
from swm.llama_cpp.kinds import bytes_of, check_kind, encoded, file_type, fitting, kind_of
from swm.llama_cpp.source import Source, holds, kind_of_changed, open_gguf
from swm.llama_cpp.tensors import Target, targets
from swm.llama_cpp.vocabulary import Value, Vocabulary, copied_vocabulary, vocabulary_of
from swm.merging.stored import Stored, read_header, read_tensor
from swm.models.load import load_tokenizer
from swm.models.locate import load_config, weight_files
from swm.models.save import check_complete
from swm.progress import Progress, no_progress

CHUNK = 2**22  # numbers that are encoded at once
KIND_OF = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}


@dataclass(frozen=True)
class Written:
    """What a GGUF file holds: its size, how many tensors of each format, and how many were copied from its source."""

    size_bytes: int
    kinds: Mapping[str, int]
    copied: int


@dataclass(frozen=True)
class _Planned:
    """A tensor to write: its shape and format; `stored` if its bytes are copied."""

    target: Target
    shape: tuple[int, ...]
    kind: Kind
    stored: ReaderTensor | None


def export_gguf(
    folder: Path | str,
    file: Path | str,
    type: str | None = None,
    *,
    source: Path | None = None,
    layers: list[int] | None = None,
    entries: Mapping[str, str | int | list[str]] | None = None,
    without_attention: Collection[int] = (),
    progress: Progress = no_progress,
) -> Written:
    """Write a Hugging Face folder as a file that llama.cpp loads; it appears complete or not at all.

    Args:
        type: one of GGUF_TYPES, by default F16. With a source: by default each of its blocks is copied bit for bit
            where the model still has exactly its numbers; one that changed gets 8 bits, or more if it had more.
        source: the GGUF file that the model came from. Its vocabulary is copied.
        layers: for each layer of the model, the block of the source that it began as.
        entries: more metadata, such as `general.name`.
        without_attention: layers that are written without their attention, which only llama.cpp can run (as its
            architecture `deci`).

    Raises:
        ModelError: if llama.cpp cannot run the model as transformers does. SettingsError: if the type is unknown.
        ExperimentError: if the file exists, or the disk is full.

    Memory: one tensor, and 4 million numbers more.
    """
    folder, file = Path(folder), Path(file)
    check_absent(file)
    check_kind(type or "F16")
    config = load_config(str(folder))
    family = family_of(config)
    check_complete(folder)
    if broken := period_broken(config):
        raise ModelError(
            f"llama.cpp would run layers {', '.join(map(str, broken[:8]))} of this {config.model_type} otherwise, "
            "since it derives from a layer's place how it attends. Choose the layers by a planner with --keep-period."
        )
    if without_attention:
        check_without_attention(config, family, without_attention)
    origin = Source(source, layers or list(range(config.num_hidden_layers))) if source else None
    vocabulary = _vocabulary(str(folder), config, origin)
    stored = {name: one for part in weight_files(folder) for name, one in read_header(part).items()}
    wanted = kept_targets(targets(config, family, list(stored), vocabulary.tokens), without_attention)
    planned = _planned(wanted, stored, config, type, origin)
    size = sum(bytes_of(one.shape, one.kind) for one in planned)
    check_space(file, size)
    with replaced_file(file, size) as new:
        writer = GGUFWriter(new, DECI if without_attention else family.arch)
        writer.add_file_type(_file_type(type, origin))
        keys = {**_keys(config, family), "vocab_size": vocabulary.tokens}
        keys |= heads_by_layer(keys, without_attention) if without_attention else {}
        _add_metadata(writer, keys, vocabulary, entries or {})
        with closing(writer):
            sums = _write(writer, planned, stored, progress, size)
        _check(new, planned, sums)
        check_absent(file)
    kinds = Counter(one.kind.name for one in planned)
    return Written(file.stat().st_size, dict(kinds), sum(one.stored is not None for one in planned))


def _vocabulary(folder: str, config: Any, origin: Source | None) -> Vocabulary:
    if origin is None:
        return vocabulary_of(load_tokenizer(folder), config.vocab_size)
    copied = copied_vocabulary(origin.reader)
    if copied.tokens > config.vocab_size:
        raise ModelError(
            f"The source has {copied.tokens:,} tokens, the embedding {config.vocab_size:,}. Check the source."
        )
    return copied


def _planned(
    wanted: list[Target], stored: dict[str, Stored], config: Any, type: str | None, origin: Source | None
) -> list[_Planned]:
    shapes = {name: one.shape for name, one in stored.items()}
    own_output = any(target.name == "output.weight" for target in wanted)
    planned = []
    for target in wanted:
        shape = target.shape(shapes)
        logits = target.name == ("output.weight" if own_output else "token_embd.weight")
        kind = kind_of(target.name, shape, type or "F16", logits)
        block = origin.tensor(target.name) if origin else None
        if target.name == "token_embd.weight" and block and not holds(block, _made(target, stored)):
            raise ModelError("The GGUF file that the model came from has changed since. Put the former one back.")
        block = block if type is None else None
        if block is not None:
            exact = holds(block, _made(target, stored))
            kind = block.tensor_type if exact else fitting(kind_of_changed(block.tensor_type), shape)
            block = block if exact else None
        planned.append(_Planned(target, shape, kind, block))
    return planned


def _made(target: Target, stored: dict[str, Stored]) -> Tensor:
    return target.make([read_tensor(stored[name], name) for name in target.sources])


def _file_type(type: str | None, origin: Source | None) -> int:
    """What the file is said to be: of the type asked for, or as its source."""
    kept = origin.reader.fields.get("general.file_type") if origin and type is None else None
    return int(kept.contents()) if kept else int(file_type(type or "F16"))


def _add_metadata(
    writer: GGUFWriter, keys: Mapping[str, Any], vocabulary: Vocabulary, entries: Mapping[str, str | int | list[str]]
) -> None:
    writer.add_type("model")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    named = {**entries, "general.name": vocabulary.name(str(entries.get("general.name", "")))}
    for key, entry in named.items():
        if isinstance(entry, list):
            writer.add_array(key, entry)
        else:
            Value(entry, KIND_OF[entry.__class__]).add_to(writer, key)
    for key, number in keys.items():
        if number is None or (isinstance(number, int) and number < 0):
            raise ModelError(f"The model's config has no valid value for what llama.cpp calls {writer.arch}.{key}.")
        if isinstance(number, list):
            Value(number, GGUFValueType.ARRAY, GGUFValueType.INT32).add_to(writer, f"{writer.arch}.{key}")
        else:
            Value(number, KIND_OF[number.__class__]).add_to(writer, f"{writer.arch}.{key}")
    for key, value in vocabulary.entries.items():
        value.add_to(writer, key)


def _keys(config: Any, family: Family) -> dict[str, Any]:
    try:
        return family.keys(config)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ModelError(f"The model's config.json is incomplete: {first_line(error)} Copy it again.") from None


def _write(
    writer: GGUFWriter, planned: list[_Planned], stored: dict[str, Stored], progress: Progress, size: int
) -> list[int]:
    """Write header, metadata and tensors; returns a checksum of each tensor's bytes."""
    for one in planned:
        writer.add_tensor_info(
            one.target.name, one.shape, np.dtype(np.float32), bytes_of(one.shape, one.kind), raw_dtype=one.kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout
    out, done, sums = writer.fout[0], 0, []
    for one in planned:
        progress(done, size, one.target.name)
        writer.write_padding(out, out.tell())
        start, sum_ = out.tell(), 0
        for chunk in _bytes(one, stored):
            out.write(chunk)
            sum_ = zlib.crc32(chunk, sum_)
        done += out.tell() - start
        writer.write_padding(out, out.tell() - start)
        sums.append(sum_)
    return sums


def _bytes(one: _Planned, stored: dict[str, Stored]) -> Iterator[bytes]:
    if one.stored is not None:
        yield one.stored.data.tobytes()
        return
    tensor = _made(one.target, stored)
    rows = tensor.reshape(-1, tensor.shape[-1])
    step = max(1, CHUNK // rows.shape[-1])
    for start in range(0, len(rows), step):
        yield encoded(rows[start : start + step], one.kind).tobytes()


def _check(file: Path, planned: list[_Planned], sums: list[int]) -> None:
    """Read the file again: every tensor with its name, shape, format and bytes."""
    read = {tensor.name: tensor for tensor in open_gguf(file).tensors}
    for one, expected in zip(planned, sums, strict=True):
        tensor = read.get(one.target.name)
        shape = tensor and tuple(reversed([int(size) for size in tensor.shape]))
        if (
            tensor is None
            or shape != one.shape
            or tensor.tensor_type != one.kind
            or zlib.crc32(tensor.data.tobytes()) != expected
        ):
            raise ModelError(f"The written file does not hold {one.target.name} as it should. Export again.")
