"""What cannot be is refused before the work, with the reason; what would be lost or ignored is never so in silence."""

import json
import os
import random
import subprocess
import sys

import pytest
import torch

from swm.disk.files import home as home_folder
from swm.disk.names import list_names
from swm.errors import ModelError
from swm.evaluation.tasks import _is_named, _whole_index
from swm.models import locate
from swm.models.load import load_model
from swm.plan import MergePlan, Window
from swm.search.kept_path import kept_path, save_path
from swm.search.threshold_path import ThresholdPath
from swm.settings import ExperimentSettings
from swm.stages.recover import healing_seconds
from swm.workspace.experiments import Experiment
from swm.workspace.housekeeping import delete
from swm.workspace.runs import Run
from tests.conftest import tiny_model
from tests.models.test_layer_facts import GRIFFIN

SMALL = ("--steps", 2, "--batch", 2, "--length", 32, "--held-out", 2)
FALCON_H1 = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}


def saved(kind, folder, tokenizer, layers=4, **settings):
    tiny_model(kind, layers=layers, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def create(swm, text_file):
    def made(name, folder, *more):
        return swm("create", name, "--model", folder, "--texts", text_file, "--count", 3, "--length", 32, *more)

    return made


@pytest.fixture
def study(create, model_folder):
    assert create("mine", model_folder)[0] == 0
    return Experiment.open("mine")


# ---- asked for again ------------------------------------------------------------------------------------------------


def test_a_run_merged_with_the_same_settings_is_left_alone_and_that_is_said(swm, study):
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    file = study.run("a").model_folder / "model.safetensors"
    before = file.stat().st_mtime_ns
    code, out, _ = swm("merge", "mine", "a", "--windows", "1-2")
    assert (code, file.stat().st_mtime_ns) == (0, before)
    assert "already merged with these settings: nothing to do" in out
    assert swm("merge", "mine", "a", "--windows", "1-2", "--again")[0] == 0
    assert file.stat().st_mtime_ns > before


def test_a_run_asked_for_with_another_plan_names_each_setting_old_and_new(swm, study):
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    code, _, told = swm("merge", "mine", "a", "--windows", "0-1", "--rule", "mean")
    assert code == 1
    assert "windows: 1-2 (requested: 0-1); rule: rdsc (requested: mean)" in told
    assert "Pass --again to replace its model and results, or choose another run name" in told
    assert study.run("a").plan == MergePlan(4, (Window(1, 2),))
    assert swm("merge", "mine", "a", "--windows", "0-1", "--rule", "mean", "--again")[0] == 0
    assert study.run("a").plan == MergePlan(4, (Window(0, 1),), "mean")
    assert load_model(str(study.run("a").model_folder))[0].config.num_hidden_layers == 3


def test_healing_again_with_other_settings_is_refused_and_the_same_is_nothing_to_do(swm, study, text_file):
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    heal = ("recover", "mine", "a", "--texts", text_file, *SMALL)
    assert swm(*heal)[0] == 0
    run = study.run("a")
    weights = (run.model_folder / "model.safetensors").read_bytes()
    code, out, _ = swm(*heal)
    assert (code, "nothing to do" in out) == (0, True)
    code, _, told = swm(*heal, "--rank", 4)
    assert code == 1
    assert "rank: 16 (requested: 4)" in told
    assert (run.model_folder / "model.safetensors").read_bytes() == weights
    assert (run.folder / "recovery" / "adapter").is_dir()
    assert swm(*heal, "--rank", 4, "--again")[0] == 0
    assert run.settings["recovery"]["rank"] == 4


def test_a_finished_run_asked_for_otherwise_says_in_what(swm, study, text_file):
    run = study.create_run("a", MergePlan(4, (Window(1, 2),)))
    run.remember(merge={"parameters": 1, "size_bytes": 1})
    run.save("scores", {"tasks": {}, "perplexity": {}, "limit": 40})
    code, _, told = swm("run", "mine", "a", "--no-recovery", "--limit", 7)
    assert code == 1
    assert "limit: 40 (requested: 7)" in told


# ---- names and places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["example-demo", "example-study", "example-healing"])
def test_names_of_the_examples_are_taken(create, model_folder, name):
    code, _, told = create(name, model_folder)
    assert (code, "is the name of a bundled example" in told) == (1, True)


@pytest.mark.parametrize("name", ["demo", "study", "healing"])
def test_an_experiment_of_ones_own_hides_no_example(create, model_folder, name):
    assert Experiment.open(name).name == f"example-{name}"  # as links of before say it
    assert create(name, model_folder)[0] == 0
    assert Experiment.open(name).settings.count == 3
    assert {name, f"example-{name}"} <= set(list_names())
    assert Experiment.open(f"example-{name}").read_only


def test_old_experiments_and_runs_can_be_deleted(study):
    run = study.create_run("a", MergePlan(4, (Window(1, 2),)))
    for item in (run, study):
        os.utime(item.folder, (1, 1))  # 1970: as old as anything cleaning looks for
        delete(item)
        assert not item.folder.exists()
        assert not list(item.folder.parent.glob(".*.gone"))


def test_a_relative_home_is_the_same_for_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWM_HOME", "here")
    assert home_folder() == tmp_path / "here"
    from swm.jobs.child import call

    found = call(["list"])  # a child process that runs in another folder
    assert "experiments" in found
    from swm.workspace.people import child_environment

    assert child_environment()["SWM_HOME"] == str(tmp_path / "here")


@pytest.mark.parametrize("named", ["x" * 300, "~nobody-of-that-name/swm"])
def test_a_home_that_cannot_be_is_told(swm, monkeypatch, named):
    monkeypatch.setenv("SWM_HOME", named)
    code, _, told = swm("list")
    assert code == 1
    assert "as the folder for results" in told
    assert "Traceback" not in told


def test_an_ascii_terminal_gets_every_message(model_folder, text_file, home):
    command = [sys.executable, "-m", "swm", "models"]
    done = subprocess.run(
        command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "swm", "create", "é", "--model", str(model_folder)],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"is not a valid name" in done.stderr
    assert b"Traceback" not in done.stderr


def test_codes_for_the_terminal_and_html_in_a_name_do_nothing(swm, create, model_folder, tmp_path, text_file):
    evil = tmp_path / "\x1b[2J\x1b]0;owned\x07<img src=x onerror=alert(1)>"
    model_folder.rename(evil)
    assert create("mine", evil)[0] == 0
    _, out, err = swm("list")
    assert "\x1b" not in out + err
    assert "\\x1b[2J" in out
    _, _, err = swm("create", "other", "--model", f"{evil}-not")
    assert "\x1b" not in err
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    assert swm("export", "mine", "a", tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    body = card.split("---", 2)[2].partition("```\npython")[0]
    assert "<img" not in body
    assert "&lt;img" in body
    assert "\x1b" not in body


# ---- before the work ------------------------------------------------------------------------------------------------


UNUSUAL = {"falcon_h1": FALCON_H1, "mamba": {}, "openai-gpt": {"n_embd": 32, "n_head": 4}}


@pytest.mark.parametrize("kind", [pytest.param("falcon_h1", marks=pytest.mark.long), "mamba", "openai-gpt"])
def test_unusual_families_are_measured_merged_and_healed(swm, create, tokenizer, tmp_path, text_file, kind):
    assert create("mine", saved(kind, tmp_path / "model", tokenizer, **UNUSUAL[kind]))[0] == 0
    for command in (("measure", "mine"), ("merge", "mine", "a", "--windows", "1-2", "--rule", "keep_first")):
        code, _, told = swm(*command)
        assert code == 0, told
    code, _, told = swm("recover", "mine", "a", "--texts", text_file, *SMALL)
    assert code == 0, told
    if kind == "openai-gpt":  # it returns no cache
        code, _, told = swm("time", "mine", "a")
        assert (code, "returns no cache" in told) == (1, True)


def test_a_model_that_peft_cannot_adapt_is_told_before_anything_is_fitted(swm, study, text_file, monkeypatch):
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    monkeypatch.setattr("swm.healing.lora.linear_maps", lambda model, layers: ["no.such.module"])
    monkeypatch.setattr("swm.stages.healing_start._repaired", None)  # whoever fits has come too far
    code, _, told = swm("recover", "mine", "a", "--texts", text_file, *SMALL)
    assert code == 1
    assert "Cannot heal LlamaForCausalLM with LoRA" in told


FITTING = (
    ("search", "--rule", "fit"),
    ("plan", "--planner", "sleb", "--rule", "fit", "--layers", 3),
    ("merge", "a", "--windows", "1-2", "--rule", "fit"),
)


@pytest.mark.parametrize("command", FITTING)
def test_rule_fit_is_refused_at_once_where_layers_end_otherwise(swm, create, tokenizer, tmp_path, monkeypatch, command):
    assert create("mine", saved("gemma3_text", tmp_path / "model", tokenizer, head_dim=8))[0] == 0
    monkeypatch.setattr("swm.merging.projection._normed_projection", lambda *layer: None)  # a family of another kind
    monkeypatch.setattr("swm.merging.fit.WindowFitter", None)
    monkeypatch.setattr("swm.stages.merge.fitted_layers", None)
    code, _, told = swm(command[0], "mine", *command[1:])
    assert code == 1
    assert "they end neither in a sum with a linear map" in told


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_create_refuses_quantised_models(create, model_folder, method):
    config = json.loads((model_folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    (model_folder / "config.json").write_text(json.dumps(config))
    code, _, told = create("mine", model_folder)
    assert code == 1
    assert "are quantised" in told
    assert method in told


def test_create_refuses_a_model_with_pickles_alone(create, model_folder):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(b"never opened")
    code, _, told = create("mine", model_folder)
    assert (code, "a pickle file, which can run code" in told) == (1, True)


def test_models_of_one_and_of_two_layers(swm, create, tokenizer, tmp_path):
    code, _, told = create("one", saved("llama", tmp_path / "one", tokenizer, layers=1))
    assert (code, "has a single layer: there is nothing to merge" in told) == (1, True)
    assert create("two", saved("llama", tmp_path / "two", tokenizer, layers=2))[0] == 0
    code, out, _ = swm("search", "two")
    assert (code, "The last layer is never merged" in out) == (0, True)
    code, _, told = swm("plan", "two", "--layers", 2)
    assert (code, "the search cannot remove a layer from a 2-layer model" in told) == (1, True)
    assert swm("merge", "two", "a", "--windows", "0-1")[0] == 0


@pytest.mark.parametrize("seed", [-1, 2**64, 2**70])
def test_seeds_that_no_generator_takes(create, model_folder, seed):
    code, _, told = create("mine", model_folder, "--seed", seed)
    assert (code, f"--seed {seed} is out of range" in told) == (1, True)


@pytest.mark.apart
def test_wikitext_is_no_task(swm, study):
    code, _, told = swm("evaluate", "mine", "baseline", "--tasks", "wikitext")
    assert code == 1
    assert "wikitext measures perplexity, not accuracy" in told
    for task in random.Random(5).sample([*_whole_index().all_subtasks], 20):  # of some 13,000
        assert _is_named(task)
    assert not _is_named("chess")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("plan", "mine", "--threshold", 0.9, "--budget", 50), "--budget only applies to --planner best"),
        (("merge", "mine", "a", "--layers", 3, "--budget", 50), "--budget only applies to --planner best"),
        (("merge", "mine", "a", "--windows", "1-2", "--width-by", "taylor"), "--width-by needs --width"),
        (("plan", "mine", "--windows", "1-2", "--precision", "exact"), "--precision applies to a search"),
        (
            ("run", "mine", "a", "--windows", "1-2", "--no-recovery", "--steps", 5),
            "--no-recovery cannot be combined with --steps",
        ),
        (("study", "mine", "texts", "--against", "best"), "--against does not apply"),
        (("estimate", "smollm2-135m", "--count", -5), "--count -5 is out of range"),
        (("sweep", "x.yaml", "--workers", -5), "--workers -5 is out of range"),
        (("sweep", "x.yaml", "--address", "auto"), "--address needs --executor ray"),
    ],
)
def test_options_that_would_be_ignored_are_refused(swm, study, command, message):
    code, _, told = swm(*command)
    assert code == 1
    assert message in told


def test_a_read_only_demo_converts_and_writes_nothing(swm, study, tmp_path, monkeypatch):
    monkeypatch.setenv("SWM_DEMO", "mine")
    monkeypatch.setattr("swm.stages.loading.load_model", None)  # whoever asks for the model has come too far
    code, _, told = swm("create", "other", "--model", "smollm2-135m")
    assert (code, "everything in it is read-only" in told) == (1, True)
    code, _, told = swm("report", "mine", "--output", tmp_path / "r.html")
    assert (code, "read-only" in told, (tmp_path / "r.html").exists()) == (1, True, False)


# ---- what is said of a run ------------------------------------------------------------------------------------------


def test_the_card_and_the_report_name_the_method_that_chose_the_layers(swm, study, tmp_path):
    assert swm("merge", "mine", "s", "--planner", "sleb", "--layers", 3)[0] == 0
    assert swm("merge", "mine", "w", "--threshold", 0.01)[0] == 0
    assert swm("merge", "mine", "h", "--windows", "0-1", "--rule", "mean")[0] == 0
    expected = {
        "s": "SLEB, arXiv:2402.09025", "w": "Sliding-Window Merging, arXiv:2502.19159", "h": "hand",
    }  # fmt: skip
    for name, source in expected.items():
        assert swm("export", "mine", name, tmp_path / name)[0] == 0
        card = (tmp_path / name / "README.md").read_text()
        assert f"Windows chosen by {source}." in card
        others = set(expected.values()) - {source}
        assert not [other for other in others if other in card]
        assert json.loads((tmp_path / name / "recipe.json").read_text())["origin"]["source"] == source
    assert study.run("s").settings["origin"]["planner"] == "sleb"
    assert swm("report", "mine", "--output", tmp_path / "r.html")[0] == 0
    report = (tmp_path / "r.html").read_text()
    assert all(f"Windows chosen by {source}." in report for source in expected.values())


def test_healing_time_counts_every_session():
    at = lambda time, **more: {"stage": "recover", "step": 1, "steps": 9, "time": time, **more}  # noqa: E731
    # 100 s, then a pause of an hour, then 50 s up to a kill, then 20 s up to now
    events = [at(0.0, begun=True), at(60.0), at(100.0), at(3700.0, begun=True), at(3750.0), at(9000.0, begun=True)]
    assert healing_seconds(events, 9020.0) == 100 + 50 + 20


def test_the_same_command_gives_the_same_plan_and_keeps_its_precision(swm, study, monkeypatch):
    for precision, scoring in (("bfloat16", "bfloat16"), ("exact", "exact")):
        code, _, told = swm("search", "mine", "--from", 0.3, "--precision", precision)
        assert code == 0, told
        assert kept_path(study, "rdsc").scoring == scoring
    found = json.loads(
        swm("plan", "mine", "--planner", "laco", "--layers", 2, "--precision", "bfloat16", "--json")[1] or "{}"
    )
    assert found.get("scoring", "bfloat16") == "bfloat16"
    # Whatever the machine is busy with, its processor decides.
    from swm.models.load import bfloat16_is_faster

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    assert bfloat16_is_faster(torch.device("cpu"))
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    assert not bfloat16_is_faster(torch.device("cpu"))


def test_a_text_used_twice_is_said_to_be(swm, study, text_file):
    from swm.reporting.compare import compare
    from swm.reporting.figures import table

    run = study.run("baseline")
    value = {"value": 10.0, "low": 9.0, "high": 11.0, "texts": 3, "length_tokens": 32}
    scores = {
        "tasks": {},
        "limit": 1,
        "perplexity": {"own.txt": {**value, "text_hash": study.text_hash}, "lambada": value},
    }
    run.save("scores", scores)
    (row,) = compare(study)
    assert row.shared_texts == {"own.txt": "calibration"}
    assert "perplexity, own.txt (also the calibration text: not independent)" in table([row])


def test_griffin_is_refused_or_whole(swm, create, tokenizer, tmp_path):
    assert create("mine", saved("recurrent_gemma", tmp_path / "model", tokenizer, layers=6, **GRIFFIN))[0] == 0
    for stream in ((), ("--stream",)):
        assert swm("merge", "mine", f"a{len(stream)}", "--windows", "0-1", "--rule", "keep_first", *stream)[0] == 0
    models = [load_model(str(Run(Experiment.open("mine"), name).model_folder))[0] for name in ("a0", "a1")]
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(models[0](ids).logits, models[1](ids).logits)
    assert ExperimentSettings("x").seed == 1234


# ---- found by trying -----------------------------------------------------------------------------------------------


@pytest.fixture
def healed(swm, study, text_file):
    """A run that is merged and healed."""
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    assert swm("recover", "mine", "a", "--texts", text_file, *SMALL)[0] == 0
    return study.run("a")


def state_of(run):
    """All that it has, file by file."""
    names = ("state.json", "job.log", ".job.lock")
    return {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file() and p.name not in names}


def test_again_with_what_cannot_be_loses_nothing(swm, healed, tmp_path):
    before = state_of(healed)
    for command, message in (
        (
            ("merge", "mine", "a", "--windows", "0-1", "--width", "0.2", "--stream", "--again"),
            "--stream works layer by layer",
        ),
        (("merge", "mine", "a", "--windows", "2-9", "--again"), "does not fit"),
        (("run", "mine", "a", "--windows", "1-2", "--again", "--texts", tmp_path / "none.txt"), "no file"),
        (("run", "mine", "a", "--windows", "1-2", "--again", "--limit", 0), "--limit 0 is out of range"),
    ):
        code, _, told = swm(*command)
        assert (code, message in told) == (1, True), told
        assert state_of(healed) == before


def test_another_plan_takes_the_place_of_the_first_only_when_its_model_is_there(swm, healed):
    assert swm("merge", "mine", "a", "--windows", "0-1", "--rule", "mean", "--again")[0] == 0
    assert (healed.stage, healed.plan) == ("merged", MergePlan(4, (Window(0, 1),), "mean"))
    assert not (healed.folder / "recovery").exists()
    assert healed.settings["origin"]["planner"] == "windows"


def test_healing_otherwise_that_is_cancelled_keeps_the_adapter_of_the_model_that_is_there(swm, healed, text_file):
    from swm.errors import Cancelled
    from swm.settings import preset_settings
    from swm.stages.recover import recover_run

    adapter = (healed.folder / "recovery" / "adapter" / "adapter_model.safetensors").read_bytes()

    def impatient(done, total, text):
        if done:
            raise Cancelled

    small = {"texts": str(text_file), "steps": 4, "batch": 2, "length": 32, "held_out": 2, "rank": 4}
    with pytest.raises(Cancelled):
        recover_run(healed, preset_settings("quick", **small), impatient)
    assert healed.stage == "recovered"
    assert (healed.folder / "adapter-before" / "adapter_model.safetensors").read_bytes() == adapter
    recover_run(healed, preset_settings("quick", **small))
    assert not (healed.folder / "adapter-before").exists()


def test_a_recovery_text_in_another_order_starts_from_the_first_step_and_says_so(swm, study, tmp_path, caplog):
    from swm.errors import Cancelled
    from swm.settings import preset_settings
    from swm.stages.recover import recover_run

    lines = [json.dumps({"prompt": f"the old house {n}", "response": "stood near a river"}) for n in range(80)]
    file = tmp_path / "rec.jsonl"
    file.write_text("\n".join(lines))
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    run, seen = study.run("a"), []
    settings = preset_settings(
        "quick", texts=str(file), steps=4, batch=2, length=32, held_out=2, save_every=1, repair="none"
    )

    def impatient(done, total, text):
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        recover_run(run, settings, impatient)
    file.write_text("\n".join(reversed(lines)))
    recover_run(run, settings, lambda done, total, text: seen.append(done))
    assert [done for done in dict.fromkeys(seen) if done] == [1, 2, 3, 4]
    assert "has changed since healing began: starting over" in caplog.text
    file.write_text("\n".join(lines[1:]))
    command = ("recover", "mine", "a", "--texts", file, "--steps", 4, "--batch", 2, "--length", 32, "--held-out", 2)
    code, _, told = swm(*command, "--save-every", 1, "--repair", "none")
    assert (code, "has changed since a was healed with it" in told) == (1, True)


def test_a_changed_calibration_text_is_told_before_merging_and_healing(swm, study, text_file, tmp_path, monkeypatch):
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text())
    text_file.write_text(text_file.read_text() + "\n\nmore")
    monkeypatch.setattr("swm.stages.loading.load_model", None)  # whoever loads a model has come too far
    for command in (("recover", "mine", "a", "--texts", other, *SMALL), ("merge", "mine", "b", "--windows", "0-1")):
        code, _, told = swm(*command)
        assert (code, "has changed since mine was created" in told) == (1, True)


def test_a_run_whose_healing_was_cancelled_is_scored_all_the_same(swm, study, monkeypatch):
    from swm.stages.run import run_pipeline

    run = study.create_run("a", MergePlan(4, (Window(1, 2),)))
    begun = {"preset": "quick", "texts": "x", "steps": 1, "batch": 1, "accumulate": 1, "length": 32}
    run.remember(merge={"parameters": 1, "size_bytes": 1}, recovery_started=begun)
    scored = []
    monkeypatch.setattr("swm.stages.run.evaluate_run", lambda run, *_: scored.append(run.name))
    monkeypatch.setattr("swm.stages.run.time_run", lambda run, progress: None)
    run_pipeline(run, 2, None, lambda done, total, text: None)
    assert scored == ["baseline", "a"]


@pytest.mark.parametrize(("known", "reason"), [(True, "needs one of the layers 1, 4"), (False, "cannot generate text")])
def test_a_plan_without_attention_left_is_refused_and_never_costs_scores(
    known, reason, swm, create, tokenizer, tmp_path, monkeypatch
):
    """At once if a trial of the model has told what it needs, and otherwise before the merged model is saved."""
    if not known:
        monkeypatch.setattr("swm.stages.create.tried_out", lambda model: {})
    settings = {"full_attn_idxs": [1, 4], "block_ff_dim": 64, "conv_L_cache": 3}
    folder = saved("lfm2", tmp_path / "model", tokenizer, layers=6, **settings)
    assert create("mine", folder)[0] == 0
    code, _, told = swm("merge", "mine", "a", "--windows", "0-2,3-5", "--rule", "keep_first")
    assert (code, reason in told) == (1, True), told


@pytest.mark.parametrize("kind", ["jamba", "gpt_neo"])
def test_plans_that_a_config_cannot_describe_never_end_in_a_traceback(swm, create, tokenizer, tmp_path, kind):
    settings = {
        "jamba": {"num_experts": 2, "attn_layer_period": 4, "attn_layer_offset": 2, "use_mamba_kernels": False},
        "gpt_neo": {"num_layers": 6, "num_heads": 4, "attention_types": [[["global", "local"], 3]]},
    }[kind]
    assert create("mine", saved(kind, tmp_path / "model", tokenizer, layers=6, **settings))[0] == 0
    for number, windows in enumerate(("1-2", "-1-2", "2-4")):
        for more in ((), ("--stream",)):
            name = f"r{number}{len(more)}"
            code, _, told = swm("merge", "mine", name, f"--windows={windows}", "--rule", "keep_first", *more)
            reasons = ("Cannot save this plan", "in memory. Omit --stream", "cannot generate text")
            assert code == 0 or any(reason in told for reason in reasons), told


def test_similarities_of_plans_are_those_of_the_models_own_format(swm, study):
    from swm.search.window_score import WindowScorer
    from swm.stages.loading import calibration_of, load_original

    model, tokenizer = load_original(study)
    tokens = calibration_of(study, tokenizer)
    assert swm("search", "mine", "--precision", "bfloat16", "--from", 0.2)[0] == 0
    for command in (("--planner", "sleb", "--layers", 3), ("--layers", 3), ("--windows", "0-1,2-3", "--rule", "mean")):
        found = json.loads(swm("plan", "mine", *command, "--json")[1])
        above, window = [Window(*pair) for pair in found["windows"]][1:], Window(*found["windows"][0])
        exact = WindowScorer(model, tokens, found["rule"]).score(tuple(above), window)
        assert found["similarity"] == pytest.approx(exact, abs=1e-7)
    assert kept_path(study, "rdsc").scoring == "bfloat16"  # what was asked for since has not cost the path
    assert kept_path(study, "rdsc").covered() > 0.99
    assert swm("plan", "mine", "--threshold", 0.7, "--precision", "exact")[0] == 0
    assert kept_path(study, "rdsc").covered() > 0.99


def test_small_ones(swm, study, healed, text_file, tmp_path, monkeypatch):
    code, _, told = swm("run", "mine", "a", "--rule", "mean", "--no-recovery")
    assert (code, "--rule and --precision need a plan" in told) == (1, True)
    code, _, told = swm("merge", "mine", "a", "--windows", "1-2", "--width", 0.250000001)
    assert (code, "width: none (requested: 0.250000001 by flap)" in told) == (1, True)
    assert healed.settings["recovery"]["texts"] == str(text_file)
    monkeypatch.chdir(text_file.parent)
    assert "nothing to do" in swm("recover", "mine", "a", "--texts", text_file.name, *SMALL)[1]
    assert (
        swm("create", "tiny", "--model", study.settings.model, "--texts", text_file, "--count", 1, "--length", 8)[0]
        == 0
    )
    code, _, told = swm("measure", "tiny", "--metric", "cka-rbf", "--samples", "texts")
    assert (code, "too few for CKA" in told) == (1, True)
    monkeypatch.setenv("SWM_DEMO", "mine")
    assert swm("estimate", "smollm2-135m", "--untimed")[0] == 0  # reads the file, converts nothing
    with pytest.raises(ModelError, match="the demo is read-only"):
        locate.model_folder("smollm2-135m")


def test_the_demo_does_not_go_on_in_an_experiment_of_ones_own(swm, create, model_folder):
    assert create("demo", model_folder)[0] == 0
    code, _, told = swm("demo")
    assert (code, "Experiment demo already exists with other settings" in told) == (1, True)


def test_a_recipe_knows_its_calibration_text(swm, study, healed, text_file, tmp_path):
    assert swm("export", "mine", "a", tmp_path / "out")[0] == 0
    text_file.write_text(text_file.read_text() + "\n\nmore")
    code, _, told = swm("repeat", tmp_path / "out" / "recipe.json", "--name", "again")
    assert (code, "differs from the recipe's, so the run cannot be reproduced" in told) == (1, True)
    assert "again" not in list_names()


def test_another_limit_does_not_replace_the_originals_scores(swm, study):
    from swm.evaluation.task_names import TASKS

    score = {"value": 0.5, "stderr": 0.1, "metric": "acc", "documents": 5}
    found = {"tasks": dict.fromkeys(TASKS, score), "perplexity": {}, "limit": 5}
    study.run("baseline").save("scores", found)
    code, _, told = swm("run", "mine", "b", "--windows", "1-2", "--limit", 3, "--no-recovery")
    assert code == 1
    assert "The original was scored with --limit 5, this run with --limit 3" in told
    assert study.run("baseline").scores()["limit"] == 5


def test_a_text_that_changes_while_healing_does_not_cost_the_healed_model(swm, study, text_file, tmp_path):
    from swm.settings import preset_settings
    from swm.stages.recover import recover_run

    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text())
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    small = {"texts": str(other), "steps": 2, "batch": 2, "length": 32, "held_out": 2}
    changed = text_file.read_text() + "\n\nmore"
    recover_run(
        study.run("a"),
        preset_settings("quick", **small),
        lambda done, total, text: done and text_file.write_text(changed),
    )
    assert study.run("a").stage == "recovered"


def test_again_does_not_replace_the_originals_scores_either(swm, study):
    from swm.evaluation.task_names import TASKS

    score = {"value": 0.5, "stderr": 0.1, "metric": "acc", "documents": 5}
    study.run("baseline").save("scores", {"tasks": dict.fromkeys(TASKS, score), "perplexity": {}, "limit": 5})
    assert swm("merge", "mine", "b", "--windows", "1-2")[0] == 0
    code, _, told = swm("run", "mine", "b", "--windows", "1-2", "--limit", 3, "--no-recovery", "--again")
    assert (code, "The original was scored with --limit 5" in told) == (1, True)
    assert study.run("b").has_model


@pytest.mark.apart
def test_a_task_that_needs_a_package_says_which(swm, study):
    code, _, told = swm("evaluate", "mine", "baseline", "--tasks", "ifeval", "--limit", 2)
    assert code == 1
    assert "ifeval" in told
    assert "Traceback" not in told


def test_a_killed_replacement_is_settled_before_it_is_judged(swm, study):
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    run, new = study.run("a"), MergePlan(4, (Window(0, 1),), "mean")
    # killed between the new model taking its place and run.json knowing of it
    run.promise(run.model_folder, {**study.plan_entries(new, None, None), "merge": run.settings["merge"]}, "forget")
    assert run.plan == MergePlan(4, (Window(1, 2),))
    code, _, told = swm("merge", "mine", "a", "--windows", "1-2")
    assert (code, "windows: 0-1 (requested: 1-2)" in told) == (1, True)


def test_a_known_plan_that_cannot_be_saved_is_refused_when_it_is_asked_for(swm, create, tokenizer, tmp_path):
    settings = {"num_experts": 2, "attn_layer_period": 4, "attn_layer_offset": 2, "use_mamba_kernels": False}
    assert create("mine", saved("jamba", tmp_path / "model", tokenizer, layers=12, **settings))[0] == 0
    path = ThresholdPath(12, "keep_first", 0.5)
    path.extend(0.9, lambda above, window: 0.95 if str(window) == "4-5" else 0.1)  # as a search may have found it
    path.text_hash = Experiment.open("mine").text_hash
    save_path(Experiment.open("mine"), path)
    code, _, told = swm("plan", "mine", "--threshold", 0.9, "--rule", "keep_first")
    assert (code, "Cannot save this plan" in told) == (1, True)


def test_a_recovery_that_an_earlier_release_began_goes_on(swm, study, text_file):
    from dataclasses import asdict

    from swm.errors import Cancelled
    from swm.settings import preset_settings
    from swm.stages.recover import recover_run

    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    run, seen = study.run("a"), []
    settings = preset_settings("quick", texts=str(text_file), steps=4, batch=2, length=32, held_out=2, save_every=1)

    def impatient(done, total, text):
        if done == 2 and text.startswith("loss"):  # before it, merged layers are fitted
            raise Cancelled

    with pytest.raises(Cancelled):
        recover_run(run, settings, impatient)
    run.remember(recovery_started=asdict(settings))  # without the hashes of today
    recover_run(run, settings, lambda done, total, text: text[:4] == "loss" and seen.append(done))
    assert list(dict.fromkeys(seen)) == [3, 4]
