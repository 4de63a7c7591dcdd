"""A run as a GGUF file with what stands beside it: all of it or nothing."""

import json
import shutil

import pytest
from gguf import GGUFReader

from swm.plan import MergePlan, Window
from swm.reporting.formats.gguf import modelfile_of
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run
from tests.conftest import tiny_model
from tests.llama_cpp.conftest import byte_level_tokenizer

CHATML = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def run(tmp_path, text_file):
    """A merged run of a tiny model whose tokenizer llama.cpp knows."""
    folder = tmp_path / "tiny"
    tiny_model(vocab_size=500).save_pretrained(folder)
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    study = create_experiment("study", ExperimentSettings(str(folder), str(text_file), 3, 32))
    run = study.create_run("first", MergePlan(4, (Window(1, 2),)))
    merge_run(run)
    return run


def test_a_run_is_written_with_modelfile_and_card(run, swm, tmp_path):
    code, out, _ = swm("export", "study", "first", tmp_path / "out" / "small.gguf", "--type", "Q8_0")
    assert (code, out.strip()) == (0, f"Exported to {tmp_path / 'out' / 'small.gguf'}")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["small.Modelfile", "small.gguf", "small.md"]
    reader = GGUFReader(tmp_path / "out" / "small.gguf")
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert said["general.name"] == "tiny-3-layers"
    assert said["llama.block_count"] == 3
    assert "windows 1-2 merged by rule rdsc" in said["general.description"]
    assert said["general.base_model.0.name"] == "tiny"
    assert said["tokenizer.chat_template"] == CHATML
    card = (tmp_path / "out" / "small.md").read_text()
    assert "Tensors by number format: 7 in F32, 23 in Q8_0." in card
    modelfile = (tmp_path / "out" / "small.Modelfile").read_text()
    assert modelfile.splitlines()[0] == "FROM ./small.gguf"
    assert "<|im_start|>{{ .Role }}" in modelfile
    assert 'PARAMETER num_ctx 512\nPARAMETER stop "<end>"\nPARAMETER stop "<|im_end|>"\n' in modelfile


def test_without_a_known_chat_format_the_modelfile_has_no_template(run):
    (run.model_folder / "chat_template.jinja").write_text("{{ messages }}")
    assert modelfile_of(run, "x.gguf") == 'FROM ./x.gguf\nPARAMETER num_ctx 512\nPARAMETER stop "<end>"\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small.gguf", "--type", "Q4_K_M"], "Format gguf cannot be written in type Q4_K_M. Choose one of: F16, Q8_0"),
        (["folder", "--type", "F16"], "Format transformers cannot be written in type F16. Leave --type out."),
        (["taken.gguf"], "taken.md already exists. Choose another name."),
        (["small.md", "--format", "gguf"], "small.md must end in .gguf. Name another file."),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(run, swm, tmp_path, arguments, message):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "taken.md").write_text("mine")
    code, _, err = swm("export", "study", "first", folder / arguments[0], *arguments[1:])
    assert code == 1
    assert message in err
    assert [file.name for file in folder.iterdir()] == ["taken.md"]


def test_a_failure_at_the_end_leaves_nothing(run, swm, tmp_path, monkeypatch):
    monkeypatch.setattr("swm.reporting.formats.gguf.model_card", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        swm("export", "study", "first", tmp_path / "out" / "small.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_nothing(run, swm, small_disk, monkeypatch):
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 60_000))
    for known in (True, False):  # known before it begins, and met while it writes
        if not known:
            monkeypatch.setattr("swm.disk.files.free_bytes", lambda target: 10**9)
        code, _, err = swm("export", "study", "first", small_disk / "small.gguf", "--type", "F32")
        assert code == 1
        assert "No space left" in err
        assert [file.name for file in small_disk.iterdir()] == ["filler"]


def test_a_family_that_llama_cpp_does_not_know_is_refused(run, swm, tmp_path):
    config = json.loads((run.model_folder / "config.json").read_text())
    (run.model_folder / "config.json").write_text(json.dumps({**config, "model_type": "opt"}))
    code, _, err = swm("export", "study", "first", tmp_path / "small.gguf")
    assert code == 1
    assert "Models of type opt cannot be written as GGUF here. These can: llama, mistral" in err
    assert list(tmp_path.glob("small*")) == []
