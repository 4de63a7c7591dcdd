"""Jobs in real child processes: states, cancelling, one at a time, and messages of those that fail."""

import threading
import time

import pytest
import torch

from swm.errors import Cancelled, ExperimentError, JobError, SettingsError, SwmError
from swm.jobs.child import _wait_for, active_targets, call, cancel, start, stream
from swm.jobs.tracking import BESIDE, beside, tracked
from swm.plan import MergePlan
from swm.search.kept_path import kept_path
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment, delete
from swm.workspace.state import State, this_process


@pytest.fixture
def experiment(model_folder, text_file):
    from swm.stages.create import create_experiment

    return create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 3, 32))


def wait_for(condition, seconds=90):
    """True once the condition holds; False when it does not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_job_runs_in_a_child_and_leaves_its_result(experiment):
    start(experiment, "measure", ["measure", "study"])
    assert experiment.state().active
    assert [target.name for target, _ in active_targets([experiment])] == ["study"]
    assert wait_for(lambda: not experiment.state().active)
    assert experiment.state().status == "done"
    assert len(experiment.similarity("cka")["matrix"]) == 4


def test_second_job_for_the_same_target_is_refused(experiment):
    with tracked(experiment, "measure"):
        for again in (
            lambda: start(experiment, "search", ["search", "study"]),
            lambda: tracked(experiment, "search").__enter__(),
        ):
            with pytest.raises(JobError, match="study has a job running"):
                again()
    assert experiment.state().status == "done"


def test_job_of_another_target_waits_for_the_machine_and_can_be_cancelled_while_it_waits(experiment):
    run = experiment.run("baseline")
    with tracked(experiment, "measure"):
        start(run, "evaluate", ["evaluate", "study", "baseline", "--limit", "1"])
        assert wait_for(lambda: "waiting for another job" in run.state().text)
        assert run.state().status == "queued"
        cancel(run)
        assert wait_for(lambda: not run.state().active)
    assert run.state().status == "cancelled"


def test_cancelled_search_keeps_what_it_found_and_goes_on(experiment, monkeypatch):
    from swm.stages.search import search_path

    def impatient(done, total, text):
        if text.startswith("3 windows"):
            raise Cancelled

    with pytest.raises(Cancelled), tracked(experiment, "search"):
        search_path(experiment, low=0.1, progress=impatient)
    assert experiment.state().status == "cancelled"
    kept = kept_path(experiment, "rdsc").similarities
    assert len(kept) == 3
    whole = search_path(experiment, low=0.1)
    assert whole.covered() == pytest.approx(1)
    assert {key: whole.similarities[key] for key in kept} == kept


def test_failure_is_told_in_the_state(experiment):
    with pytest.raises(SettingsError), tracked(experiment, "measure"):
        raise SettingsError("The threshold is odd. Choose another.")
    state = experiment.state()
    assert (state.status, state.error) == ("failed", "The threshold is odd. Choose another.")
    with pytest.raises(ZeroDivisionError), tracked(experiment, "measure"):
        print(1 / 0)
    assert "Unexpected error: ZeroDivisionError" in experiment.state().error
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        with pytest.raises(JobError, match="Out of memory"), tracked(experiment, "measure"):
            raise error
        assert "Out of memory" in experiment.state().error


def test_child_that_cannot_start_is_reported(experiment):
    start(experiment, "measure", ["measure", "study", "--metric"])
    # for a moment it is interrupted: until whoever started it has seen how it ended
    assert wait_for(lambda: experiment.state().status == "failed")
    assert "expected one argument" in experiment.state().error


def test_killed_job_reads_interrupted_and_can_start_again(experiment):
    import os
    import signal

    pid = start(experiment, "search", ["search", "study", "--from", "0.01"])
    assert wait_for(lambda: experiment.state().pid == pid)
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: experiment.state().status == "interrupted")
    with tracked(experiment, "search"):
        pass
    assert experiment.state().status == "done"


def test_heart_beats_while_a_stage_is_silent(experiment, monkeypatch):
    monkeypatch.setattr("swm.jobs.tracking.HEARTBEAT_SECONDS", 0.05)
    threads = threading.active_count()
    with tracked(experiment, "measure") as tracker:
        before = experiment.state().heartbeat
        assert wait_for(lambda: experiment.state().heartbeat > before, 5)
        assert tracker.state.memory_bytes > 0
    assert wait_for(lambda: threading.active_count() == threads, 5)  # the heart stops with its job


def test_cancelling_nothing_is_told(experiment):
    with pytest.raises(JobError, match="has no job running"):
        cancel(experiment)
    experiment.write_state(State("search", "running", heartbeat=time.time(), host="elsewhere", pid=1))
    with pytest.raises(JobError, match="runs on elsewhere. Cancel it there"):
        cancel(experiment)
    experiment.write_state(State("search", "queued", heartbeat=time.time(), **this_process()))
    with pytest.raises(JobError, match="runs in this process"):
        cancel(experiment)


def test_call_gives_the_json_object_or_the_commands_own_message(experiment):
    assert "study" in [row["experiment"] for row in call(["list"])["experiments"]]
    with pytest.raises(JobError, match="There is no experiment nope"):
        call(["plan", "nope", "--threshold", "0.9"])


def test_stream_gives_an_answer_piece_by_piece(experiment):
    said = "".join(stream(["answer", "study", "baseline", "--prompt", "the old house", "--tokens", "6"]))
    from swm.evaluation.answers import Answer
    from swm.stages.loading import load_run

    assert said == "".join(Answer(*load_run(experiment.run("baseline"))).pieces("the old house", 6)) + "\n"
    with pytest.raises(JobError, match="The prompt is empty"):
        list(stream(["answer", "study", "baseline", "--prompt", ""]))


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_cancel_is_not_told_as_what_an_earlier_job_left(processes, experiment, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", processes)
    (experiment.folder / BESIDE).write_text("Process 1 of 2: Out of memory, weeks ago")
    with pytest.raises(Cancelled), tracked(experiment, "measure"):
        raise Cancelled
    assert experiment.state().status == "cancelled"


def test_what_ended_first_beside_is_told_and_nothing_grows_anew(experiment, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for error in (MemoryError(), RuntimeError("Connection closed by peer")):
        with pytest.raises((JobError, RuntimeError)), beside(experiment):
            raise error
    assert "Out of memory" in (experiment.folder / BESIDE).read_text()
    (experiment.folder / BESIDE).unlink()
    with pytest.raises(KeyError), beside(experiment):
        raise KeyError("place")
    assert "Process 0 of 3: Unexpected error: KeyError: 'place'" in (experiment.folder / BESIDE).read_text()
    delete(experiment)
    with pytest.raises(JobError), beside(experiment):
        raise MemoryError
    assert not experiment.folder.exists()


def test_shipped_experiment_takes_no_jobs(experiment, monkeypatch):
    monkeypatch.setattr("swm.workspace.names.SHIPPED", experiment.folder.parent)
    before = {file: file.read_bytes() for file in experiment.folder.rglob("*") if file.is_file()}
    with pytest.raises(JobError, match="read-only"):
        start(experiment, "measure", ["measure", "study"])
    with pytest.raises(ExperimentError, match="cannot be changed"):
        experiment.save_similarity("cka", {})
    assert {file: file.read_bytes() for file in experiment.folder.rglob("*") if file.is_file()} == before


def test_a_demo_starts_cancels_deletes_and_writes_nothing(experiment, monkeypatch):
    monkeypatch.setenv("SWM_DEMO", experiment.name)
    before = sorted(experiment.folder.rglob("*"))
    for act in (
        lambda: start(experiment, "measure", ["measure", experiment.name]),
        lambda: cancel(experiment),
        lambda: delete(experiment),
        lambda: Experiment.create("new", ExperimentSettings("some-model"), experiment.model_facts),
        lambda: experiment.create_run("new", MergePlan(experiment.layer_count)),
        lambda: tracked(experiment, "measure").__enter__(),
    ):
        with pytest.raises(SwmError, match="demo"):
            act()
    assert sorted(experiment.folder.rglob("*")) == before


def test_the_end_of_a_job_says_nothing_of_the_one_started_after_it(experiment):
    class Ended:
        def wait(self):
            return 1

    now = time.time()
    first = State("measure", "queued", started=now, heartbeat=now, **this_process())
    second = State("measure", "queued", started=now + 1, heartbeat=now + 1, **this_process())
    experiment.write_state(second)
    _wait_for(Ended(), experiment, first)
    assert experiment.state() == second
    experiment.write_state(first)
    _wait_for(Ended(), experiment, first)
    assert experiment.state().status == "failed"
