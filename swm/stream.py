"""Merge a model from disk to disk: what a plan leaves alone is copied as bytes, merged layers are made one at a time.

The result is that of `merge.apply_plan` on the loaded model, bit for bit, for models of any size: in memory there is
one parameter of a window's layers. Weights that a family stores in another form than it computes with are refused.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from swm.decoder import find_decoder, parameter_count
from swm.errors import ModelError
from swm.files import check_space, disk_errors, replaced_folder
from swm.merge import MergedLayer, apply_plan, base_layer, check_window, merged_tensor, projection_names
from swm.models import load_tokenizer
from swm.plan import MergePlan, Window
from swm.saving import check_complete, generation_config
from swm.sources import load_config, model_folder, skeleton, weight_files

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHARD_BYTES = 5 * 10**9  # as transformers' own default
COPY_BYTES = 2**26  # at once, between two reports of progress
OnBytes = Callable[[int, int], None]


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: `size` bytes from `offset`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Piece:
    """A tensor of the new model: stored bytes as they are, or made from those of a window's layers."""

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
) -> dict[str, int]:
    """Write the merged model as a folder that plain `AutoModelForCausalLM.from_pretrained` loads.

    Args:
        name, dtype: a model as in `models.load_model`; its files must have that number format already.
        plan: of a rule that works on weights alone.
        folder: appears whole or not at all.
        on_bytes: called with (bytes written, bytes in all); may raise to stop.
        on_written: called with the finished folder and what is returned, just before the folder takes its place.

    Returns:
        `parameters` and `size_bytes` of the new model.

    Raises:
        ModelError: if the files hold the weights in another form than the model has them.
        PlanError: if a window crosses layers of different shape. ExperimentError: if the disk is full.

    Memory: the largest parameter of a layer, once for each layer of the window and once merged.
    """
    source, config = model_folder(name), load_config(name)
    original = skeleton(config, name)
    layers = find_decoder(original).layers
    small = apply_plan(original, plan, lambda window: _unfilled(layers, window, plan.rule))
    stored = _stored(source, original, name)
    _check_format(stored, config.dtype if dtype == "auto" else getattr(torch, dtype), name)
    pieces = list(_pieces(plan, stored, _prefix(original), layers))
    total = sum(piece.size for piece in pieces)
    check_space(folder, total)
    with disk_errors(folder, total), replaced_folder(folder) as new:
        small.config.save_pretrained(new)
        generation_config(_generation_config(source, small)).save_pretrained(new)
        with ThreadPoolExecutor(1) as beside:
            tokenizer = beside.submit(lambda: load_tokenizer(name).save_pretrained(new))
            _write(new, pieces, total, on_bytes)
            tokenizer.result()
        check_complete(new)
        facts = {"parameters": parameter_count(small), "size_bytes": total}
        if on_written:
            on_written(new, facts)
    return facts


def _unfilled(layers: Sequence[nn.Module], window: Window, rule: str) -> MergedLayer:
    check_window(layers, window, rule)
    return MergedLayer(base_layer(window, rule))


def _generation_config(source: Path, small: PreTrainedModel) -> GenerationConfig:
    if (source / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(source)
    return small.generation_config or GenerationConfig()


# ---- reading --------------------------------------------------------------------------------------------------------


def _stored(folder: Path, model: PreTrainedModel, name: str) -> dict[str, Stored]:
    """Where each tensor of the model lies, in the files' order.

    Raises:
        ModelError: unless the files hold the tensors of the model by the model's own names.
    """
    found = {tensor: where for file in weight_files(folder) for tensor, where in _header(file).items()}
    wanted = model.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for tensor, value in wanted.items():
        tied.setdefault(id(value), []).append(tensor)
    missing = [names[0] for names in tied.values() if not any(each in found for each in names)]
    unknown = [tensor for tensor in found if tensor not in wanted and not tensor.endswith("inv_freq")]
    if missing or unknown:
        raise ModelError(
            f"The files of {name} hold its weights in another form than the model has them "
            f"({(missing or unknown)[0]}): they can be merged in memory only. Leave --stream out."
        )
    for tensor, where in found.items():
        if tensor in wanted and tuple(wanted[tensor].shape) != where.shape:
            raise ModelError(f"{tensor} of {name} has another shape than its config says. Copy or download it again.")
    return {tensor: where for tensor, where in found.items() if tensor in wanted}


def _check_format(stored: dict[str, Stored], wanted: torch.dtype | None, name: str) -> None:
    """Raise ModelError if loading would convert weights: merged after that they would be other bits."""
    others = [tensor for tensor, where in stored.items() if wanted and FLOATS.get(where.dtype, wanted) != wanted]
    if others:
        raise ModelError(
            f"The files of {name} hold {others[0]} in {stored[others[0]].dtype}, and it is to be merged in {wanted}: "
            "that can be done in memory only. Leave --stream out."
        )


def _header(file: Path) -> dict[str, Stored]:
    """The table of contents of a safetensors file: a length, JSON, then the tensors' bytes one after another."""
    try:
        with safe_open(file, "pt"):  # checks the header against the file
            pass
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            rows = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error, SafetensorError) as error:
        raise ModelError(f"{file} is damaged: {error} Copy or download it again.") from None
    found = {}
    for tensor, row in rows.items():
        if tensor != "__metadata__":
            begin, end = row["data_offsets"]
            found[tensor] = Stored(file, row["dtype"], tuple(row["shape"]), 8 + length + begin, end - begin)
    return dict(sorted(found.items(), key=lambda item: item[1].offset))


def _prefix(model: PreTrainedModel) -> str:
    """What the names of the layers' tensors begin with, as in "model.layers."."""
    decoder = find_decoder(model)
    return next(path for path, module in model.named_modules() if module is decoder.layers) + "."


def _tensor(stored: Stored, name: str) -> Tensor:
    with safe_open(stored.file, "pt") as file:
        return file.get_tensor(name)


# ---- writing --------------------------------------------------------------------------------------------------------


def _pieces(plan: MergePlan, stored: dict[str, Stored], prefix: str, layers: Sequence[nn.Module]) -> Iterator[Piece]:
    """The tensors of the new model in the order in which they are written: the source's own, layer by layer."""
    by_layer: dict[int, list[str]] = {}
    for name in stored:
        if name.startswith(prefix):
            by_layer.setdefault(int(name.removeprefix(prefix).split(".")[0]), []).append(name)
        else:
            yield _as_it_is(name, stored[name])
    for new, window in enumerate(plan.kept_layers()):
        base = base_layer(window, plan.rule) if len(window) > 1 else window.first
        combined = len(window) > 1 and plan.rule not in ("keep_first", "keep_last")
        computed = projection_names(layers[base]) if combined else []
        for name in by_layer[base]:
            own = name.removeprefix(f"{prefix}{base}.")
            piece = _as_it_is(f"{prefix}{new}.{own}", stored[name])
            if own in computed:
                sources = [f"{prefix}{layer}.{own}" for layer in range(window.first, window.last + 1)]
                piece = replace(piece, stored=None, made=partial(_merged, stored, sources, plan.rule))
            yield piece


def _merged(stored: dict[str, Stored], names: list[str], rule: str) -> Tensor:
    return merged_tensor([_tensor(stored[name], name) for name in names], rule)


def _as_it_is(name: str, stored: Stored) -> Piece:
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
        where = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    written = 0

    def told(count: int) -> None:
        nonlocal written
        written += count
        if on_bytes:
            on_bytes(written, total)

    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as out, _flushed(out), ExitStack() as opened:
            _write_header(out, shard)
            sources = {p.stored.file: opened.enter_context(p.stored.file.open("rb")) for p in shard if p.stored}
            for run in _runs(shard):
                if run[0].stored:
                    _copy(sources[run[0].stored.file], out, run[0].stored.offset, sum(p.size for p in run), told)
                elif run[0].made:
                    tensor = run[0].made().to(FLOATS[run[0].dtype]).contiguous()
                    out.write(tensor.view(-1).view(torch.uint8).numpy().data)
                    told(run[0].size)
            out.flush()
            os.fsync(out.fileno())


@contextmanager
def _flushed(out: IO[bytes]) -> Iterator[None]:
    """Let the disk begin to write what was written so far, so that there is little left to wait for at the end."""
    done, failures = threading.Event(), list[OSError]()

    def flush() -> None:
        while not failures and not done.wait(0.01):
            try:
                os.fsync(out.fileno())
            except OSError as error:  # the system tells of it once: the last fsync would not know
                failures.append(error)

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]


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
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    out.write(struct.pack("<Q", len(text)) + text)


def _runs(shard: list[Piece]) -> Iterator[list[Piece]]:
    """Pieces whose bytes follow one another in the source as in the new file, to be copied in one go."""
    run: list[Piece] = []
    for piece in shard:
        last = run[-1].stored if run else None
        now = piece.stored
        if last and now and last.file == now.file and last.offset + last.size == now.offset:
            run.append(piece)
            continue
        if run:
            yield run
        run = [piece]
    if run:
        yield run


def _copy(source: IO[bytes], out: IO[bytes], offset: int, count: int, told: Callable[[int], None]) -> None:
    """Copy bytes, on Linux without bringing them into this process."""
    out.flush()
    while count:
        most = min(count, COPY_BYTES)
        if sys.platform == "linux":
            done = os.sendfile(out.fileno(), source.fileno(), offset, most)
        else:
            source.seek(offset)
            done = out.write(source.read(most))
        if not done:
            raise ModelError(f"{source.name} ended while it was read. Copy or download it again.")
        offset, count = offset + done, count - done
        told(done)
