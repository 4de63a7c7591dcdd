"""Which pairs of methods a score tells apart, by pencil."""

import pytest

from swm.plan import MergePlan, Window
from swm.settings import ExperimentSettings
from swm.studies.findings import pairs_decided
from swm.workspace.experiments import Experiment
from tests.reporting.test_compare import FACTS, scores

DOCUMENTS = 40


def add(experiment, name, perplexity, correct, certain):
    """A run of method `name` with 4 layers: its perplexity, share of right answers and certainty of them."""
    run = experiment.create_run(name, MergePlan(6, (Window(1, 3),)), method=name)
    run.remember(merge={"parameters": 600, "size_bytes": 1})
    rows = [
        {
            "id": f"{i}", "correct": float(i < correct), "question": "", "choices": ["x", "y"], "answer": 0,
            "right": "x", "picked": "x", "bytes": 2, "log_likelihoods": [-1.0 - 0.01 * (i % 3), -1.0 - certain],
        }
        for i in range(DOCUMENTS)
    ]  # fmt: skip
    run.save_documents({"boolq": rows, "piqa": rows})
    run.save("scores", scores(perplexity, correct / DOCUMENTS, correct / DOCUMENTS))


@pytest.fixture
def experiment():
    experiment = Experiment.create("study", ExperimentSettings("some-model"), FACTS)
    experiment.run("baseline").save("scores", scores(20.0, 0.6, 0.8))
    return experiment


def test_a_score_decides_a_pair_if_its_interval_leaves_out_no_difference(experiment):
    add(experiment, "best", 30.0, correct=20, certain=2.0)
    add(experiment, "sleb", 40.0, correct=21, certain=1.0)  # surely less certain, accuracy hardly another
    add(experiment, "angular", 40.5, correct=5, certain=3.0)  # level with sleb in perplexity; the most certain one
    runs = {"best", "sleb", "angular"}
    (row,) = pairs_decided(experiment, runs)  # all are within three times the original's perplexity
    assert (row.stage, row.pairs, row.documents) == ("merged", 2, DOCUMENTS)
    # accuracy: 21 against 20 is not decided, 5 against 20 is
    assert +row.decided == {"accuracy": 1, "choice_logprob": 2}
    assert +row.against_perplexity == {"choice_logprob": 1}
    assert pairs_decided(experiment, {"best"}) == []


def test_pairs_of_usable_models_are_counted_apart_from_ruined_ones(experiment):
    """The original's perplexity is 20, so 60 is the limit."""
    add(experiment, "best", 30.0, correct=20, certain=2.0)
    add(experiment, "sleb", 55.0, correct=21, certain=1.0)
    add(experiment, "angular", 900.0, correct=2, certain=0.1)
    every, near = pairs_decided(experiment, {"best", "sleb", "angular"})
    assert (every.near, every.pairs, every.decided["accuracy"]) == (False, 3, 2)
    assert (near.near, near.pairs, +near.decided) == (True, 1, {"choice_logprob": 1})
    assert pairs_decided(experiment, {"best", "sleb"})[0].near is False
    assert len(pairs_decided(experiment, {"best", "sleb"})) == 1


def test_other_depths_and_answers_without_likelihoods_are_no_pairs(experiment):
    add(experiment, "best", 30.0, correct=20, certain=2.0)
    add(experiment, "sleb", 40.0, correct=20, certain=1.0)
    run = experiment.run("sleb")
    old = [{"id": f"{i}", "correct": 1.0, "question": "", "right": "", "picked": ""} for i in range(DOCUMENTS)]
    run.save("documents", {"tasks": {"boolq": old, "piqa": old}})
    deeper = experiment.create_run("angular", MergePlan(6, (Window(1, 2),)), method="angular")
    deeper.remember(merge={"parameters": 700, "size_bytes": 1})
    deeper.save("scores", scores(99.0, 0.5, 0.5))
    assert pairs_decided(experiment, {"best", "sleb", "angular"}) == []
