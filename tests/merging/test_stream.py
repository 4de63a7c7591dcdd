"""Merging from disk to disk: the same bits as in memory, for every family and rule, in shards, and little memory."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from swm.errors import ExperimentError, ModelError, PlanError, SettingsError
from swm.merging.apply import apply_plan
from swm.merging.stream import stream_merge
from swm.models.load import load_model, save_model
from swm.plan import MergePlan, WidthCut, Window
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run
from tests.conftest import WEIGHT_RULES, in_pairs, tiny_model
from tests.product.test_families import FAMILIES, LAYERS, made

PLAN = MergePlan(LAYERS, (Window(0, 1), Window(3, 4)))
OTHER_FORM = ("qwen3_moe", "mixtral", "gpt_neox")  # files with each expert by itself, or the head by another name


def tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            found.update({name: weights.get_tensor(name) for name in weights.keys()})  # noqa: SIM118
    return found


def same(folder, other):
    ours, theirs = tensors(folder), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name
    config, expected = (json.loads((f / "config.json").read_text()) for f in (folder, other))
    assert config == expected


def saved(model, tokenizer, folder, **options):
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder


@in_pairs(("family", "rule"), FAMILIES, WEIGHT_RULES)
def test_the_same_bits_as_in_memory(family, rule, tokenizer, tmp_path):
    source = saved(made(family), tokenizer, tmp_path / "source")
    plan = MergePlan(LAYERS, PLAN.windows, rule)
    if family in OTHER_FORM:
        with pytest.raises(ModelError, match="can only be merged in memory"):
            stream_merge(str(source), plan, tmp_path / "streamed")
        return
    told = []
    facts = stream_merge(
        str(source), plan, tmp_path / "streamed", on_bytes=lambda done, total: told.append((done, total))
    )
    model, own = load_model(str(source))
    save_model(apply_plan(model, plan), own, tmp_path / "memory")
    same(tmp_path / "streamed", tmp_path / "memory")
    assert told[-1] == (facts["size_bytes"], facts["size_bytes"])
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed")
    assert sum(p.numel() for p in reloaded.parameters()) == facts["parameters"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [Window(1, 2), Window(0, 3)])
def test_shards_and_half_precision(dtype, window, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("swm.merging.stream.SHARD_BYTES", 40_000)
    model = tiny_model(layers=LAYERS, tie_word_embeddings=True).to(dtype)
    source = saved(model, tokenizer, tmp_path / "source", max_shard_size="30KB")
    plan = MergePlan(LAYERS, (window,))
    stream_merge(str(source), plan, tmp_path / "streamed")
    assert len(list((tmp_path / "streamed").glob("*.safetensors"))) > 1
    loaded, own = load_model(str(source))
    assert loaded.dtype == dtype
    save_model(apply_plan(loaded, plan), own, tmp_path / "memory")
    same(tmp_path / "streamed", tmp_path / "memory")


def test_what_cannot_be_streamed_is_refused_and_leaves_nothing(model_folder, text_file, tmp_path):
    target = tmp_path / "streamed"
    with pytest.raises(PlanError):
        stream_merge(str(model_folder), MergePlan(5, (Window(1, 2),)), target)
    file = model_folder / "model.safetensors"
    content = file.read_bytes()
    for cut in (4, 100, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(ModelError, match="damaged"):
            stream_merge(str(model_folder), MergePlan(4, (Window(1, 2),)), target)
    file.write_bytes(content)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_merge(str(model_folder), MergePlan(4, (Window(1, 2),)), target, on_bytes=stop)
    assert not target.exists()
    assert not [path for path in tmp_path.iterdir() if "streamed" in path.name]
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    run = experiment.create_run("narrow", MergePlan(4, (Window(1, 2),), width=WidthCut(0.2)))
    with pytest.raises(SettingsError, match="--stream works layer by layer"):
        merge_run(run, stream=True)


def test_another_number_format_than_the_files_have_is_merged_in_memory(model_folder, text_file, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="the merge is in bfloat16, which is only possible in memory"):
        stream_merge(str(model_folder), MergePlan(4, (Window(1, 2),)), tmp_path / "streamed", "bfloat16")
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 3, 32, dtype="bfloat16"))
    run = experiment.create_run("first", MergePlan(4, (Window(1, 2),)))
    with pytest.raises(ModelError, match="--stream"):
        merge_run(run, stream=True)
    monkeypatch.setattr("swm.stages.merge.free_memory_bytes", lambda: 1000)
    merge_run(run)  # nobody asked for the stream: in memory, where it can be
    assert {tensor.dtype for tensor in tensors(run.model_folder).values()} == {torch.bfloat16}


def test_a_generation_config_that_cannot_be_saved_as_it_is_does_not_stop_a_merge(model_folder, text_file):
    (model_folder / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6}))
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    for name, stream in (("memory", False), ("stream", True)):
        run = experiment.create_run(name, MergePlan(4, (Window(1, 2),)))
        merge_run(run, stream=stream)
        saved_as = json.loads((run.model_folder / "generation_config.json").read_text())
        assert (saved_as["temperature"], saved_as["do_sample"]) == (0.9, True)


def test_a_full_disk_is_told_and_leaves_nothing(model_folder, small_disk):
    (small_disk / "ballast").write_bytes(b"x" * (2**20 - 2**17))
    with pytest.raises(ExperimentError, match="MiB needed"):
        stream_merge(str(model_folder), MergePlan(4, (Window(1, 2),)), small_disk / "streamed")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_the_stage_streams_when_asked_or_when_memory_would_not_do(model_folder, text_file, monkeypatch):
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    runs = [experiment.create_run(name, MergePlan(4, (Window(1, 2),))) for name in ("plain", "asked", "small")]
    merge_run(runs[0])
    merge_run(runs[1], stream=True)
    monkeypatch.setattr("swm.stages.merge.free_memory_bytes", lambda: 1000)
    monkeypatch.setattr("swm.stages.loading.load_model", lambda *_: pytest.fail("it was loaded"))
    merge_run(runs[2])
    for run in runs[1:]:
        same(run.model_folder, runs[0].model_folder)
        merged, expected = ({**one.settings["merge"], "seconds": 0} for one in (run, runs[0]))
        assert merged == expected
        assert "pending" not in run.settings


def test_fitted_layers_are_streamed_as_they_are_saved_from_memory(model_folder, text_file):
    experiment = create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    runs = [experiment.create_run(name, MergePlan(4, (Window(1, 2),), "fit")) for name in ("plain", "asked")]
    merge_run(runs[0])
    merge_run(runs[1], stream=True)
    same(runs[1].model_folder, runs[0].model_folder)
    assert runs[1].settings["merge"] | {"seconds": 0} == runs[0].settings["merge"] | {"seconds": 0}


PEAK = """
import resource, sys
from pathlib import Path
from swm.plan import MergePlan, Window
from swm.merging.stream import stream_merge
stream_merge(sys.argv[1], MergePlan(2, (Window(0, 1),)), Path(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream_merge(sys.argv[3], MergePlan(24, (Window(10, 12),)), Path(sys.argv[4]))
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.apart
@pytest.mark.cold
def test_memory_is_that_of_a_few_layers(tokenizer, tmp_path):
    size = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 300}
    small = saved(tiny_model(layers=2), tokenizer, tmp_path / "small")
    large_model = tiny_model(layers=24, **size)
    layer = 4 * sum(p.numel() for p in large_model.model.layers[0].parameters())
    large = saved(large_model, tokenizer, tmp_path / "large")
    arguments = [small, tmp_path / "a", large, tmp_path / "b"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) < 6 * layer  # the model has 24


def test_a_disk_that_fails_while_layers_are_still_written_is_told(model_folder, tmp_path, monkeypatch):
    told, fsync = [], os.fsync

    def once(handle):
        if threading.current_thread() is not threading.main_thread() and not told:
            told.append(handle)
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    def slow(done, total):
        time.sleep(0.03)

    monkeypatch.setattr("os.fsync", once)
    with pytest.raises(ExperimentError, match="No space left"):
        stream_merge(str(model_folder), MergePlan(4, (Window(1, 2),)), tmp_path / "out", on_bytes=slow)
    assert told
    assert not (tmp_path / "out").exists()
