"""Where things lie on disk, and how they are written: a crash leaves the old or the new file, never half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swm.errors import ExperimentError, first_line

SCHEMA = 1
SOURCES = Path(__file__).parents[2]
APP_FOLDER = SOURCES if (SOURCES / "app.py").is_file() else SOURCES / "swm" / "app_files"  # app.py, pages/, assets/
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.(?P<kind>tmp|new|old|gone)")
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG,
    errno.EINVAL,
)  # fmt: skip


def home() -> Path:
    """Folder of everything the product keeps: `SWM_HOME`, by default `~/.swm`, in full. Read anew at each call.

    Raises:
        ExperimentError: if there is no such folder to be had.
    """
    named = os.environ.get("SWM_HOME", "")
    try:
        folder = Path(named or "~/.swm").expanduser().absolute()
        str(folder).encode()  # JSON and transformers write it
        folder.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, or nobody's home
        raise ExperimentError(
            f"Cannot use SWM_HOME '{named[:80]}' as the folder for results: "
            f"{getattr(error, 'strerror', None) or first_line(error)} Set SWM_HOME to a folder that you can write to."
        ) from None
    return folder


def whole_path(name: str) -> str:
    """A file or folder that exists by its full path, since jobs run elsewhere; any other name as it is."""
    try:
        path = Path(name).expanduser()
        return str(path.absolute()) if name.strip() and path.exists() else name
    except (OSError, RuntimeError, ValueError):  # it cannot be a path
        return name


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a process of ours that runs elsewhere: the same home, said in full."""
    return {**os.environ, "SWM_HOME": str(home()), **more}


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
    temporary = neighbour(path, "tmp")
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


def neighbour(path: Path, kind: str) -> Path:
    """A name beside `path` that nobody has: "tmp" a file and "new" a folder being written, "old" and "gone" folders."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{kind}")


def clean_up(folder: Path, older_than: float = 0.0) -> None:
    """Put right what a killed process left: what it had half written goes, a folder it was replacing comes back.

    To be called by whoever holds the lock on the folder's content. Temporary files are left alone for a minute, since
    small files are also written without that lock.

    Args:
        older_than: seconds for which nothing must have changed, where there is no lock.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        match = LEFTOVER.fullmatch(path.name)
        try:
            age = time.time() - path.stat().st_mtime if match else 0.0
            if not match or age < older_than or (match["kind"] == "tmp" and age < 60):
                continue
            target = folder / match["name"]
            if match["kind"] == "old" and not target.exists():
                path.rename(target)
            elif match["kind"] == "tmp":
                path.unlink()
            else:
                shutil.rmtree(path)
        except OSError:  # gone meanwhile, or a disk that cannot be written: the stage will tell
            continue


def set_aside(folder: Path) -> Path:
    """Take a folder out of sight in one step, to be removed at leisure; gives where it lies."""
    gone = neighbour(folder, "gone")
    with disk_errors(folder, 0):
        folder.rename(gone)
    return gone


def remove(folder: Path) -> None:
    """Remove a folder, or a link to one, whose content is not ours."""
    with disk_errors(folder, 0):
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)


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
        if is_full_disk(error):
            raise ExperimentError(full_disk_message(target, needed_bytes)) from None
        if error.errno in UNWRITABLE:
            raise ExperimentError(
                f"{target} cannot be written: {error.strerror}. Choose another place, or give yourself the right "
                "to write there."
            ) from None
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error of any library means that the disk is full; some tell it by their text alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error) for sign in ("No space left", "code: 28", "PytorchStreamWriter failed writing"))


def full_disk_message(target: Path, needed_bytes: int) -> str:
    """What to say when the disk is full: space needed, space free, and what to do."""
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
    """A new empty folder that takes the place of `folder` when the block ends well; else it is removed.

    Killed between its two renames, it leaves the former folder under another name: `clean_up` brings it back.
    """
    new, old = neighbour(folder, "new"), neighbour(folder, "old")
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
