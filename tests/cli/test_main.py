"""The command line: a whole study on a tiny model, the JSON of the contract, and what bad input gets."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from swm.errors import Cancelled
from swm.plan import MergePlan, Window
from swm.search.kept_path import kept_path
from swm.workspace.experiments import Experiment
from tests.conftest import need, tiny_model


@pytest.fixture
def study(swm, model_folder, text_file):
    code, _, err = swm("create", "study", "--model", model_folder, "--texts", text_file, "--count", 3, "--length", 32)
    assert code == 0, err
    return "study"


def json_of(result):
    code, out, err = result
    assert code == 0, err
    assert len(out.splitlines()) == 1
    return json.loads(out)


def test_create_can_measure_at_once(swm, model_folder, text_file):
    made = ("create", "e", "--model", model_folder, "--texts", text_file, "--count", 3, "--length", 32, "--measure")
    code, _, err = swm(*made)
    assert code == 0, err
    experiment = Experiment.open("e")
    assert experiment.metrics_measured() == ["cka_skip4", "cka"]
    first, whole = experiment.similarity("cka_skip4"), experiment.similarity("cka")
    assert (first["tokens"], whole["tokens"]) == (3 * 28, 3 * 32)
    assert json_of(swm("measure", "e", "--json"))["matrix"] == first["matrix"]
    assert experiment.state().status == "done"


@pytest.mark.data
def test_whole_study_on_a_tiny_model(swm, study, tmp_path, model, tokens):
    need("olmo_eval")
    measured = json_of(swm("measure", study, "--json"))
    assert len(measured["matrix"]) == 4
    path = json_of(swm("search", study, "--from", 0.01, "--json"))
    assert path["plans"][0]["valid_for"][1] == 1.0
    assert path["plans"][-1]["valid_for"][0] < 0.01
    depth = min(plan["layers_left"] for plan in path["plans"])
    plan = json_of(swm("plan", study, "--layers", depth, "--json"))
    keys = {"layer_count", "layers_left", "windows", "rule", "threshold", "valid_for", "similarity"}
    assert plan.keys() == keys | {"perplexity"}
    assert plan == json_of(swm("plan", study, "--ratio", 1 - depth / 4, "--json"))
    assert (plan["layer_count"], plan["layers_left"], plan["rule"]) == (4, depth, "rdsc")
    merged = json_of(swm("merge", study, "first", "--windows", "1-2", "--json"))
    assert merged["layers_left"] == 3
    folder = Experiment.open(study).run("first").model_folder
    before = AutoModelForCausalLM.from_pretrained(folder)
    assert before.config.num_hidden_layers == 3
    for run in ("baseline", "first"):
        scores = json_of(swm("evaluate", study, run, "--tasks", "openbookqa,piqa", "--limit", 3, "--json"))
        assert scores["tasks"]["piqa"]["documents"] == 3
        assert math.log(scores["perplexity"]["squad"]["value"]) < 12
    recovered = json_of(swm("recover", study, "first", "--steps", 2, "--length", 32, "--batch", 2, "--json"))
    assert recovered["training_tokens"] == 2 * 2 * 32
    healed = AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(healed(tokens).logits, before(tokens).logits)
    json_of(swm("evaluate", study, "first", "--tasks", "openbookqa", "--limit", 3, "--json"))
    json_of(swm("time", study, "first", "--tokens", 4, "--json"))
    rows = json_of(swm("compare", study, "--json"))["runs"]
    assert [row["run"] for row in rows] == ["baseline", "first"]
    keys = {"layers", "parameters", "perplexity", "scores", "average", "tokens_per_second", "latency_ms"}
    assert keys | {"peak_memory_bytes", "deltas"} <= rows[1].keys()
    assert rows[1]["deltas"]["layers"] == -1
    assert rows[1]["scores"]["openbookqa"].keys() >= {"value", "stderr", "metric", "documents"}
    assert rows[1]["before_recovery"]["scores"].keys() == {"openbookqa", "piqa"}
    table = swm("compare", study)[1]
    assert "original" in table
    assert "first (merged + LoRA)" in table
    assert swm("compare", study, "--csv")[1].startswith("run,stage,layers,parameters")
    report = tmp_path / "report.html"
    assert swm("report", study, "--output", report)[0] == 0
    assert "first (merged + LoRA)" in report.read_text()
    assert swm("export", study, "first", tmp_path / "out")[0] == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(exported(tokens).logits, healed(tokens).logits)
    assert "rule `rdsc`" in (tmp_path / "out" / "README.md").read_text()
    assert swm("delete", study, "first")[0] == 0
    assert [run.name for run in Experiment.open(study).runs()] == ["baseline"]


@pytest.mark.data
def test_run_does_the_whole_pipeline_and_a_second_time_nothing(swm, study, monkeypatch, text_file):
    need("olmo_eval")
    small = ["--steps", "2", "--batch", "2", "--length", "32", "--limit", "2", "--texts", text_file]
    rows = json_of(swm("run", study, "first", "--windows", "1-2", *small, "--json"))["runs"]
    assert [row["run"] for row in rows] == ["baseline", "first"]
    assert rows[1]["stage"] == "recovered"
    assert rows[1]["deltas"]["average"] is not None
    assert rows[1]["speedup"]["value"] > 0
    assert Experiment.open(study).run("first").state().status == "done"
    monkeypatch.setattr("swm.stages.loading.load_model", None)  # whoever loads a model again fails
    assert json_of(swm("run", study, "first", *small, "--json"))["runs"] == rows


@pytest.mark.data
def test_merging_again_forgets_recovery_and_scores(swm, study, text_file):
    need("olmo_eval")
    assert swm("merge", study, "first", "--windows", "1-2")[0] == 0
    assert swm("evaluate", study, "first", "--tasks", "piqa", "--limit", 2)[0] == 0
    assert swm("recover", study, "first", "--steps", 2, "--batch", 2, "--length", 32, "--texts", text_file)[0] == 0
    assert swm("evaluate", study, "first", "--tasks", "piqa", "--limit", 2)[0] == 0
    run = Experiment.open(study).run("first")
    assert run.stage == "recovered"
    code, out, _ = swm("merge", study, "first", "--windows", "1-2")
    assert code == 0
    assert (
        "and healed: nothing to do. Pass --again to merge it again, which deletes its adapter, scores and timing" in out
    )
    assert run.stage == "recovered"
    assert run.scores()
    assert swm("merge", study, "first", "--windows", "1-2", "--again")[0] == 0
    assert (run.stage, run.scores(), run.scores_before_recovery(), run.timing()) == ("merged", None, None, None)
    assert not (run.folder / "recovery").exists()
    assert run.events() == []


def test_cancelled_recovery_goes_on_also_when_the_run_was_recovered_before(swm, study, text_file):
    from swm.settings import preset_settings
    from swm.stages.recover import recover_run

    assert swm("merge", study, "first", "--windows", "1-2")[0] == 0
    run = Experiment.open(study).run("first")
    for steps in (4, 6):
        settings = preset_settings(
            "quick", texts=str(text_file), steps=steps, batch=2, length=32, held_out=2, save_every=2
        )
        seen = []

        def stop_at_3(done, total, text, seen=seen):
            if text.startswith("loss"):  # before it, merged layers are fitted
                seen.append(done)
                if done == 3:
                    raise Cancelled

        with pytest.raises(Cancelled):
            recover_run(run, settings, stop_at_3)
        assert list(dict.fromkeys(seen)) == [1, 2, 3]
        seen.clear()
        recover_run(run, settings, lambda done, total, text, seen=seen: text[:4] == "loss" and seen.append(done))
        assert list(dict.fromkeys(seen)) == list(range(4, steps + 1))
        assert [event["step"] for event in run.events() if "loss" in event] == list(range(1, steps + 1))
        assert not run.settings.get("recovery_started")


def test_recovery_that_fails_at_once_loses_nothing_of_the_one_before(swm, study, text_file):
    small = ["--steps", 2, "--batch", 2, "--length", 32, "--save-every", 1, "--texts", text_file]
    assert swm("merge", study, "first", "--windows", "1-2")[0] == 0
    assert swm("recover", study, "first", *small)[0] == 0
    run = Experiment.open(study).run("first")
    before = (run.events(), run.settings, sorted((run.folder / "recovery").rglob("*")))
    for wrong in (["--texts", "nosuch.txt"], ["--held-out", 9999, "--length", 256], ["--length", 1000]):
        assert swm("recover", study, "first", *small, *wrong)[0] == 1
        assert (run.events(), run.settings, sorted((run.folder / "recovery").rglob("*"))) == before


def test_text_longer_than_the_model_reads_and_foreign_tokenizer_are_told(swm, text_file, tmp_path, tokenizer):
    for name, changes, message in (
        (
            "gpt2",
            {"max_position_embeddings": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
            "the model's context is 64 tokens",
        ),
        ("llama", {"vocab_size": 100}, "The tokenizer does not match the model"),
    ):
        tiny_model(name, layers=2, **changes).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        code, _, err = swm("create", name, "--model", tmp_path / name, "--texts", text_file, "--count", 2)
        assert code == 1
        assert message in err


def test_model_that_lost_layers_after_it_was_chosen_is_told(swm, study, model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    code, _, err = swm("search", study)
    assert code == 1
    assert "now has 3 layers, but had 4" in err


def test_plan_of_a_run_that_was_never_merged_can_be_changed(swm, study):
    experiment = Experiment.open(study)
    experiment.create_run("first", MergePlan(4, (Window(0, 1),)))
    assert json_of(swm("merge", study, "first", "--windows", "1-2", "--json"))["windows"] == [[1, 2]]
    assert swm("merge", study, "first", "--windows", "0-1")[0] == 1


def test_odd_characters_are_only_text(swm, study, tmp_path):
    line = b'{"text": "' + b"\\ud800 the old house " * 40 + b'"}\n'
    (tmp_path / "odd.jsonl").write_bytes(b"\xef\xbb\xbf" + 3 * line)
    assert swm("measure", study, "--texts", tmp_path / "odd.jsonl")[0] == 0
    assert swm("answer", study, "baseline", "--prompt", "\udcff hi", "--tokens", 2)[0] == 0


@pytest.mark.data
def test_perplexity_on_a_text_of_ones_own(swm, study, text_file):
    need("olmo_eval")
    text_file.write_text("\n\n".join([text_file.read_text()] * 2))  # 32 texts of 256 tokens are wanted
    asked = ["--tasks", "piqa", "--limit", 1, "--texts", f"squad,{text_file}", "--json"]
    scores = json_of(swm("evaluate", study, "baseline", *asked))
    assert list(scores["perplexity"]) == ["squad", str(text_file)]
    assert scores["perplexity"][str(text_file)]["predicted_tokens"] == 32 * 255
    code, _, err = swm("evaluate", study, "baseline", "--tasks", "piqa", "--limit", 1, "--texts", "wikitext")
    assert code == 1
    assert "Cannot load text 'wikitext'" in err


def test_relative_paths_are_kept_as_absolute_ones(swm, model_folder, text_file, monkeypatch, tmp_path):
    monkeypatch.chdir(model_folder.parent)
    arguments = ["--model", model_folder.name, "--texts", text_file.name, "--count", 2, "--length", 16]
    assert swm("create", "study", *arguments)[0] == 0
    monkeypatch.chdir("/")
    assert swm("measure", "study")[0] == 0


def test_empty_windows_are_the_plan_of_the_original(swm, study):
    merged = json_of(swm("merge", study, "same", "--windows", "", "--json"))
    assert (merged["layers_left"], merged["windows"]) == (4, [])


def test_plan_without_a_path_is_searched_and_its_similarities_are_kept(swm, study):
    plan = json_of(swm("plan", study, "--threshold", 0.2, "--json"))
    assert plan["threshold"] == 0.2
    assert plan["valid_for"][0] < 0.2 <= plan["valid_for"][1]
    assert kept_path(Experiment.open(study), "rdsc").plan_at(0.2).plan.layers_left == plan["layers_left"]


BAD = {
    "threshold 0": (["plan", "study", "--threshold", "0"], "Threshold 0.0 is out of range: use a value above 0"),
    "threshold above 1": (
        ["plan", "study", "--threshold", "1.01"],
        "Threshold 1.01 is out of range: use a value above 0",
    ),
    "negative threshold": (
        ["merge", "study", "a", "--threshold=-0.5"],
        "Threshold -0.5 is out of range: use a value above 0",
    ),
    "threshold NaN": (["plan", "study", "--threshold", "nan"], "Threshold nan is out of range: use a value above 0"),
    "from NaN": (["search", "study", "--from", "nan"], "Threshold nan is out of range: use a value above 0"),
    "from 1": (["search", "study", "--from", "1"], "must be below the upper end of the path"),
    "focus NaN": (["search", "study", "--focus", "nan"], "Threshold nan is out of range: use a value above 0"),
    "ratio 1": (["plan", "study", "--ratio", "1"], "--ratio 1.0 is out of range"),
    "ratio NaN": (["plan", "study", "--ratio", "nan"], "--ratio nan is out of range"),
    "more layers than there are": (["plan", "study", "--layers", "5"], "--layers 5 is out of range: the model has 4"),
    "one layer": (["plan", "study", "--layers", "1"], "--layers 1 is out of range"),
    "unknown rule": (["plan", "study", "--threshold", "0.9", "--rule", "sum"], "'sum' is not a merge rule"),
    "unknown metric": (["measure", "study", "--metric", "cca"], "'cca' is not a similarity metric"),
    "unknown part": (["measure", "study", "--part", "x"], "Unknown layer part 'x'"),
    "all tokens left out": (["measure", "study", "--skip", "32"], "--skip 32 leaves no tokens"),
    "calibration on a task": (["create", "x", "--model", "M", "--texts", "task:boolq"], "cannot calibrate"),
    "prompts of no task": (["measure", "study", "--texts", "task:chess"], "No prompts are bundled for task 'chess'"),
    "unknown task": (["evaluate", "study", "baseline", "--tasks", "chess"], "Unknown task 'chess'"),
    "limit 0": (["evaluate", "study", "baseline", "--limit", "0"], "--limit 0 is out of range"),
    "unknown experiment": (["plan", "nope", "--threshold", "0.9"], "There is no experiment nope"),
    "unknown run": (["evaluate", "study", "nope"], "There is no run nope in study"),
    "name with ../": (["create", "../up", "--model", "smollm2-135m"], "'../up' is not a valid name"),
    "run name with ../": (["merge", "study", "../up", "--windows", "1-2"], "'../up' is not a valid name"),
    "window outside": (["merge", "study", "a", "--windows", "2-4"], "Window 2-4 does not fit"),
    "windows that overlap": (["merge", "study", "a", "--windows", "0-2,2-3"], "Windows 0-2 and 2-3 share layer 2"),
    "window that is none": (["merge", "study", "a", "--windows", "x"], "'x' is not a window"),
    "baseline merged": (["merge", "study", "baseline", "--windows", "1-2"], "baseline is the original model"),
    "recovery of nothing": (["recover", "study", "baseline"], "baseline is the original model"),
    "unknown preset": (["recover", "study", "baseline", "--preset", "slow"], "'slow' is not a recovery preset"),
    "steps 0": (["recover", "study", "baseline", "--steps", "0"], "steps 0 is out of range"),
    "unknown dtype": (["create", "x", "--model", "M", "--dtype", "int3"], "Unknown precision (dtype) 'int3'"),
    "empty model": (["create", "x", "--model", ""], "The name is empty"),
    "empty texts": (["create", "x", "--model", "M", "--texts", ""], "The text's name is empty"),
    "seed below 0": (["recover", "study", "baseline", "--seed", "-1"], "seed -1 is out of range"),
    "empty prompt": (["answer", "study", "baseline", "--prompt", ""], "The prompt is empty"),
    "too many tokens": (["answer", "study", "baseline", "--prompt", "a", "--tokens", "999"], "do not fit"),
    "nothing to cancel": (["cancel", "study"], "study has no job running"),
    "export of the original": (["export", "study", "baseline", "out"], "no merged model to export"),
    "time of 1 token": (["time", "study", "baseline", "--tokens", "1"], "--tokens 1 is out of range"),
    "run without a plan": (["run", "study", "a"], "There is no run a in study"),
    "delete the original": (["delete", "study", "baseline"], "baseline is the original model and stays"),
    "unknown target": (
        ["recover", "study", "baseline", "--target", "x"],
        "target must be one of 'text', 'original', 'hidden'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message_exit_1_and_leaves_nothing(swm, study, model_folder, home, case):
    arguments, message = BAD[case]
    arguments = [str(model_folder) if a == "M" else a for a in arguments]
    before = sorted(
        p for p in home.rglob("*") if p.name not in ("state.json", ".job.lock") and not p.name.startswith(".device-")
    )
    code, out, err = swm(*arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    after = sorted(
        p for p in home.rglob("*") if p.name not in ("state.json", ".job.lock") and not p.name.startswith(".device-")
    )
    assert [p for p in after if p not in before and not p.is_dir()] == []


@pytest.mark.parametrize(("content", "message"), [("", "contains no text"), ("few words", "too short")])
def test_text_that_is_empty_or_too_short_makes_no_experiment(swm, model_folder, tmp_path, home, content, message):
    (tmp_path / "t.txt").write_text(content)
    code, _, err = swm("create", "study", "--model", model_folder, "--texts", tmp_path / "t.txt")
    assert code == 1
    assert message in err
    assert not (home / "experiments").exists()


def test_depth_that_no_threshold_gives_names_its_neighbours(swm, study):
    path = json_of(swm("search", study, "--from", 0.9999, "--json"))
    assert {plan["layers_left"] for plan in path["plans"]} == {4}
    code, _, err = swm("plan", study, "--layers", 2)
    assert code == 1
    assert "leaves exactly 2 layers" in err
    assert "nearest depths are 4" in err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["plan", "study"], ["plan", "study", "--threshold", "abc"]])
def test_wrong_usage_exits_with_2(swm, arguments):
    assert swm(*arguments)[0] == 2


def test_full_disk_while_merging_leaves_the_run_planned(swm, study, small_disk, home, monkeypatch):
    moved = small_disk / "home"
    import shutil

    shutil.copytree(home, moved)
    monkeypatch.setenv("SWM_HOME", str(moved))
    (small_disk / "ballast").write_bytes(bytes(900 * 1024))
    code, _, err = swm("merge", study, "first", "--windows", "1-2")
    assert code == 1
    assert "No space left" in err
    (small_disk / "ballast").unlink()
    run = Experiment.open(study).run("first")
    assert (run.stage, run.has_model) == ("planned", False)
    assert swm("merge", study, "first", "--windows", "1-2")[0] == 0


def test_results_go_to_stdout_and_progress_to_stderr(model_folder, text_file, home):
    command = [sys.executable, "-m", "swm", "create", "s", "--model", model_folder, "--texts", text_file]
    done = subprocess.run(
        [*map(str, command), "--count", "2", "--length", "16", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["layers"] == 4
    done = subprocess.run(
        [sys.executable, "-m", "swm", "plan", "s", "--threshold", "2"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Threshold 2.0 is out of range: use a value above 0")


def test_models_lists_the_bundled_one(swm):
    assert "smollm2-135m" in json_of(swm("models", "--json"))["bundled"]


def test_width_is_cut_after_merging_and_healing_repeats_it(swm, study, tmp_path, text_file):
    assert swm("merge", study, "narrow", "--windows", "1-2", "--width", 0.5, "--width-by", "taylor")[0] == 0
    run = Experiment.open(study).run("narrow")
    merged = run.settings["merge"]["parameters"]
    config = json.loads((run.model_folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_key_value_heads"]) == (3, 1)
    assert swm("recover", study, "narrow", "--steps", 2, "--batch", 2, "--length", 32, "--texts", text_file)[0] == 0
    assert json.loads((run.model_folder / "config.json").read_text()) == config  # use_cache too
    assert swm("export", study, "narrow", tmp_path / "out")[0] == 0
    assert "50 % of the layers' weights were pruned by width" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["plan"]["width"] == {
        "ratio": 0.5,
        "method": "taylor",
    }
    rows = json.loads(swm("compare", study, "--json")[1])["runs"]
    assert rows[-1]["parameters"] == merged
    code, _, err = swm("merge", study, "wide", "--windows", "1-2", "--width", 2)
    assert code == 1
    assert "--width 2.0 is out of range" in err


@pytest.mark.apart
def test_nothing_is_fetched_from_the_hub_and_run(tmp_path):
    """A package `kernels` leaves a trace when it is asked: some processors make bitsandbytes ask it."""
    (tmp_path / "kernels.py").write_text(
        f"from pathlib import Path\ndef get_kernel(*name, **more):\n    Path({str(tmp_path / 'asked')!r}).touch()\n"
    )
    code = "from swm.cli.main import main; main(['models']); import peft, bitsandbytes; print('loaded')"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("loaded\n"), done.stderr
    assert "kernels-community" not in done.stderr
    assert not (tmp_path / "asked").exists()


def test_the_first_of_two_that_merge_under_one_name_does_not_merge_the_other_s_plan(
    swm, model_folder, text_file, monkeypatch
):
    """Between the first process's plan and its job, the other one gives the run its own plan."""
    from contextlib import contextmanager

    from swm.cli import make

    swm("create", "study", "--model", model_folder, "--texts", text_file, "--count", 2, "--length", 16)
    study, watched = Experiment.open("study"), make.watched

    @contextmanager
    def late(target, stage):
        study.create_run("a", MergePlan(4, (Window(2, 3),), "mean"))
        with watched(target, stage) as progress:
            yield progress

    monkeypatch.setattr(make, "watched", late)
    code, _, error = swm("merge", "study", "a", "--windows", "0-1", "--rule", "mean")
    assert code == 1
    assert (
        "Another process gave run a another plan (windows 2-3, rule mean; requested: windows 0-1, rule mean)" in error
    )
    assert not study.run("a").has_model


def test_where_no_terminal_is_a_line_says_how_far_a_command_is(capsys, monkeypatch):
    import threading

    from swm.cli import watched

    written = threading.Event()
    monkeypatch.setattr(watched, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(watched, "print", lambda *a, **k: (print(*a, **k), written.set()), raising=False)
    with watched.progress_bar("measure") as progress:
        assert written.wait(10)  # before anything was reported
        progress(34, 100, "reading \x1b[31mtexts")
        written.clear()
        assert written.wait(10)
        written.clear()
        assert written.wait(10)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "measure: starting, 0 s"
    assert said[-1] == "measure: 34%, reading \\x1b[31mtexts, 0 s"


def test_an_evaluation_that_reads_next_to_nothing_says_nothing_about_speed(swm, model_folder, text_file):
    need("olmo_eval")
    swm("create", "study", "--model", model_folder, "--texts", text_file, "--count", 2, "--length", 16)
    swm("measure", "study")
    study = Experiment.open("study")
    for options in (["--tasks", "none", "--texts", ""], ["--tasks", "piqa", "--limit", "1", "--texts", ""]):
        code, _, error = swm("evaluate", "study", "baseline", *options)
        assert code == 0, error
        assert "observed" not in study.cost()
    assert swm("evaluate", "study", "baseline", "--tasks", "none")[0] == 0
    [rate] = study.cost()["observed"]
    assert (rate["kind"], rate["dtype"]) == ("forward", "float32")
    assert study.cost()["forward_tokens_per_second"] == rate["tokens_per_second"] > 0
