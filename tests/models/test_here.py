"""Models on this machine, in a cache with the hub's layout."""

import json

import pytest
from huggingface_hub import constants

from swm.errors import ModelError
from swm.models.known import BUNDLED
from swm.models.load import config_facts, load_model
from swm.models.uploads import models_here


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache of the test's own."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(cache, name, files, kind="model"):
    """A repository in the cache with these files."""
    repo, commit = cache / f"{kind}s--{name.replace('/', '--')}", "a" * 40
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)
    return snapshot


def test_models_used_or_downloaded_before_are_found(cache, tmp_path, model_folder):
    weights = (model_folder / "model.safetensors").read_bytes()
    config = (model_folder / "config.json").read_bytes()
    cached(cache, "org/whole", {"config.json": config, "model.safetensors": weights})
    cached(cache, "org/config-only", {"config.json": config})
    cached(cache, "org/data", {"config.json": b"{}", "a.safetensors": b"x"}, "dataset")
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    here = models_here([str(model_folder), str(gguf), str(tmp_path / "gone"), "org/whole", "smollm2-135m"])
    here.pop("smollm2-135m", None)  # bundled, where its package is installed
    assert here == {
        str(model_folder): "folder used before",
        str(gguf): "GGUF file used before",
        "org/whole": "downloaded from the hub",
    }


def test_a_cache_that_is_not_there_or_broken_has_no_models(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "none", tmp_path / "file"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place))
        assert set(models_here()) <= {"smollm2-135m"}


def test_facts_of_a_hub_model_need_its_config_alone(cache, model_folder, monkeypatch):
    """Tests run offline, so files that are not in the cache are missing."""
    config = json.loads((model_folder / "config.json").read_text())
    cached(cache, "org/config-only", {"config.json": json.dumps({**config, "num_hidden_layers": 7}).encode()})
    assert config_facts("org/config-only")["layers"] == 7
    with pytest.raises(ModelError):
        load_model("org/config-only")


@pytest.mark.bundled
def test_facts_of_a_gguf_file_convert_nothing(home):
    assert not (home / "models").exists()
    for dtype in ("auto", "bfloat16"):
        facts = config_facts("smollm2-135m", dtype)
        known = {**BUNDLED["smollm2-135m"].facts, "dtype": facts["dtype"], "size_bytes": facts["size_bytes"]}
        known["cache_bytes_per_token"] = 2 * 3 * 64 * (2 if dtype == "bfloat16" else 4)  # 3 key-value heads of 64
        assert facts == known
        assert facts["size_bytes"] == facts["parameters"] * (2 if dtype == "bfloat16" else 4)
    assert not (home / "models").exists()
