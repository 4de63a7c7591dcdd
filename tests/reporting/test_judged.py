"""Every row against the original and its control, from runs on disk."""

from dataclasses import asdict

import pytest

from swm.plan import MergePlan, Window
from swm.reporting.compare import compare
from swm.reporting.figures import cost_lines, csv_text, table
from swm.reporting.judged import judged
from swm.reporting.names import row_name
from swm.settings import ExperimentSettings, preset_settings
from swm.workspace.experiments import Experiment
from tests.reporting.test_compare import FACTS, scores


def answer(number, correct, likelihoods):
    row = {"id": f"{number}", "correct": correct, "question": "", "choices": ["x", "y"], "answer": 0}
    return {**row, "right": "x", "picked": "x" if correct else "y", "bytes": 1, "log_likelihoods": likelihoods}


def scored(run, right, total=40):
    """Scores of a run that answers the first `right` of each task's documents correctly."""
    values = scores(20.0 + right, right / total, right / total)
    for task in values["tasks"].values():
        task |= {"chance": 0.5, "choice_logprob": {"value": -1.0, "low": -1.1, "high": -0.9}}
    rows = [answer(i, float(i < right), [-1.0, -1.0 - right / 10]) for i in range(total)]
    run.save_documents({"boolq": rows, "piqa": rows})
    run.save("scores", values)


@pytest.fixture
def experiment():
    experiment = Experiment.create("e", ExperimentSettings("some-model"), FACTS)
    scored(experiment.run("baseline"), 10)
    for name, windows, right in (("first", (Window(1, 3),), 18), ("control", (), 30)):
        run = experiment.create_run(name, MergePlan(6, windows))
        run.remember(merge={"parameters": 800 if windows else 1000, "size_bytes": 3200 if windows else 4000})
        if windows:
            scored(run, 9)
            run.discard_scores("aside")
        run.remember(recovery=asdict(preset_settings("quick")))
        scored(run, right)
    return experiment


def test_a_gain_over_the_original_can_be_a_loss_against_the_control(experiment):
    rows = {row_name(row): row for row in judged(compare(experiment))}
    assert set(rows) == {"original", "first (merged + LoRA)", "control (original + LoRA)"}
    first, control = rows["first (merged + LoRA)"], rows["control (original + LoRA)"]
    assert first.against_original.scores["accuracy"]["difference"] == pytest.approx(0.2)
    assert first.against_control.scores["accuracy"]["difference"] == pytest.approx(-0.3)
    assert first.against_control.reference == "control (original + LoRA)"
    assert "accuracy 30 points lower" in str(first.verdict)
    assert (first.control, first.control_run, control.control, control.control_run) == (
        False,
        "control",
        True,
        None,
    )
    assert control.against_control is None
    assert control.against_original.scores["accuracy"]["difference"] == pytest.approx(0.5)
    merged = first.before_recovery
    assert (merged.control_run, merged.against_control) == (None, None)
    assert merged.against_original.scores["accuracy"]["difference"] == pytest.approx(-1 / 40)
    assert rows["original"].against_original is None


def test_averages_of_other_documents_are_not_judged(experiment):
    values = experiment.run("control").scores()
    values["tasks"]["piqa"]["documents"] = 20
    experiment.run("control").save("scores", values)
    rows = {row.run: row for row in judged(compare(experiment))}
    assert rows["first"].against_control.scores == {}
    assert "accuracy" not in str(rows["first"].verdict)
    assert "Scores are not compared with those of control (original + LoRA)" in str(rows["first"].verdict)


def test_an_original_scored_on_other_tasks_is_no_obstacle(experiment):
    baseline = experiment.run("baseline")
    values = baseline.scores()
    easy = {**values["tasks"]["piqa"], "value": 0.9}
    baseline.save("scores", {**values, "tasks": {**values["tasks"], "arc_easy": easy}})
    rows = {row.run: row for row in judged(compare(experiment))}
    assert rows["first"].tasks_above_chance == ("arc_easy",)
    assert rows["first"].against_control.above_chance is None
    assert rows["first"].against_original.scores == {}


def test_a_damaged_file_of_answers_costs_only_its_own_comparison(experiment):
    (experiment.run("first").folder / "documents.json").write_text('{"schema": 1, "tasks": [')
    rows = {row.run: row for row in judged(compare(experiment))}
    assert rows["first"].against_control is None
    assert "documents.json cannot be read" in str(rows["first"].verdict)
    assert rows["control"].against_original.scores["accuracy"]["difference"] == pytest.approx(0.5)


def test_only_the_shown_rows_are_judged(experiment):
    rows = {row.run: row for row in judged(compare(experiment), [("e", "control", "recovered")])}
    assert rows["control"].verdict
    assert rows["first"].verdict is None


def test_text_and_csv_have_the_verdicts_and_the_costs(experiment):
    rows = judged(compare(experiment))
    text = table(rows)
    end = "\n\nIn the verdicts, brackets are 95 % intervals."
    assert text.endswith(f"first (merged + LoRA): {rows[2].verdict}{end}")
    assert "average choice log-probability, nats" in text
    assert "-1.00 [-1.07, -0.93]" in text  # two tasks with a reach of 0.1 each
    assert str(rows[1].verdict) in csv_text(rows)
    assert [line["compared with"] for line in cost_lines(rows)] == [
        "original", "control (original + LoRA)", "original",
    ]  # fmt: skip


@pytest.mark.parametrize(("right", "above"), [(20, []), (30, ["boolq", "piqa"])])
def test_a_task_is_above_chance_if_its_interval_is(experiment, right, above):
    scored(experiment.run("baseline"), right)
    rows = compare(experiment)
    assert all([*row.tasks_above_chance] == above for row in rows)
    assert any("tasks above chance" in line for line in table(rows).splitlines()) == bool(above)
    assert ("boolq, % (acc, 40 documents; the original is not above chance, 50 %)" in table(rows)) != bool(above)
