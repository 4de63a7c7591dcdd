"""Which pairs of methods a score tells apart, by pencil."""

import math
import re

import pytest

from swm.plan import MergePlan, Window
from swm.settings import ExperimentSettings
from swm.studies.findings import conclusion, pairs_decided, threshold_conclusion
from swm.workspace.experiments import Experiment
from tests.reporting.test_compare import FACTS, scores
from tests.rows import a_row

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


def cell(method, layers, value, reach=0.1, stage="merged"):
    entry = {"value": value, "low": value - reach, "high": value + reach}
    run = "baseline" if method == "original" else method
    return a_row(run=run, method=method, layers=layers, stage=stage, perplexities={"squad": entry})


def test_the_conclusion_names_who_is_ahead_how_often_and_the_papers_loss():
    rows = [cell("original", 30, 10.0), cell("sleb", 24, 15.0), cell("rdsc", 24, 40.0), cell("best", 24, 12.0)]
    assert conclusion(rows, "squad") == (
        "Beam search, fitted (best) is ahead at every depth: with 24 layers, its perplexity on SQuAD is 1.20 times "
        "the original's; the paper's search: 4.00 times the original's."
    )
    rows += [cell("sleb", 20, 20.0), cell("best", 20, 20.1), cell("sleb", 18, 30.0), cell("best", 18, 50.0)]
    said = conclusion(rows, "squad")
    assert said.startswith("SLEB is ahead at 2 of 3 depths: with 20 layers")
    assert said.endswith("2.00 times the original's (within noise of Beam search, fitted (best)).")
    healed = [cell("sleb", 24, 14.0, stage="recovered"), cell("rdsc", 24, 13.0, stage="recovered")]
    assert conclusion([*rows, *healed], "squad").startswith("Sliding window (rdsc) is ahead after healing")
    assert conclusion(rows[:2], "squad") == ""
    assert conclusion(rows, "lambada") == ""


def test_the_conclusion_is_of_the_score_shown_and_calls_one_model_one():
    def scored(method, value, windows=(), layers=24):
        run = "baseline" if method == "original" else method
        own = {"average": value, "average_stderr": 0.001, "stage": "recovered", "windows": windows}
        return a_row(run=run, method=method, layers=layers, **own)

    same = (Window(3, 9),)
    rows = [scored("original", 0.5, layers=30), scored("sleb", 0.45), scored("best", 0.47, same)]
    assert conclusion(rows, "accuracy") == (
        "Beam search, fitted (best) is ahead after healing at every depth: with 24 layers, its average accuracy is "
        "47.0 % (original: 50.0 %)."
    )
    twice = conclusion([*rows, scored("angular", 0.47, same)], "accuracy")
    assert twice.startswith("Beam search, fitted (best) and Deeper layers (angular) (the same model) are ahead")
    assert "noise" not in twice


def test_scores_at_thresholds_say_how_many_questions_would_tell_them_apart():
    def answered(*values, documents):
        error = [math.sqrt(value * (1 - value) / documents) for value in values]
        return [{"value": v, "stderr": e, "documents": documents} for v, e in zip(values, error, strict=True)]

    few = threshold_conclusion(answered(0.5, 0.4, documents=50))
    assert few.startswith("These scores support no conclusion: 50 questions")
    needed = int(re.search(r"About ([\d,]+) questions", few).group(1).replace(",", ""))
    assert "support no conclusion" in threshold_conclusion(answered(0.5, 0.4, documents=needed - 150))
    assert threshold_conclusion(answered(0.5, 0.4, documents=needed)).startswith("The best and the worst")
    assert "would be needed" not in threshold_conclusion(answered(0.5, 0.5, documents=50))
    assert threshold_conclusion(answered(0.5, documents=50)) == ""
