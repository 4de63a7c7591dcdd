"""Where things lie on disk, and how they are written: a crash leaves the old or the new file, never half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swm.errors import ExperimentError

SCHEMA = 1
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG,
    errno.EINVAL,
)  # fmt: skip


def home() -> Path:
    """Folder of everything the product keeps: `SWM_HOME`, by default `~/.swm`. Read anew at each call."""
    return Path(os.environ.get("SWM_HOME") or Path.home() / ".swm").expanduser()


def demo_experiment() -> str:
    """The experiment to show while everything is read-only: `SWM_DEMO`; empty when it is not set."""
    return os.environ.get("SWM_DEMO", "")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write one JSON object so that readers see the old or the new file.

    Raises:
        ExperimentError: if the disk is full or the folder cannot be written.
    """
    text = json.dumps({"schema": SCHEMA, **data}, indent=1, allow_nan=False)
    replace_file(path, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write to a temporary neighbour, sync, rename."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with disk_errors(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of ours.

    Raises:
        ExperimentError: if it is missing, damaged, or written by a newer release.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ExperimentError(f"{path} does not exist. Run the step that writes it first.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExperimentError(f"{path} cannot be read: {error}. Delete it and repeat the step that wrote it.") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise ExperimentError(f"{path} is not a file of this program. Delete it and repeat the step that wrote it.")
    if data["schema"] > SCHEMA:
        raise ExperimentError(
            f"{path} has schema {data['schema']}, this release reads up to {SCHEMA}. Update the program to open it."
        )
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


@contextmanager
def disk_errors(target: Path, needed_bytes: int) -> Iterator[None]:
    """Turn a full or read-only disk into a message with the space needed and free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExperimentError(full_disk_message(target, needed_bytes)) from None
        if error.errno in UNWRITABLE:
            raise ExperimentError(
                f"{target} cannot be written: {error.strerror}. Choose another place, or give yourself the right "
                "to write there."
            ) from None
        raise


def full_disk_message(target: Path, needed_bytes: int) -> str:
    return (
        f"No space left for {target}: {needed_bytes / 2**20:,.1f} MiB needed, {free_bytes(target) / 2**20:,.1f} MiB "
        "free. Nothing was changed. Make space, or set SWM_HOME to a folder on another disk, and start again."
    )


def content_hash(folder: Path, patterns: Iterable[str]) -> str:
    """SHA-256 of the files of a folder that match, by name and content: the same files give the same hash anywhere."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def check_space(target: Path, needed_bytes: int) -> None:
    """Raise ExperimentError before a long stage when its result cannot fit on the disk."""
    if free_bytes(target) < needed_bytes:
        raise ExperimentError(full_disk_message(target, needed_bytes))


def free_bytes(target: Path) -> int:
    """Free space of the disk that holds `target` or its nearest existing parent."""
    existing = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder that takes the place of `folder` when the block ends well; else it is removed."""
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    old = folder.with_name(f".{folder.name}.old.{uuid.uuid4().hex}")
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(folder)
