"""The examples that ship: they tell the story that Home leads with, and their figures follow from their own answers."""

import json
import math
from pathlib import Path

import pytest

from swm.disk.names import SHIPPED
from swm.search.kept_path import kept_path
from swm.workspace.controls import control_of
from swm.workspace.experiments import Experiment

RUNS = sorted(file.parent for file in SHIPPED.glob("*/runs/*/documents.json"))


def test_the_demo_has_the_walk_twice_best_and_the_control_all_healed_and_scored_alike():
    demo = Experiment.open("example-demo")
    layers = {run.name: (run.plan.layers_left, run.plan.rule) for run in demo.runs() if run.plan.windows}
    assert layers == {"walk-28": (28, "rdsc"), "walk-24": (24, "rdsc"), "best-24": (24, "fit")}
    for name in layers:
        assert control_of(demo.run(name)).name == "control"
    conditions = {str(run.scores()["conditions"]["versions"]) for run in demo.runs()}
    assert len(conditions) == 1
    for run in demo.runs():
        scores = run.scores()
        assert scores["limit"] >= 200
        assert len(scores["tasks"]) == 7
    newest = max(demo.runs(), key=lambda run: run.settings.get("created", 0.0))
    assert newest.name == "best-24"  # Home leads with it


def answers(folder):
    """By task, (correct, question, log-likelihoods) of each document; questions are read from their own file."""
    for task, columns in json.loads((folder / "documents.json").read_text())["tasks"].items():
        file = SHIPPED / "questions" / f"{columns['questions']}.json"
        questions = json.loads(file.read_text())["questions"]
        yield task, list(zip(columns["correct"], questions, columns["log_likelihoods"], strict=True))


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: f"{folder.parents[1].name}/{folder.name}")
def test_scores_follow_from_the_answers(folder: Path):
    scores = json.loads((folder / "scores.json").read_text())["tasks"]
    for task, rows in answers(folder):
        assert scores[task]["documents"] == len(rows)
        assert scores[task]["value"] == pytest.approx(sum(correct for correct, _, _ in rows) / len(rows))
        if not scores[task].get("choice_logprob"):
            continue
        certain, bits = [], []
        for _, question, likelihoods in rows:
            right = likelihoods[question["answer"]]
            certain.append(-math.log(sum(math.exp(min(700, other - right)) for other in likelihoods)))
            if question["bytes"]:
                bits.append(-right / math.log(2) / question["bytes"])
        assert scores[task]["choice_logprob"]["value"] == pytest.approx(sum(certain) / len(certain), abs=1e-4)
        assert (task == "boolq") == (not bits)
        if bits:
            assert scores[task]["bits_per_byte"]["value"] == pytest.approx(sum(bits) / len(bits), abs=1e-4)


@pytest.mark.parametrize("name", ["example-healing", "example-methods", "example-study"])
def test_the_threshold_of_a_run_shows_its_plan(name):
    example = Experiment.open(name)
    path = kept_path(example, "rdsc")
    runs = [run for run in example.runs() if run.plan.rule == "rdsc" and run.settings.get("threshold")]
    assert runs
    for run in runs:
        assert path.plan_at(run.settings["threshold"]).plan.windows == run.plan.windows, run.name


def test_the_examples_stay_below_eight_megabytes():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 8e6
