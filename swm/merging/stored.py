"""Tensors in safetensors files: locating, reading and copying them."""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from swm.errors import ModelError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COPY_BYTES = 2**26  # copied between two progress reports


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: `size` bytes starting at `offset`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, in the order of their bytes.

    The file holds the header's length, the header as JSON, then the tensors' bytes one after another.
    """
    try:
        with safe_open(file, "pt"):  # checks the header against the file
            pass
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            rows = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error, SafetensorError) as error:
        raise ModelError(f"{file} is damaged: {error} Copy or download it again.") from None
    tensors = {}
    for name, row in rows.items():
        if name != "__metadata__":
            begin, end = row["data_offsets"]
            tensors[name] = Stored(file, row["dtype"], tuple(row["shape"]), 8 + length + begin, end - begin)
    return dict(sorted(tensors.items(), key=lambda item: item[1].offset))


def read_tensor(stored: Stored, name: str) -> Tensor:
    """The named tensor, read from its safetensors file."""
    with safe_open(stored.file, "pt") as file:
        return file.get_tensor(name)


@contextmanager
def flushed(out: IO[bytes]) -> Iterator[None]:
    """Keeps syncing the file to disk in the background, so that little is left to write at the end."""
    done, failures = threading.Event(), list[OSError]()

    def flush() -> None:
        while not failures and not done.wait(0.01):
            try:
                os.fsync(out.fileno())
            except OSError as error:  # the system reports it only once: the final fsync would succeed
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


def copy_bytes(source: IO[bytes], out: IO[bytes], offset: int, count: int, on_copied: Callable[[int], None]) -> None:
    """Copy `count` bytes from `offset`; on Linux inside the kernel, without reading them into this process.

    Args:
        on_copied: called with the size of each chunk.
    """
    out.flush()
    while count:
        most = min(count, COPY_BYTES)
        if sys.platform == "linux":
            done = os.sendfile(out.fileno(), source.fileno(), offset, most)
        else:
            source.seek(offset)
            done = out.write(source.read(most))
        if not done:
            raise ModelError(f"{source.name} is shorter than its header says. Copy or download it again.")
        offset, count = offset + done, count - done
        on_copied(done)
