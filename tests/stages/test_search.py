"""What a search leaves when it is cancelled: the plan that was asked for first, then those around it."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import swm.stages.search as stage
from swm.cli.main import main
from swm.errors import Cancelled
from swm.merging.apply import apply_plan
from swm.plan import MergePlan
from swm.search.kept_path import kept_answers, kept_path
from swm.stages.loading import calibration_of
from swm.stages.search import search_path
from swm.workspace.experiments import Experiment
from tests.conftest import tiny_model

FOCUS = 0.5


@pytest.fixture
def study(model_folder, text_file, home):
    place = ["--model", str(model_folder), "--texts", str(text_file), "--count", "3", "--length", "32"]
    main(["create", "study", *place])
    return Experiment.open("study")


def cancelled_at(windows):
    """Progress that cancels a search once so many windows were tried, and the texts that it was told."""
    told = []

    def progress(done, total, text):
        told.append(text)
        if text.endswith("windows tried") and int(text.split()[0]) >= windows and "perplexity" in " ".join(told):
            raise Cancelled

    return progress, told


def plain_perplexity(study, plan):
    """From the whole model, merged in memory and asked by transformers itself."""
    folder = study.settings.model
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = calibration_of(study, AutoTokenizer.from_pretrained(folder))
    merged = apply_plan(model, plan)
    with torch.no_grad():
        return math.exp(sum(float(merged(text[None], labels=text[None]).loss) for text in tokens) / len(tokens))


def test_a_cancelled_search_has_the_first_plan_with_its_perplexity_and_words(study, monkeypatch):
    monkeypatch.setattr(stage, "MEANWHILE", -1.0)  # only what is asked for
    progress, told = cancelled_at(0)
    with pytest.raises(Cancelled):
        search_path(study, low=0.05, focus=FOCUS, progress=progress, precision="exact", answers=True)
    first = next(place for place, text in enumerate(told) if text.startswith("perplexity"))
    assert first < len(told) - 1  # measured before the last windows were tried
    kept = kept_path(study, "rdsc")
    plan = kept.plan_at(FOCUS).plan
    assert plan.windows
    assert {*kept.perplexities} == {(), plan.windows}
    for windows, perplexity in kept.perplexities.items():
        assert perplexity == pytest.approx(plain_perplexity(study, MergePlan(4, windows)), rel=1e-4)
    assert {*kept_answers(study, "rdsc").of} == {(), plan.windows}
    assert kept.covered() < 0.999


def test_plans_around_the_first_are_measured_while_windows_are_still_tried(tmp_path, tokenizer, text_file, home):
    folder = tmp_path / "deep"
    tiny_model(num_hidden_layers=9).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    main(["create", "deep", "--model", str(folder), "--texts", str(text_file), "--count", "3", "--length", "32"])
    study, chosen, measure = Experiment.open("deep"), [], stage.measure_perplexities

    def noted(path, plans, *rest, **more):
        away = {
            step.plan.windows: max(step.low - FOCUS, FOCUS - step.high, 0.0)
            for step in path.intervals()
            if step.plan.windows not in path.perplexities
        }
        chosen.append(
            (len(path.similarities), [away.get(plan.windows) for plan in plans], min(away.values(), default=0))
        )
        return measure(path, plans, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "MEANWHILE", math.inf)  # whenever there is one
        patch.setattr(stage, "measure_perplexities", noted)
        path = search_path(study, low=0.01, focus=FOCUS, precision="exact")
    first, *between, last = chosen
    assert len(between) > 2
    assert first[0] < between[0][0] <= between[-1][0] <= last[0] == len(path.similarities)
    assert between[0][0] < last[0]
    assert [distances for _, distances, _ in between] == [[nearest] for _, _, nearest in between]
    assert {*path.perplexities} == {(), *(step.plan.windows for step in path.intervals())}
