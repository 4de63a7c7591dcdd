"""Methods of studies against each other, and their means over seeds, by pencil."""

import csv
import io
import math
from dataclasses import asdict

import pytest
from scipy.stats import t

from swm.evaluation.paired import mean_answers
from swm.plan import MergePlan, Window
from swm.reporting.figures import csv_text
from swm.reporting.numbers import points
from swm.settings import ExperimentSettings, preset_settings
from swm.studies.rows import study_rows
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run
from tests.reporting.test_compare import FACTS, scores


@pytest.fixture
def experiment():
    experiment = Experiment.create("study", ExperimentSettings("some-model"), FACTS)
    experiment.run("baseline").save("scores", scores(20.0, 0.6, 0.8))
    experiment.create_run("first", MergePlan(6, (Window(1, 3),)), 0.9)
    return experiment


def answered(*correct):
    rows = [{"id": f"{i}", "correct": c, "question": "", "right": "", "picked": ""} for i, c in enumerate(correct)]
    return {"tasks": {"boolq": rows}}


def test_averages_are_compared_at_equal_size_over_the_same_documents(experiment):
    for name, method, layers, correct in (
        ("best-4", "best", 4, (1, 1, 1, 0)),
        ("sleb-4", "sleb", 4, (0, 1, 0, 0)),
        ("sleb-5", "sleb", 5, (1, 1, 1, 1)),
    ):
        run = experiment.create_run(name, MergePlan(6, (Window(1, 7 - layers),)), method=method)
        run.remember(merge={"parameters": 200 + 100 * layers, "size_bytes": 1})
        run.save("scores", scores(50.0, 0.5, 0.6))
        run.save("documents", answered(*correct))
    rows = {row.run: row for row in study_rows(experiment)}
    assert "first" not in rows  # no study made it
    assert [rows[name].against for name in ("baseline", "best-4", "sleb-5")] == [None] * 3
    # Two of four lost by sleb, none gained. The share gained of two is at most 1 - 0.025^(1/2), exactly.
    assert rows["sleb-4"].against_method == "best"
    found = rows["sleb-4"].difference
    names = ("difference", "low", "high", "documents")
    assert {name: found[name] for name in names} == pytest.approx(
        {
            "difference": -0.5,
            "low": -0.5,
            "high": (2 * (1 - 0.025**0.5) - 1) * 2 / 4,
            "documents": 4,
        }
    )
    assert points(found) == "too few documents"
    assert points({**found, "verdict": "not significant"}) == "unclear [-50.0, +34.2]"  # its interval contains 0
    assert points(None) == "–"
    assert {row.run: row.difference for row in study_rows(experiment, "sleb")}["best-4"]["difference"] == 0.5
    (line,) = [row for row in csv.DictReader(io.StringIO(csv_text(list(rows.values())))) if row["run"] == "sleb-4"]
    assert (line["against"], float(line["against_difference"])) == ("best", -0.5)


def healed(experiment, name, method, seed, found, correct, steps=3):
    """A run of a study, scored before its recovery and after."""
    run = experiment.create_run(name, MergePlan(6, (Window(1, 3),)), method=method)
    run.remember(merge={"parameters": 600, "size_bytes": 1})
    run.save("scores", scores(50.0, 0.3, 0.3))
    run.discard_scores("aside")
    run.remember(recovery=asdict(preset_settings("quick", steps=steps, seed=seed)))
    run.save("scores", scores(*found))
    run.save("documents", answered(*correct))
    return run


def test_what_is_healed_with_several_seeds_is_one_row_of_means(experiment):
    healed(experiment, "best-4", "best", 1, found=(20.0, 0.5, 0.7), correct=(1, 1, 0, 0))
    healed(experiment, "best-4-seed-2", "best", 2, found=(45.0, 0.6, 0.8), correct=(1, 0, 0, 0))
    healed(experiment, "sleb-4", "sleb", 1, found=(40.0, 0.5, 0.5), correct=(0, 0, 0, 1))
    rows = study_rows(experiment)
    assert [(row.method, row.stage, row.seeds) for row in rows[1:]] == [
        ("best", "merged", ()), ("sleb", "merged", ()), ("best", "recovered", (1, 2)), ("sleb", "recovered", (1,)),
    ]  # fmt: skip
    assert rows[1].runs == rows[3].runs == ("best-4", "best-4-seed-2")
    best, sleb = rows[3:]
    assert best.perplexity == best.perplexities["lambada"]["value"] == pytest.approx(30.0)  # of 20 and 45
    spread = math.log(45 / 20) / 2**0.5 / 2**0.5  # sample deviation of two logarithms, over the root of two
    above = (math.log(21 / 20) + math.log(46 / 45)) / 2
    assert best.perplexities["lambada"]["high"] == pytest.approx(
        30 * math.exp(math.hypot(above, t.ppf(0.975, 1) * spread))
    )
    assert best.scores["boolq"]["value"] == pytest.approx(0.55)
    assert best.scores["boolq"]["stderr"] == pytest.approx(math.hypot(0.03, 0.05))
    assert (best.average, best.average_by_seed) == (pytest.approx(0.65), pytest.approx((0.6, 0.7)))
    assert best.average_stderr == pytest.approx(math.hypot(0.03 / 2**0.5, 0.05))
    # best answers 1, 1/2, 0, 0: differences -1, -1/2, 0, 1, mean -1/8; -1/4 from its first seed, 0 from its second
    error = math.sqrt(sum((d + 0.125) ** 2 for d in (-1, -0.5, 0, 1)) / 3 / 4)
    over_seeds = t.ppf(0.975, 1) * 0.25 / 2**0.5 / 2**0.5
    found = sleb.difference
    assert (found["difference"], found["documents"]) == (-0.125, 4)
    assert t.ppf(0.975, 3) * error > 1.125  # more than a share can change, so the interval ends at 1
    assert found["high"] == pytest.approx(-0.125 + math.hypot(1.125, over_seeds))
    accuracy = sleb.against.scores["accuracy"]
    assert accuracy["over_seeds"] == pytest.approx([-0.125 - over_seeds, -0.125 + over_seeds])
    assert accuracy["over_documents"] == [-1.0, 1.0]
    lines = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert [line["seeds"] for line in lines] == ["", "", "", "1 2", "1"]


def test_runs_healed_or_measured_otherwise_have_rows_of_their_own(experiment):
    healed(experiment, "best-4", "best", 1, found=(20.0, 0.5, 0.7), correct=(1, 1))
    for seed in (2, 3):
        healed(experiment, f"best-4-seed-{seed}", "best", seed, found=(45.0, 0.6, 0.8), correct=(1, 0), steps=9)
    run = healed(experiment, "best-4-seed-4", "best", 4, found=(46.0, 0.6, 0.8), correct=(1, 0), steps=9)
    run.save("scores", {**scores(46.0, 0.6, 0.8), "tasks": {}})
    rows = [row for row in study_rows(experiment) if row.stage == "recovered"]
    assert [(row.runs, row.seeds, round(row.perplexity)) for row in rows] == [
        (("best-4",), (1,), 20), (("best-4-seed-2", "best-4-seed-3"), (2, 3), 45), (("best-4-seed-4",), (4,), 46),
    ]  # fmt: skip


def test_answers_of_several_seeds_are_shares_over_what_all_answered():
    first, second = answered(1, 0, 1), answered(1, 1)
    assert mean_answers([first]) is first
    found = mean_answers([first, second])["tasks"]["boolq"]
    assert found["accuracy"] == {"0": 1.0, "1": 0.5}


def test_answers_are_read_once_for_a_study_and_again_once_they_were_written_again(experiment, monkeypatch):
    for seed, name in ((1, "best-4"), (2, "best-4-seed-2")):
        healed(experiment, name, "best", seed, found=(20.0, 0.5, 0.7), correct=(1, 1, 0, 0))
    run = healed(experiment, "sleb-4", "sleb", 1, found=(40.0, 0.5, 0.5), correct=(0, 0, 0, 1))
    reads = []
    read = Run.documents
    monkeypatch.setattr(Run, "documents", lambda run, *rest: (reads.append((run.name, *rest)), read(run, *rest))[1])
    sleb = study_rows(experiment)[-1]
    study_rows(experiment, "sleb")
    assert sorted(reads) == sorted({*reads})
    assert len(reads) == 6  # the original, three healed models, and two before healing: both seeds merge the same
    run.save("documents", answered(1, 1, 1, 1))
    again = study_rows(experiment)[-1]
    assert again.difference["difference"] > sleb.difference["difference"]
