"""Models that are already on this machine, for pickers. No torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from swm.models.known import BUNDLED
from swm.models.uploads import uploaded_models


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
