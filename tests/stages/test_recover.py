"""Healing again: what is there is kept until the new healing can begin."""

import json

import pytest
import torch
from safetensors.torch import load_file

from swm.errors import Cancelled, ModelError
from swm.plan import MergePlan, Window
from swm.settings import ExperimentSettings, preset_settings
from swm.stages import healing_start, recover
from swm.stages.create import create_experiment
from swm.stages.loading import load_run
from swm.stages.merge import merge_run
from swm.stages.recover import recover_run
from swm.workspace.training_memory import four_bit_bytes
from tests.conftest import tiny_model


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

    monkeypatch.setattr(healing_start, "load_original", fails)
    with pytest.raises(ModelError, match="Not enough memory"):
        recover_run(run, preset_settings("quick", **{**small, "steps": 3}))
    assert (run.settings, run.events()) == (settings, events)
    assert sorted(run.folder.rglob("*")) == files


def test_answers_too_short_to_fit_layers_on_are_trained_on_alone(model_folder, text_file, tmp_path):
    """Twelve pairs are twelve sequences of a training on responses, but too few packed ones for the repair."""
    study = create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 4, 16))
    run = study.create_run("one", MergePlan(4, (Window(1, 2),)))
    merge_run(run)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"{n}", "response": f"{n}"}) + "\n" for n in range(12)))
    small = {"steps": 2, "batch": 2, "length": 32, "held_out": 8, "save_every": 1, "texts": str(pairs)}
    summary = recover_run(run, preset_settings("quick", loss_on="response", **small))
    assert summary["repaired"].startswith("none: The recovery text is too short")
    assert run.stage == "recovered"


@pytest.fixture
def quantizable(tmp_path, tokenizer, text_file):
    """A merged run of a tiny Llama whose maps have rows of 64 numbers, as four-bit blocks need."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "wide"
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    study = create_experiment("study", ExperimentSettings(str(folder), str(text_file), 4, 16))
    run = study.create_run("one", MergePlan(4, (Window(1, 2),)))
    merge_run(run)
    return run


def qlora(text_file, **changes):
    small = {"steps": 4, "batch": 1, "length": 16, "held_out": 1, "save_every": 2, "texts": str(text_file)}
    return preset_settings("qlora", **{**small, **changes})


def test_in_four_bits_a_merged_model_is_healed_without_the_original_in_memory(quantizable, text_file, monkeypatch):
    run = quantizable
    before = load_file(run.model_folder / "model.safetensors")
    monkeypatch.setattr(recover, "load_original", None)  # calling it would fail
    summary = recover_run(run, qlora(text_file, repair="none"))
    after = load_file(run.model_folder / "model.safetensors")
    assert run.stage == "recovered"
    assert summary["repaired"] == "none"
    assert summary["quantized_bytes"] == pytest.approx(four_bit_bytes(run.experiment.model_facts, 3), rel=0.02)
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) == 3 * 7  # each linear map
    model, _ = load_run(run)
    assert not model.training
    assert not (run.folder / "recovery" / "base").exists()


def test_a_fitted_model_is_kept_for_the_resume_in_four_bits(quantizable, text_file, monkeypatch):
    run, settings = quantizable, qlora(text_file, repair="fit")

    def stopped(done, total, text):
        if text.startswith("loss") and done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        recover_run(run, settings, stopped)
    base = run.folder / "recovery" / "base"
    assert (base / "config.json").is_file()
    merged = load_file(run.model_folder / "model.safetensors")
    fitted = load_file(base / "model.safetensors")
    assert sum(not torch.equal(merged[name], fitted[name]) for name in merged) >= 1  # the repair's own change
    monkeypatch.setattr(recover, "load_original", None)
    assert recover_run(run, settings)["repaired"] == "fit"
    assert [event["step"] for event in run.events() if "loss" in event] == [1, 2, 3, 4]
    assert not base.exists()
    monkeypatch.undo()
    assert recover_run(run, qlora(text_file, repair="none", steps=2))["repaired"] == "none"  # again, from the plan
    plain = load_file(run.model_folder / "model.safetensors")
    deltas = sum(not torch.equal(plain[name], merged[name]) for name in merged)
    assert deltas == 3 * 7
