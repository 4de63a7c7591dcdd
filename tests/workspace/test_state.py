"""Tests of swm.workspace.state."""

import os
import time
from dataclasses import replace

import psutil
import pytest

from swm.errors import JobError
from swm.plan import MergePlan
from swm.workspace.housekeeping import delete
from swm.workspace.state import State, this_process


def test_state_of_a_living_process_is_believed(experiment):
    experiment.write_state(State("search", "running", heartbeat=time.time(), **this_process()))
    assert experiment.state().status == "running"


@pytest.mark.parametrize("change", [{"pid": 2**22 - 1}, {"process_started": 1.0}, {"host": "elsewhere"}])
def test_state_of_a_process_that_is_gone_reads_interrupted(experiment, change):
    state = State("search", "running", heartbeat=time.time() - 3600, **this_process())
    experiment.write_state(replace(state, **change))
    assert experiment.state().status == "interrupted"


def test_state_on_another_machine_lives_while_its_heart_beats(experiment):
    state = replace(State("search", "running", heartbeat=time.time(), **this_process()), host="elsewhere")
    experiment.write_state(state)
    assert experiment.state().status == "running"


def test_deleting_is_refused_while_a_job_runs(experiment):
    experiment.write_state(State("search", "running", heartbeat=time.time(), **this_process()))
    with pytest.raises(JobError, match="has a job running"):
        delete(experiment)
    experiment.write_state(State("search", "done", **this_process()))
    run = experiment.create_run("a", MergePlan(6))
    run.write_state(State("recover", "running", heartbeat=time.time(), **this_process()))
    with pytest.raises(JobError, match="a has a job running"):
        delete(experiment)
    run.write_state(State("recover", "done", **this_process()))
    delete(experiment)
    assert not experiment.folder.exists()


def test_zombie_counts_as_ended(experiment):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    process = psutil.Process(pid)
    started = process.create_time()
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    state = State("search", "running", heartbeat=time.time(), **{**this_process(), "pid": pid})
    experiment.write_state(replace(state, process_started=started))
    try:
        assert experiment.state().status == "interrupted"
    finally:
        os.waitpid(pid, 0)
