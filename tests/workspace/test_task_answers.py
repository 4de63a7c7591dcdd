"""Answers on disk: what is written is read back, and what does not match is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.errors import ExperimentError
from swm.evaluation.paired import paired
from swm.plan import MergePlan, Window
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment
from swm.workspace.housekeeping import copy_experiment
from swm.workspace.task_answers import packed, unpacked
from tests.reporting.test_compare import FACTS

TEXT = st.text(max_size=8)


@st.composite
def answers(draw):
    """A document's answer: to a question with choices, or written freely."""
    row = {"id": draw(TEXT), "correct": draw(st.sampled_from([0.0, 1.0, 0.5])), "question": draw(TEXT)}
    if draw(st.booleans()):
        return {**row, "right": draw(TEXT), "picked": draw(TEXT)}
    choices = draw(st.lists(TEXT, min_size=2, max_size=4))
    answer = draw(st.integers(0, len(choices) - 1))
    return {
        **row,
        "choices": choices,
        "answer": answer,
        "right": choices[answer],
        "picked": draw(st.sampled_from(choices)),
        "bytes": draw(st.none() | st.integers(1, 99)),
        "log_likelihoods": draw(st.lists(st.floats(-99, 0), min_size=len(choices), max_size=len(choices))),
    }


@given(st.lists(answers(), max_size=5))
def test_answers_come_back_as_they_were(rows):
    questions, columns = packed(rows)
    through_json = json.loads(json.dumps([questions, columns]))
    assert unpacked(*through_json) == rows


@given(st.lists(answers(), max_size=4), st.lists(answers(), max_size=4))
def test_files_of_questions_share_a_name_only_if_they_are_the_same(first, second):
    (one, by_first), (other, by_second) = packed(first), packed(second)
    assert (by_first["questions"] == by_second["questions"]) == (one == other)


def experiment():
    experiment = Experiment.create("e", ExperimentSettings("some-model"), FACTS)
    return experiment, experiment.create_run("first", MergePlan(6, (Window(1, 3),)), 0.9)


ROW = {"id": "a", "correct": 1.0, "question": "q", "choices": ["x", "y"], "answer": 1, "right": "y", "picked": "y"}
ROW |= {"bytes": 1, "log_likelihoods": [-2.0, -1.0]}


def test_two_runs_share_the_questions():
    e, first = experiment()
    first.save_documents({"boolq": [ROW]})
    e.run("baseline").save_documents(
        {"boolq": [{**ROW, "correct": 0.0, "picked": "x", "log_likelihoods": [-1.0, -2.0]}]}
    )
    assert len(list((e.folder / "questions").iterdir())) == 1
    assert first.documents() == {"tasks": {"boolq": [ROW]}}
    assert e.run("baseline").documents()["tasks"]["boolq"][0]["picked"] == "x"


def test_answers_without_their_questions_are_refused():
    e, run = experiment()
    run.save_documents({"boolq": [ROW]})
    (file,) = (e.folder / "questions").iterdir()
    questions = json.loads(file.read_text())
    for damaged, message in (
        ([], r"does not match .*\.json \(0 questions, but 1, 1, 1 answers\). Evaluate the run again"),
        (
            [{**questions["questions"][0], "choices": ["x", "y", "z"]}],
            "a question has 3 choices, its answer another number",
        ),
        ([{**questions["questions"][0], "answer": 2}], "answer 2 is not one of 2 choices"),
        ([{**questions["questions"][0], "answer": -1}], "questions.0.answer -1 is out of range"),
        ([{**questions["questions"][0], "bytes": 0}], "questions.0.bytes 0 is out of range"),
    ):
        file.write_text(json.dumps({**questions, "questions": damaged}))
        with pytest.raises(ExperimentError, match=message):
            run.documents()
    file.unlink()
    with pytest.raises(ExperimentError, match="does not exist. Run the step that writes it first"):
        run.documents()
    for content in ("{", '{"schema": 1, "task": "boolq", "questions": []}'):
        file.write_text(content)
        run.save_documents({"boolq": [ROW]})  # evaluating again mends it
        assert run.documents() == {"tasks": {"boolq": [ROW]}}


@pytest.mark.parametrize("change", [{"picked": [-1]}, {"picked": [2]}, {"log_likelihoods": [[-1.0]]}, {"correct": [2]}])
def test_columns_that_do_not_fit_are_refused(change):
    _, run = experiment()
    run.save_documents({"boolq": [ROW]})
    columns = json.loads((run.folder / "documents.json").read_text())["tasks"]["boolq"]
    run.save("documents", {"tasks": {"boolq": {**columns, **change}}})
    with pytest.raises(ExperimentError, match="documents.json cannot be read"):
        run.documents()


def test_a_question_without_a_length_has_no_bits_per_byte():
    _, run = experiment()
    row = {name: value for name, value in ROW.items() if name != "bytes"}
    run.save_documents({"boolq": [row, {**row, "id": "another"}]})
    (one,) = paired(run.documents(), run.documents(), "choice_logprob")
    assert one.difference == 0
    assert paired(run.documents(), run.documents(), "bits_per_byte") == []


def test_a_name_that_leads_elsewhere_is_refused():
    _, run = experiment()
    columns = {"questions": "../../secret", "correct": [1], "picked": [0], "log_likelihoods": [[-1.0, -2.0]]}
    run.save("documents", {"tasks": {"boolq": columns}})
    with pytest.raises(ExperimentError, match="documents.json cannot be read"):
        run.documents()


def test_answers_of_earlier_releases_are_read():
    _, run = experiment()
    old = {"id": "a", "correct": 1.0, "question": "q", "right": "y", "picked": "y"}
    run.save("documents", {"tasks": {"boolq": [old]}})
    assert run.documents() == {"tasks": {"boolq": [old]}}


def test_a_copy_of_an_example_finds_the_questions_that_the_examples_share():
    shipped = Experiment.open("example-demo")
    copy = copy_experiment(shipped, "mine")
    assert not (copy.folder / "questions").exists()
    assert copy.run("best-24").documents() == shipped.run("best-24").documents()
    assert len(copy.run("best-24").documents()["tasks"]["boolq"]) == 300
