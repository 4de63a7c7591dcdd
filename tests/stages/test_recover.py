"""Healing again: what is there is kept until the new healing can begin."""

import pytest

from swm.errors import ModelError
from swm.plan import MergePlan, Window
from swm.settings import ExperimentSettings, preset_settings
from swm.stages import recover
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run
from swm.stages.recover import recover_run


def test_a_model_that_cannot_be_loaded_loses_no_earlier_healing(model_folder, text_file, monkeypatch):
    study = create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 4, 16))
    run = study.create_run("one", MergePlan(4, (Window(1, 2),)))
    merge_run(run)
    small = {"steps": 2, "batch": 1, "length": 16, "held_out": 1, "save_every": 1, "texts": str(text_file)}
    recover_run(run, preset_settings("quick", **small))
    settings, events = run.settings, run.events()
    files = sorted(run.folder.rglob("*"))

    def fails(*arguments, **more):
        raise ModelError("Not enough memory.")

    monkeypatch.setattr(recover, "load_original", fails)
    with pytest.raises(ModelError, match="Not enough memory"):
        recover_run(run, preset_settings("quick", **{**small, "steps": 3}))
    assert (run.settings, run.events()) == (settings, events)
    assert sorted(run.folder.rglob("*")) == files
