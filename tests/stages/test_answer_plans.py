"""What plans write, against plain transformers on the merged checkpoint."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from swm.plan import Window, parse_windows
from swm.search.kept_path import kept_answers
from swm.settings import SAMPLE_PROMPTS, SAMPLE_TOKENS
from swm.workspace.experiments import Experiment
from tests.conftest import tiny_model


@pytest.fixture
def searched(swm, model_folder, text_file, monkeypatch):
    """Experiment `e` on a tiny Llama of 4 layers, searched with rule mean; answers as long as usual."""
    monkeypatch.setattr("swm.evaluation.answers.SAMPLE_TOKENS", SAMPLE_TOKENS)
    for command in (
        ("create", "e", "--model", model_folder, "--texts", text_file, "--count", "3", "--length", "32"),
        ("search", "e", "--rule", "mean", "--from", "0.1"),
    ):
        code, _, message = swm(*command)
        assert code == 0, message
    return Experiment.open("e")


def continued(folder):
    """What plain transformers writes after the prompts."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    answers = []
    for prompt in SAMPLE_PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        new = model.generate(ids, max_new_tokens=SAMPLE_TOKENS, do_sample=False)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    return answers


def without_partial_characters(text):
    return text.rstrip("\ufffd")


def test_each_plan_of_a_path_writes_what_its_checkpoint_writes(swm, searched, model_folder):
    answers = kept_answers(searched, "mean")
    found = json.loads(swm("search", "e", "--rule", "mean", "--from", "0.1", "--json")[1])["plans"]
    plans = {tuple(Window(*pair) for pair in step["windows"]) for step in found}
    assert len(plans) >= 3
    assert set(answers.of) == plans | {()}
    assert [*map(without_partial_characters, continued(model_folder))] == answers.of[()]
    for number, windows in enumerate(windows for windows in answers.of if windows):
        text = ",".join(f"{window.first}-{window.last}" for window in windows)
        code, _, message = swm("merge", "e", f"r{number}", "--windows", text, "--rule", "mean")
        assert code == 0, message
        found = continued(searched.run(f"r{number}").model_folder)
        assert [*map(without_partial_characters, found)] == answers.of[windows]


def test_answers_are_asked_once(swm, searched, monkeypatch):
    from swm.stages import answer_plans as module

    def refuse(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(module, "sample_answers", refuse)
    assert swm("search", "e", "--rule", "mean", "--from", "0.1")[0] == 0


def test_a_search_can_leave_the_answers_out(swm, searched):
    assert swm("search", "e", "--rule", "keep_first", "--no-answers")[0] == 0
    assert not kept_answers(searched, "keep_first").of
    assert not (searched.folder / "answers" / "keep_first.json").exists()


def test_windows_measured_by_hand_are_asked_too_and_the_original_once_for_all_rules(swm, searched, monkeypatch):
    from swm.stages import answer_plans as module

    asked, ask = [], module.sample_answers
    monkeypatch.setattr(module, "sample_answers", lambda model, *rest: asked.append(model) or ask(model, *rest))
    assert swm("plan", "e", "--windows", "0-1,2-3", "--rule", "replace")[0] == 0
    kept = kept_answers(searched, "replace").of
    assert set(kept) == {(), parse_windows("0-1,2-3")}
    assert [model.config.num_hidden_layers for model in asked] == [2]
    assert kept[()] == kept_answers(searched, "mean").of[()] != []


def test_answers_of_other_prompts_are_asked_again(searched):
    data = searched.read("answers/mean.json")
    searched.write("answers/mean.json", {**data, "prompts": ["other", *data["prompts"][1:]]})
    assert kept_answers(searched, "mean").of == {}


def test_answers_of_a_rule_that_needs_text_are_for_one_text(searched):
    data = searched.read("answers/mean.json")
    for rule, known in (("fit", False), ("mean", True)):
        searched.write(f"answers/{rule}.json", {**data, "text_hash": "another"})
        assert bool(kept_answers(searched, rule).of) is known


def test_plans_that_cannot_generate_cost_nothing_else(swm, tmp_path, tokenizer, text_file, monkeypatch):
    """Where both attention layers are merged into convolutions, transformers cannot generate.

    Such plans are refused, but not where no trial of the model could be made.
    """
    monkeypatch.setattr("swm.stages.create.tried_out", lambda model: {})
    monkeypatch.setattr("swm.stages.search.needed_layers", lambda model: [])
    folder = tmp_path / "hybrid"
    settings = {"full_attn_idxs": [1, 4], "block_ff_dim": 64, "conv_L_cache": 3}
    tiny_model("lfm2", layers=6, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    swm("create", "h", "--model", folder, "--texts", text_file, "--count", "2", "--length", "16")
    for windows, answers in (("0-2,3-5", False), ("0-1", True)):
        code, out, message = swm("plan", "h", "--windows", windows, "--rule", "keep_first", "--json")
        assert code == 0, message
        assert json.loads(out)["perplexity"] > 1
        known = kept_answers(Experiment.open("h"), "keep_first").of
        assert bool(known[parse_windows(windows)]) is answers
    assert len(known[()]) == len(SAMPLE_PROMPTS)
