"""Where things are on disk, and atomic writes: a crash leaves the old or the new file, never half of one."""

from __future__ import annotations

import errno
import glob
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

from swm.errors import ExperimentError, MissingError, first_line

SCHEMA = 1
SOURCES = Path(__file__).parents[2]
APP_FOLDER = SOURCES if (SOURCES / "app.py").is_file() else SOURCES / "swm" / "app_files"  # app.py, pages/, assets/
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.(?P<kind>tmp|new|old|gone)")
LOST = (errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN, getattr(errno, "EBADFD", None))
NUMBERS = re.compile(r"\[\n([^\[\]{}\"]*)\]")  # a list of numbers over several lines, in indented JSON
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG,
    errno.EINVAL,
)  # fmt: skip


def home() -> Path:
    """Absolute path of the folder for all saved data: `SWM_HOME`, by default `~/.swm`. Read again at each call.

    Raises:
        ExperimentError: if it cannot be used as a folder.
    """
    named = os.environ.get("SWM_HOME", "")
    try:
        folder = Path(named or "~/.swm").expanduser().absolute()
        str(folder).encode()  # JSON and transformers write it
        folder.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, or an unknown user's home
        if is_lost_disk(error):
            raise ExperimentError(lost_disk_message(named or "~/.swm", error)) from None
        raise ExperimentError(
            f"Cannot use SWM_HOME '{named[:80]}' as the folder for results: "
            f"{getattr(error, 'strerror', None) or first_line(error)} Set SWM_HOME to a folder that you can write to."
        ) from None
    return folder


def whole_path(name: str) -> str:
    """The absolute path of an existing file or folder, because jobs run elsewhere; any other name unchanged."""
    try:
        path = Path(name).expanduser()
        return str(path.absolute()) if name.strip() and path.exists() else name
    except (OSError, RuntimeError, ValueError):  # not a valid path
        return name


def demo_experiment() -> str:
    """The experiment of a read-only demo: `SWM_DEMO`; empty if it is not set."""
    return os.environ.get("SWM_DEMO", "")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write one JSON object so that readers see the old or the new file.

    Raises:
        ExperimentError: if the disk is full or the folder cannot be written.
    """
    text = json.dumps({"schema": SCHEMA, **data}, indent=1, allow_nan=False)
    text = NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
    replace_file(path, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file in the same folder, sync it, rename it to `path`."""
    with replaced_file(path, len(content)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replaced_file(path: Path, needed_bytes: int) -> Iterator[Path]:
    """The path of a temporary file beside `path`, which replaces it when the block has written it, and is synced.

    Raises:
        ExperimentError: if the disk is full or read-only; leaves nothing behind.
    """
    temporary = neighbour(path, "tmp")
    with disk_errors(path, needed_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def matching(folder: Path, pattern: str) -> list[Path]:
    """Files that match, as in "*/run.json"; `Path.glob` fails if another process deletes a folder meanwhile."""
    return [folder / name for name in glob.glob(pattern, root_dir=folder)]


def written_at(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 if there is none, also if it was deleted just now."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def check_absent(path: Path) -> None:
    """Raise ExperimentError if something has this name already."""
    with disk_errors(path, 0):
        exists = os.path.lexists(path)
    if exists:
        raise ExperimentError(f"{path} already exists. Choose another name.")


def neighbour(path: Path, kind: str) -> Path:
    """A unique name beside `path`; kind: "tmp" a file or "new" a folder being written, "old" or "gone" a folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{kind}")


def clean_up(folder: Path, older_than: float = 0.0) -> None:
    """Repair what a killed process left: delete half-written files, restore a folder that it was replacing.

    Only for the holder of the lock on the folder's content. Temporary files stay for a minute, because small files are
    also written without that lock.

    Args:
        older_than: seconds; entries changed more recently are left alone. For callers without a lock.
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
        except OSError:  # deleted meanwhile, or a read-only disk, which the stage will report
            continue


def set_aside(folder: Path) -> Path:
    """The new place of a folder, renamed out of sight in one step so that deleting it may take its time."""
    gone = neighbour(folder, "gone")
    with disk_errors(folder, 0):
        folder.rename(gone)
    return gone


def remove(folder: Path) -> None:
    """Delete a folder; of a link to a folder only the link, because the content is not ours."""
    with disk_errors(folder, 0):
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in one of our files.

    Raises:
        MissingError: if there is no such file.
        ExperimentError: if it is damaged, or written by a newer release.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist. Run the step that writes it first.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExperimentError(f"{path} cannot be read: {error}. Delete it and repeat the step that wrote it.") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise ExperimentError(f"{path} is not a file of this program. Delete it and repeat the step that wrote it.")
    if data["schema"] > SCHEMA:
        raise ExperimentError(
            f"{path} has schema {data['schema']}, but this release reads up to {SCHEMA}. Update the program to open it."
        )
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


@contextmanager
def disk_errors(target: Path, needed_bytes: int) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into messages for the user."""
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise ExperimentError(full_disk_message(target, needed_bytes)) from None
        if error.errno in UNWRITABLE:
            raise ExperimentError(
                f"{target} cannot be written: {error.strerror}. Choose another place, or change its permissions."
            ) from None
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, of any library, means that the disk is full; some say so only in their text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error) for sign in ("No space left", "code: 28", "PytorchStreamWriter failed writing"))


def is_lost_disk(error: BaseException) -> bool:
    """Whether an error says that a file system on another machine cannot be reached any more."""
    return isinstance(error, OSError) and error.errno in LOST


def lost_disk_message(place: object, error: BaseException) -> str:
    """The message for a file system that cannot be reached any more."""
    return (
        f"{place} cannot be reached any more: {getattr(error, 'strerror', error)}. Check the network and the machine "
        "that has the disk, and start again: finished work is kept."
    )


def full_disk_message(target: Path, needed_bytes: int) -> str:
    """The message for a full disk: space needed, space free, and what to do."""
    return (
        f"No space left for {target}: {needed_bytes / 2**20:,.1f} MiB needed, {free_bytes(target) / 2**20:,.1f} MiB "
        "free. Nothing was changed. Free some space, or set SWM_HOME to a folder on another disk, and start again."
    )


def content_hash(folder: Path, patterns: Iterable[str]) -> str:
    """SHA-256 over names and contents of a folder's matching files: equal files give equal hashes anywhere."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def check_space(target: Path, needed_bytes: int) -> None:
    """Raise ExperimentError if the result of a stage would not fit on the disk; called before the stage runs."""
    if free_bytes(target) < needed_bytes:
        raise ExperimentError(full_disk_message(target, needed_bytes))


def free_bytes(target: Path) -> int:
    """Free space of the disk that holds `target` or its nearest existing parent."""
    existing = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """A new folder in `place`, deleted after the block; if the process is killed, `clean_up` deletes it later."""
    folder = neighbour(place / "temporary", "new")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder that replaces `folder` when the block succeeds, and is deleted when it fails.

    If killed between the two renames, the old folder keeps its temporary name; `clean_up` restores it.
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
