"""Tests of swm.reporting.export."""

import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from swm.errors import Cancelled, ExperimentError, JobError
from swm.jobs.child import start
from swm.jobs.tracking import tracked
from swm.plan import MergePlan, Window
from swm.reporting.export import export_run
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run
from tests.pages.test_pages import opened

FORMATS = {"transformers": "", "gguf": ".gguf"}


@pytest.fixture
def merged(model_folder, text_file):
    experiment = create_experiment("mine", ExperimentSettings(str(model_folder), str(text_file), 2, 16))
    run = experiment.create_run("a", MergePlan(experiment.layer_count, (Window(1, 2),)))
    merge_run(run)
    return run


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
    end = time.monotonic() + 60
    while merged.state().active and time.monotonic() < end:
        time.sleep(0.1)
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
    end = time.monotonic() + 60
    while merged.state().active and time.monotonic() < end:
        time.sleep(0.1)
    assert merged.state().status == "done", merged.state().error
    assert "Without attention in layers" in (home / "exports" / "mine-a.md").read_text()
