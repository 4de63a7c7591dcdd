"""Jobs that the kernel kills for lack of memory: what is said of them, with real kills inside a control group."""

import os
import signal
import subprocess
import sys

import pytest

from swm.disk.machine import memory_kills
from swm.errors import JobError
from swm.jobs.cluster import BEGUN, LOG
from swm.jobs.tracking import tracked
from swm.workspace.tracked import CLUSTER_JOB
from tests.jobs.memory import limited
from tests.jobs.sweep_cases import ROOT

HUNGRY = """
from swm.jobs.tracking import tracked
from swm.workspace.experiments import Experiment
with tracked(Experiment.open("study"), "measure") as tracker:
    {work}
"""
TAKES_ALL = "taken = [bytearray(2**24) for _ in range(2**14)]"
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"

pytestmark = pytest.mark.cold  # a process that takes all memory must have none to begin with


def on_node(experiment, work, before=()):
    environment = {**os.environ, CLUSTER_JOB: "swm-1", LOG: str(experiment.folder / "job.log")}
    command = [sys.executable, "-m", "swm.jobs.on_node", *before, sys.executable, "-c", HUNGRY.format(work=work)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_a_job_that_its_node_kills_for_memory_is_told_as_that(experiment):
    with limited(300 * 2**20) as before:
        done = on_node(experiment, TAKES_ALL, before)
    assert done.returncode == 128 + signal.SIGKILL
    assert "The job was ended by SIGKILL. Its machine ran out of memory." in done.stderr
    state = experiment.state()
    assert state.status == "interrupted"
    assert "The process was killed while this machine ran out of memory" in state.error
    assert "--dtype bfloat16, a smaller batch or shorter texts, and start it again" in state.error


@pytest.mark.parametrize(("work", "status"), [(DIES, "interrupted"), ("1 / 0", "failed"), ("pass", "done")])
def test_other_ends_are_told_as_what_they_are(work, status, experiment):
    done = on_node(experiment, work)
    assert experiment.state().status == status
    assert "memory" not in experiment.state().error + done.stderr
    assert (done.returncode == 0) == (status == "done")


def test_a_cancel_reaches_the_job(experiment):
    work = "import time; print('up', flush=True); [(time.sleep(0.1), tracker(0, 0, 'works')) for _ in range(600)]"
    environment = {**os.environ, CLUSTER_JOB: "swm-1", LOG: str(experiment.folder / "job.log")}
    command = [sys.executable, "-m", "swm.jobs.on_node", sys.executable, "-c", HUNGRY.format(work=work)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as job:
        assert [job.stdout.readline() for _ in range(2)] == [f"{BEGUN}\n", "up\n"]
        job.send_signal(signal.SIGTERM)
        assert job.wait(20) == 1
    assert experiment.state().status == "cancelled"


def test_of_several_processes_one_that_is_killed_for_memory_is_told(experiment, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    def stage():
        with tracked(experiment, "measure"), limited(60 * 2**20) as before:
            kills = memory_kills()
            subprocess.run([*before, sys.executable, "-c", TAKES_ALL], check=False, timeout=60)
            assert memory_kills() > kills
            raise RuntimeError("Connection closed by peer")  # what the first process sees of it

    with pytest.raises(JobError, match="ran out of memory during the stage, and the kernel killed a process"):
        stage()
    assert experiment.state().status == "failed"
