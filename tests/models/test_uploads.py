"""Models that come through the browser: whole or not at all, no file type that can run code, no path but ours."""

import io

import pytest

from swm.errors import SwmError
from swm.models import uploads
from swm.models.uploads import keep_upload, models_here, uploaded_models, uploads_folder

WEIGHTS = {"config.json": b"{}", "model.safetensors": b"weights" * 99, "tokenizer.json": b"[]"}


def opened(files):
    return {name: io.BytesIO(content) for name, content in files.items()}


def test_a_folder_is_kept_byte_for_byte_and_offered(home):
    folder = keep_upload("mine", opened(WEIGHTS))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == WEIGHTS
    assert models_here()[str(folder)] == "uploaded"


def test_a_gguf_file_is_offered_as_a_file(home):
    path = keep_upload("small", opened({"Model-Q8_0.gguf": b"GGUF"}))
    assert (path.read_bytes(), uploaded_models()) == (b"GGUF", [str(path)])


def test_a_file_that_was_read_before_is_kept_whole(home):
    files = opened(WEIGHTS)
    files["model.safetensors"].read()
    assert (keep_upload("mine", files) / "model.safetensors").read_bytes() == WEIGHTS["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mine", {**WEIGHTS, "model.bin": b""}),
        ("mine", {**WEIGHTS, "modeling.py": b""}),
        ("mine", {**WEIGHTS, "../config.json": b""}),
        ("mine", {**WEIGHTS, ".hidden.json": b""}),
        ("mine", {**WEIGHTS, "a/b.json": b""}),
        ("../mine", WEIGHTS),
        ("Mine", WEIGHTS),
        ("mine", {"config.json": b"{}"}),
        ("mine", {"a.gguf": b"", "b.gguf": b""}),
        ("mine", {}),
    ],
)
def test_what_is_no_model_leaves_nothing(home, name, files):
    with pytest.raises(SwmError):
        keep_upload(name, opened(files))
    assert not uploads_folder().exists()


def test_a_demo_takes_nothing(home, monkeypatch):
    monkeypatch.setenv("SWM_DEMO", "example-demo")
    with pytest.raises(SwmError, match="read-only"):
        keep_upload("mine", opened(WEIGHTS))
    assert not uploads_folder().exists()


def test_a_name_is_taken_once(home):
    keep_upload("mine", opened(WEIGHTS))
    with pytest.raises(SwmError, match="already exists"):
        keep_upload("mine", opened(WEIGHTS))


def test_an_upload_that_breaks_off_leaves_nothing(home, monkeypatch):
    def broken(source, target):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads.shutil, "copyfileobj", broken)
    with pytest.raises(SwmError, match="disk"):
        keep_upload("mine", opened(WEIGHTS))
    assert list(uploads_folder().iterdir()) == []
    assert uploaded_models() == []
