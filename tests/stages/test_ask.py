"""Runs that answer a prompt one after the other: saved ones, and those whose model is merged in memory."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from swm.cli.main import main
from swm.errors import PlanError
from swm.jobs.child import END, NEXT, stream_answers
from swm.plan import MergePlan, WidthCut, Window
from swm.settings import ExperimentSettings
from swm.stages.ask import models_of
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run

PROMPT, TOKENS = "The three most", 12


@pytest.fixture
def study(model_folder, text_file, home):
    study = create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    for rule in ("rdsc", "fit"):
        plan = MergePlan(4, (Window(1, 2),), rule)
        merge_run(study.create_run(f"saved-{rule}", plan))
        study.create_run(f"planned-{rule}", plan)
    return study


def greedy(folder):
    """What transformers itself writes."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        new = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("rule", ["rdsc", "fit"])
def test_a_run_without_a_model_answers_as_the_one_that_was_saved(rule, study):
    names = ["baseline", f"planned-{rule}", f"saved-{rule}"]
    states = {run.name: model.state_dict() for run, model, _ in models_of(study, names)}
    original, planned, saved = (states[name] for name in names)
    assert planned.keys() == saved.keys()
    other = [name for name, weight in saved.items() if not torch.allclose(planned[name], weight, rtol=1e-4, atol=1e-5)]
    if rule == "fit":  # of one layer, on less text than a merge takes
        assert other
        assert {name.partition(".layers.")[2].partition(".")[0] for name in other} == {"1"}
        assert not any(torch.equal(planned[name], original[name]) for name in other)
    else:
        assert other == []
    assert not study.run(f"planned-{rule}").has_model  # nothing is written


def test_several_answers_come_from_one_process_each_in_its_place(study):
    names, said, speeds = ["saved-rdsc", "baseline", "planned-rdsc"], ["", "", ""], {}
    for place, piece, is_speed in stream_answers("study", names, PROMPT, TOKENS):
        if is_speed:
            speeds[place] = piece
        else:
            said[place] += piece
    expected = [greedy(study.run("saved-rdsc").model_folder), greedy(study.settings.model)]
    assert [text.strip() for text in said] == [text.strip() for text in (*expected, expected[0])]
    assert sorted(speeds) == [0, 1, 2]
    assert all("the first after" in speed for speed in speeds.values())
    alone = [piece for _, piece, is_speed in stream_answers("study", ["baseline"], PROMPT, TOKENS) if not is_speed]
    assert "".join(alone).strip() == expected[1].strip()


def test_answers_as_json_and_for_a_pipe(study, capsys):
    main(["answer", "study", "baseline", "saved-rdsc", "--prompt", PROMPT, "--tokens", "3", "--json"])
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [answer["run"] for answer in answers] == ["baseline", "saved-rdsc"]
    main(["answer", "study", "baseline", "saved-rdsc", "--prompt", PROMPT, "--tokens", "3"])
    parts = [part.partition(END)[0] for part in capsys.readouterr().out.split(NEXT)[:2]]
    assert [part.strip() for part in parts] == [answer["answer"].strip() for answer in answers]


def test_a_width_cut_is_not_made_in_memory(study):
    study.create_run("narrow", MergePlan(4, (Window(1, 2),), width=WidthCut(0.2)))
    with pytest.raises(PlanError, match="Merge it first"):
        list(models_of(study, ["narrow"]))


@pytest.mark.data
def test_a_shipped_example_answers_a_typed_prompt(bundled_home, capsys):
    asked = ["--prompt", "The capital of France is", "--tokens", "8", "--json"]
    main(["answer", "example-demo", "baseline", "walk-24", *asked])
    original, merged = json.loads(capsys.readouterr().out)["answers"]
    assert original["answer"].strip().startswith("Paris")
    assert merged["answer"]
    assert merged["answer"] != original["answer"]
