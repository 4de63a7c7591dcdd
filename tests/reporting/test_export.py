"""Tests of swm.reporting.export."""

import time

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

from swm.errors import Cancelled, ExperimentError, JobError
from swm.jobs.child import start
from swm.jobs.tracking import tracked
from swm.plan import MergePlan, Window
from swm.reporting.export import export_run
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run
from tests.conftest import tiny_model
from tests.pages.test_pages import opened

FORMATS = {"transformers": "", "gguf": ".gguf"}


@pytest.fixture
def merged(model_folder, text_file):
    experiment = create_experiment("mine", ExperimentSettings(str(model_folder), str(text_file), 2, 16))
    run = experiment.create_run("a", MergePlan(experiment.layer_count, (Window(1, 2),)))
    merge_run(run)
    return run


def wait_for_the_end(run):
    end = time.monotonic() + 60
    while run.state().active and time.monotonic() < end:
        time.sleep(0.1)


def test_export_refuses_a_folder_that_exists(experiment, tmp_path):
    run = experiment.run("first")
    run.model_folder.mkdir()
    (run.model_folder / "config.json").write_text("{}")
    with pytest.raises(ExperimentError, match="already exists"):
        export_run(run, tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_is_cancelled_leaves_nothing(form, merged, tmp_path):
    def cancel(done, total, text):
        raise Cancelled

    place = tmp_path / "out"
    place.mkdir()
    with pytest.raises(Cancelled):
        export_run(merged, place / f"model{FORMATS[form]}", form, progress=cancel)
    assert list(place.iterdir()) == []


def test_while_a_job_changes_the_run_it_is_not_exported(merged, tmp_path, swm):
    with tracked(merged, "recover"):
        assert swm("export", "mine", "a", tmp_path / "out")[0] == 1
        assert swm("export", "mine", "a", tmp_path / "recipe.json", "--format", "recipe")[0] == 0  # no weights
    assert not (tmp_path / "out").exists()
    with pytest.raises(JobError, match="job running"), tracked(merged, "recover"):
        start(merged, "export", [])


def test_an_export_from_the_page_is_a_job_that_ends_with_its_path(merged, home, tokens):
    test = opened("pages/run.py", experiment="mine", run="a")
    (button,) = [button for button in test.button if button.label == "Transformers folder"]
    button.click().run()
    assert not test.exception
    wait_for_the_end(merged)
    assert (merged.state().stage, merged.state().status) == ("export", "done")
    path = home / "exports" / "mine-a"
    for page in ("pages/run.py", "pages/report.py"):
        assert str(path) in [code.value for code in opened(page, experiment="mine", run="a").code]
    written, kept = (AutoModelForCausalLM.from_pretrained(folder) for folder in (path, merged.model_folder))
    assert torch.equal(written(tokens).logits, kept(tokens).logits)


def test_an_export_from_the_page_can_leave_out_attention(merged, home):
    test = opened("pages/run.py", experiment="mine", run="a")
    test.number_input(key="run_export_attention_a").set_value(1).run()
    (button,) = [button for button in test.button if button.label == "GGUF file"]
    button.click().run()
    assert not test.exception
    wait_for_the_end(merged)
    assert merged.state().status == "done", merged.state().error
    assert "Without attention in layers" in (home / "exports" / "mine-a.md").read_text()


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_never_takes_the_place_of_another(form, merged, tmp_path):
    """A file that appears while the export writes stays, and so do those beside it."""
    path, ready = tmp_path / f"model{FORMATS[form]}", []

    def appear(done, total, text):
        if not ready:
            ready.append(path)
            path.write_text("mine")

    with pytest.raises(ExperimentError, match="already exists"):
        export_run(merged, path, form, progress=appear)
    assert path.read_text() == "mine"
    assert [file.name for file in tmp_path.glob("*model*")] == [path.name]


def test_a_card_that_appears_meanwhile_stays(merged, tmp_path):
    card = tmp_path / "model.md"
    with pytest.raises(ExperimentError, match="already exists"):
        export_run(merged, tmp_path / "model.gguf", progress=lambda done, total, text: card.write_text("mine"))
    assert [file.name for file in tmp_path.glob("*model*")] == [card.name]
    assert card.read_text() == "mine"


def test_while_a_study_works_on_all_runs_none_is_exported(merged, tmp_path, swm):
    with tracked(merged.experiment, "study"):
        code, _, error = swm("export", "mine", "a", tmp_path / "out")
    assert (code, "has a job running (study)" in error) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["taken"], "already exists"),
        (["new.gguf", "--type", "Q9"], "Q9"),
        (["new.json", "--format", "recipe", "--without-attention", 1], "is for GGUF files"),
        (["new.gguf", "--without-attention", 9], "out of range"),
    ],
)
def test_a_mistaken_export_leaves_the_state_of_the_last_stage(options, said, merged, tmp_path, swm):
    with tracked(merged, "evaluate"):
        pass
    (tmp_path / "taken").mkdir()
    code, _, error = swm("export", "mine", "a", tmp_path / options[0], *options[1:])
    assert (code, said in error) == (1, True), error
    assert (merged.state().stage, merged.state().status) == ("evaluate", "done")


def test_an_exported_folder_has_all_chat_templates(merged, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(merged.model_folder)
    tokenizer.chat_template = {"default": "{{ one }}", "tool_use": "{{ two }}"}
    tokenizer.save_pretrained(merged.model_folder)
    export_run(merged, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_the_exports_folder_that_cannot_be_made_is_reported(merged, home):
    (home / "exports").write_text("in the way")
    test = opened("pages/run.py", experiment="mine", run="a")
    (button,) = [button for button in test.button if button.label == "Transformers folder"]
    button.click().run()
    assert not test.exception
    assert test.error


def test_the_report_names_a_second_export_anew(merged, home):
    (home / "exports").mkdir()
    (home / "exports" / "mine-a.gguf").write_text("the first")
    test = opened("pages/report.py", experiment="mine")
    (button,) = [button for button in test.button if button.label == "GGUF file of a"]
    button.click().run()
    wait_for_the_end(merged)
    assert merged.state().status == "done", merged.state().error
    assert (home / "exports" / "mine-a-2.gguf").is_file()
    assert (home / "exports" / "mine-a.gguf").read_text() == "the first"


@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_the_modelfile_asks_for_no_longer_context_than_the_file_names(family, text_file, tokenizer, tmp_path):
    """Beyond it, llama.cpp would compute otherwise: Mistral's window, and Phi-3's stretched positions."""
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 64}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    stretched = {"rope_parameters": rope, "original_max_position_embeddings": 64}
    changes = {"sliding_window": 64} if family == "mistral" else stretched
    model = tiny_model(family, head_dim=8, **changes)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    experiment = create_experiment("mine", ExperimentSettings(str(tmp_path / "model"), str(text_file), 2, 16))
    run = experiment.create_run("a", MergePlan(4, (Window(1, 2),)))
    merge_run(run)
    export_run(run, tmp_path / "out.gguf")
    arch = {"mistral": "llama"}.get(family, family)
    assert GGUFReader(tmp_path / "out.gguf").fields[f"{arch}.context_length"].contents() == 64
    assert "PARAMETER num_ctx 64\n" in (tmp_path / "out.Modelfile").read_text()
