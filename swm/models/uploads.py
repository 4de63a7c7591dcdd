"""Model files that came through the browser, kept under the studio's home. No torch."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from swm.disk.files import check_space, demo_experiment, disk_errors, home, matching, neighbour
from swm.disk.names import check_name, read_only_message
from swm.errors import ExperimentError, ModelError
from swm.models.known import BUNDLED

SUFFIXES = ("gguf", "json", "safetensors", "model", "txt", "jinja")  # weights in formats that cannot run code, and text
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


def uploads_folder() -> Path:
    """The folder of uploaded models."""
    return home() / "uploads"


def uploaded_models() -> list[str]:
    """Paths of the uploaded models, sorted: folders and .gguf files."""
    found = (*matching(uploads_folder(), "[a-z0-9]*/config.json"), *matching(uploads_folder(), "[a-z0-9]*/*.gguf"))
    return sorted(str(file if file.suffix == ".gguf" else file.parent) for file in found)


def keep_upload(name: str, files: Mapping[str, BinaryIO]) -> Path:
    """Path of a new model from uploaded files: a folder with all of them, or the one .gguf file in it.

    Args:
        name: of the folder. files: their content by file name, each open at its beginning.

    Raises:
        ExperimentError: if the name cannot be used, in a read-only demo, or if the disk is full.
        ModelError: if it is taken, a file's name or type is not allowed, or the files are no model.
    """
    folder = uploads_folder() / check_name(name)
    if demo_experiment():
        raise ExperimentError(read_only_message(name))
    for file in files:
        if not FILE.fullmatch(file) or file.rpartition(".")[2] not in SUFFIXES:
            raise ModelError(f"Cannot take '{file[:80]}': upload files that end in {', '.join(SUFFIXES)}.")
    models = [file for file in files if file.endswith(".gguf")]
    whole = "config.json" in files and any(file.endswith(".safetensors") for file in files)
    if not (whole or (len(models) == 1 and len(files) == 1)):
        raise ModelError(
            "These files are not a model. Upload one .gguf file, or all files of a Hugging Face folder: config.json, "
            "the .safetensors files and those of the tokenizer."
        )
    if folder.exists():
        raise ModelError(f"{folder} already exists. Choose another name.")
    size = sum(content.seek(0, 2) for content in files.values())
    unfinished = neighbour(folder, "new")
    with disk_errors(folder, size):
        unfinished.mkdir(parents=True)
        check_space(folder, size)
        try:
            for file, content in files.items():
                content.seek(0)
                with (unfinished / file).open("wb") as kept:
                    shutil.copyfileobj(content, kept)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder / models[0] if models else folder


def models_here(used: Iterable[str] = ()) -> dict[str, str]:
    """Names to load a model by, with what each is: bundled, used before and still there, uploaded, or in the hub's
    cache.

    Args:
        used: names of models of existing experiments.
    """
    bundled = {name: model.title for name, model in BUNDLED.items() if importlib.util.find_spec(model.package)}
    paths = {name: _kind(Path(name)) for name in used if name not in BUNDLED and Path(name).exists()}
    uploaded = dict.fromkeys(uploaded_models(), "uploaded")
    return {**bundled, **paths, **uploaded, **dict.fromkeys(_cached(), "downloaded from the hub")}


def _kind(path: Path) -> str:
    return "GGUF file used before" if path.is_file() else "folder used before"


def _cached() -> list[str]:
    """Ids of the models in the hub's cache that have a config and safetensors weights."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):  # no cache, or one that cannot be read
        return []
    found = []
    for repo in repos:
        files = {file.file_name for revision in repo.revisions for file in revision.files}
        if repo.repo_type == "model" and "config.json" in files and any(f.endswith(".safetensors") for f in files):
            found.append(repo.repo_id)
    return sorted(found)
