"""Tests of swm.jobs.tracking."""

import os
import signal
import threading
import time

import pytest
import torch

from swm.errors import Cancelled, JobError, SettingsError
from swm.jobs.child import start
from swm.jobs.tracking import BESIDE, beside, tracked
from swm.search.kept_path import kept_path
from swm.workspace.housekeeping import delete
from tests.jobs.child_cases import wait_for


def test_second_job_for_the_same_target_is_refused(experiment):
    with tracked(experiment, "measure"):
        for again in (
            lambda: start(experiment, "search", ["search", "study"]),
            lambda: tracked(experiment, "search").__enter__(),
        ):
            with pytest.raises(JobError, match="study has a job running"):
                again()
    assert experiment.state().status == "done"


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


def test_heart_beats_while_a_stage_is_silent(experiment, monkeypatch):
    monkeypatch.setattr("swm.jobs.tracking.HEARTBEAT_SECONDS", 0.05)
    threads = threading.active_count()
    with tracked(experiment, "measure") as tracker:
        before = experiment.state().heartbeat
        assert wait_for(lambda: experiment.state().heartbeat > before, 5)
        assert tracker.state.memory_bytes > 0
    assert wait_for(lambda: threading.active_count() == threads, 5)  # the heart stops with its job


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_cancel_is_not_told_as_what_an_earlier_job_left(processes, experiment, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", processes)
    (experiment.folder / BESIDE).write_text("Process 1 of 2: Out of memory, weeks ago")
    with pytest.raises(Cancelled), tracked(experiment, "measure"):
        raise Cancelled
    assert experiment.state().status == "cancelled"


def test_what_another_process_reported_first_is_told_and_a_deleted_folder_stays_deleted(experiment, monkeypatch):
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


def test_a_signal_that_comes_while_the_heartbeat_asks_is_not_lost(experiment, monkeypatch):
    calls, begun, again = [], threading.Event(), threading.Event()

    def signalled(target, cluster_job):
        assert begun.wait(60)  # the heartbeat starts before the stage has its tracker
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            while not tracker.cancelled:  # the main thread runs the handler
                time.sleep(0.001)
        else:  # what the heartbeat makes of the first answer is done
            again.set()
        return False

    monkeypatch.setattr("swm.jobs.tracking.HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr("swm.workspace.experiments.Experiment.asked_to_stop", signalled)
    with tracked(experiment, "measure") as tracker:
        begun.set()
        assert again.wait(60)
        with pytest.raises(Cancelled):
            tracker(1, 2, "working")
