"""Merge a model from disk to disk: unchanged tensors are copied as bytes, merged ones are computed one at a time.

The result equals that of `apply_plan` on the loaded model bit for bit. It works for models of any size: memory holds
one parameter of a window's layers, and merged layers that were made before (rule `fit`). Refuses weights that
transformers converts while loading.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from swm.disk.files import check_space, disk_errors, replaced_folder
from swm.errors import ModelError
from swm.merging.apply import apply_plan, check_window, merged_tensor, projection_names
from swm.merging.merged_layer import MergedLayer
from swm.merging.stored import FLOATS, Stored, copy_bytes, flushed, read_header, read_tensor
from swm.models.decoder import find_decoder, parameter_count
from swm.models.load import load_tokenizer
from swm.models.locate import load_config, model_folder, skeleton, weight_files
from swm.models.save import SHARD_BYTES, check_complete, generation_config
from swm.plan import MergePlan, Window, base_layer
from swm.registry import MERGE_RULES

OnBytes = Callable[[int, int], None]


@dataclass(frozen=True)
class Piece:
    """A tensor of the new model: copied from `stored`, or computed from a window's layers by `made`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    stored: Stored | None
    made: Callable[[], Tensor] | None = None


def stream_merge(
    name: str,
    plan: MergePlan,
    folder: Path,
    dtype: str = "auto",
    on_bytes: OnBytes | None = None,
    on_written: Callable[[Path, dict[str, int]], None] | None = None,
    made: Mapping[Window, MergedLayer] | None = None,
) -> dict[str, int]:
    """Write the merged model as a folder that plain `AutoModelForCausalLM.from_pretrained` loads.

    Args:
        name, dtype: a model as in `load_model`; its files must already have that dtype.
        plan: its rule must work on weights alone, unless the merged layers are given.
        folder: appears complete or not at all.
        on_bytes: called with (bytes written, total bytes); may raise to stop.
        on_written: called with the finished folder and the returned facts, just before it is moved into place.
        made: the merged layer of each window, as from `fit.fitted_layers`, and others that change, as from
            `scale.folded`; windows without are computed by the plan's rule.

    Returns:
        `parameters` and `size_bytes` of the new model.

    Raises:
        ModelError: if the files store the weights in a different form than the loaded model has.
        PlanError: if a window combines layers of different shapes. ExperimentError: if the disk is full.

    Memory: the largest parameter of a layer, once for each layer of the window and once merged; and what is given.
    """
    source = model_folder(name, dtype)
    original, stored = check_streams(name, dtype)
    formats = [FLOATS[where.dtype] for where in sorted(stored.values(), key=lambda where: where.size)]
    layers = find_decoder(original).layers
    small = apply_plan(original, plan, lambda window: _unfilled(layers, window, plan.rule))
    small.config.dtype = formats[-1]  # that of the largest weight, as when a model is loaded and saved
    pieces = list(_pieces(plan, stored, _prefix(original), layers, made or {}))
    total = sum(piece.size for piece in pieces)
    check_space(folder, total)
    with disk_errors(folder, total), replaced_folder(folder) as new:
        small.config.save_pretrained(new)
        generation_config(_generation_config(source, small)).save_pretrained(new)
        with ThreadPoolExecutor(1) as background:
            tokenizer = background.submit(lambda: load_tokenizer(name).save_pretrained(new))
            _write(new, pieces, total, on_bytes)
            tokenizer.result()
        check_complete(new)
        facts = {"parameters": parameter_count(small), "size_bytes": total}
        if on_written:
            on_written(new, facts)
    return facts


def check_streams(name: str, dtype: str = "auto") -> tuple[PreTrainedModel, dict[str, Stored]]:
    """The model without weights, and where they are stored.

    Raises:
        ModelError: if the files store the weights in a different form than the loaded model has.
    """
    config = load_config(name, dtype)
    original = skeleton(config, name)
    stored = _stored(model_folder(name, dtype), original, name)
    _check_format(stored, config.dtype if dtype == "auto" else getattr(torch, dtype), name)
    return original, stored


def _unfilled(layers: Sequence[nn.Module], window: Window, rule: str) -> MergedLayer:
    check_window(layers, window, rule)
    return MergedLayer(base_layer(window, rule))


def _generation_config(source: Path, small: PreTrainedModel) -> GenerationConfig:
    if (source / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(source)
    return small.generation_config or GenerationConfig()


def _stored(folder: Path, model: PreTrainedModel, name: str) -> dict[str, Stored]:
    """Each tensor of the model and its place in the files, in the files' order.

    Raises:
        ModelError: unless the files store the model's tensors under the model's own names.
    """
    in_files = {tensor: where for file in weight_files(folder) for tensor, where in read_header(file).items()}
    in_model = model.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for tensor, value in in_model.items():
        tied.setdefault(id(value), []).append(tensor)
    missing = [names[0] for names in tied.values() if not any(tensor in in_files for tensor in names)]
    unknown = [tensor for tensor in in_files if tensor not in in_model and not tensor.endswith("inv_freq")]
    if missing or unknown:
        raise ModelError(
            f"The files of {name} store its weights in a different form than the loaded model has "
            f"({(missing or unknown)[0]}), so they can only be merged in memory. Omit --stream."
        )
    for tensor, where in in_files.items():
        if tensor in in_model and tuple(in_model[tensor].shape) != where.shape:
            raise ModelError(
                f"The shape of {tensor} in the files of {name} does not match the config. Copy or download the model "
                "again."
            )
    return {tensor: where for tensor, where in in_files.items() if tensor in in_model}


def _check_format(stored: dict[str, Stored], dtype: torch.dtype | None, name: str) -> None:
    """Raise ModelError if loading would convert weights: the merged bits would then differ from a merge in memory."""
    converted = [tensor for tensor, where in stored.items() if dtype and FLOATS.get(where.dtype, dtype) != dtype]
    if converted:
        raise ModelError(
            f"The files of {name} store {converted[0]} in {stored[converted[0]].dtype}, but the merge is in "
            f"{str(dtype).removeprefix('torch.')}, which is only possible in memory. Omit --stream."
        )


def _prefix(model: PreTrainedModel) -> str:
    """Common prefix of the layers' tensor names, such as "model.layers."."""
    decoder = find_decoder(model)
    return next(path for path, module in model.named_modules() if module is decoder.layers) + "."


def _pieces(
    plan: MergePlan,
    stored: dict[str, Stored],
    prefix: str,
    layers: Sequence[nn.Module],
    made: Mapping[Window, MergedLayer],
) -> Iterator[Piece]:
    """The tensors of the new model in the order they are written: the source's order, layer by layer."""
    by_layer: dict[int, list[str]] = {}
    for name in stored:
        if name.startswith(prefix):
            by_layer.setdefault(int(name.removeprefix(prefix).split(".")[0]), []).append(name)
        else:
            yield _copied(name, stored[name])
    for new, (window, base) in enumerate(zip(plan.kept_layers(), plan.base_layers(), strict=True)):
        changed = made.get(window, MergedLayer(base))
        combined = len(window) > 1 and window not in made and MERGE_RULES[plan.rule].combine is not None
        computed = projection_names(layers[base]) if combined else []
        for name in by_layer[base]:
            own = name.removeprefix(f"{prefix}{base}.")
            piece = _copied(f"{prefix}{new}.{own}", stored[name])
            if own in computed:
                sources = [f"{prefix}{layer}.{own}" for layer in range(window.first, window.last + 1)]
                piece = replace(piece, stored=None, made=partial(_merged, stored, sources, plan.rule))
            elif own in changed.differs():
                piece = replace(piece, stored=None, made=partial(_changed, changed, own, stored[name], name))
            yield piece


def _merged(stored: dict[str, Stored], names: list[str], rule: str) -> Tensor:
    return merged_tensor([read_tensor(stored[name], name) for name in names], rule)


def _changed(layer: MergedLayer, own: str, stored: Stored, name: str) -> Tensor:
    return layer.parameter(own, partial(read_tensor, stored, name)).cpu()


def _copied(name: str, stored: Stored) -> Piece:
    return Piece(name, stored.dtype, stored.shape, stored.size, stored)


def _write(folder: Path, pieces: list[Piece], total: int, on_bytes: OnBytes | None) -> None:
    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        if shards[-1] and sum(p.size for p in shards[-1]) + piece.size > SHARD_BYTES:
            shards.append([])
        shards[-1].append(piece)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
        weight_map = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    written = 0

    def count_written(count: int) -> None:
        nonlocal written
        written += count
        if on_bytes:
            on_bytes(written, total)

    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as out, flushed(out), ExitStack() as opened:
            _write_header(out, shard)
            sources = {p.stored.file: opened.enter_context(p.stored.file.open("rb")) for p in shard if p.stored}
            for run in _runs(shard):
                if run[0].stored:
                    source, size = sources[run[0].stored.file], sum(piece.size for piece in run)
                    copy_bytes(source, out, run[0].stored.offset, size, count_written)
                elif run[0].made:
                    tensor = run[0].made().to(FLOATS[run[0].dtype]).contiguous()
                    out.write(tensor.view(-1).view(torch.uint8).numpy().data)
                    count_written(run[0].size)
            out.flush()
            os.fsync(out.fileno())


def _write_header(out: IO[bytes], shard: list[Piece]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for piece in shard:
        header[piece.name] = {
            "dtype": piece.dtype,
            "shape": list(piece.shape),
            "data_offsets": [place, place + piece.size],
        }
        place += piece.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    out.write(struct.pack("<Q", len(text)) + text)


def _runs(shard: list[Piece]) -> Iterator[list[Piece]]:
    """Groups of pieces that are contiguous in both the source and the new file, to be copied in one go."""
    run: list[Piece] = []
    for piece in shard:
        last = run[-1].stored if run else None
        here = piece.stored
        if last and here and last.file == here.file and last.offset + last.size == here.offset:
            run.append(piece)
            continue
        if run:
            yield run
        run = [piece]
    if run:
        yield run
