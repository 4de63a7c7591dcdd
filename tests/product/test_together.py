"""Two processes at once, an app that is killed, a restarted machine, memory that runs out: with real processes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from swm.disk.machine import _memory_cgroups, check_memory, free_memory_bytes
from swm.errors import ModelError
from swm.models.load import load_model
from swm.plan import MergePlan, Window
from swm.search.kept_path import kept_path
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.workspace.experiments import Experiment, list_experiments
from swm.workspace.state import State, this_process
from tests.jobs.test_child import wait_for
from tests.reporting.test_compare import FACTS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(model_folder, text_file):
    return create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 3, 32))


def python(code, **options):
    """A Python process of its own on our home."""
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options
    )


def ended(processes):
    """What each wrote, and its exit code."""
    return [(process.returncode, out, err) for process in processes for out, err in [process.communicate(timeout=120)]]


RACE = """
import sys, time
from swm.errors import SwmError
from swm.jobs.child import start
from swm.plan import MergePlan, Window
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment
from swm.workspace.housekeeping import delete
time.sleep(max(0, {at} - time.time()))
try:
    {what}
except SwmError as error:
    sys.exit(str(error))
"""

WORK = """
import sys, time
from swm.errors import SwmError
from swm.jobs.tracking import tracked
from swm.workspace.experiments import Experiment
try:
    with tracked({target}, "measure") as progress:
        for n in range({rounds}):
            time.sleep(0.1)
            progress(n, {rounds}, "working")
except SwmError as error:
    sys.exit(str(error))
"""


def race(*what):
    """Processes that do each of these at the same moment."""
    at = time.time() + 1.5
    return ended([python(RACE.format(at=at, what=each)) for each in what])


def test_two_apps_that_start_the_same_job_start_it_once(study):
    click = "start(Experiment.open('study'), 'measure', ['measure', 'study']); time.sleep(1)"
    results = race(*[click] * 4)
    assert sorted(code for code, _, _ in results) == [0, 1, 1, 1], results
    assert all("study has a job running" in err for code, _, err in results if code)
    assert wait_for(lambda: not study.state().active)
    assert study.state().status == "done", study.state()


def test_of_two_that_create_the_same_experiment_one_wins():
    facts = {**FACTS, "width": 8, "dtype": "float32"}
    results = race(
        *[f"Experiment.create('same', ExperimentSettings('m{n}'), {facts!r}); print('m{n}')" for n in range(4)]
    )
    winners = [out.strip() for code, out, _ in results if code == 0]
    assert winners == [Experiment.open("same").settings.model]
    assert sum("Experiment same already exists" in err for _, _, err in results) == 3


def test_runs_that_several_processes_make_are_all_there(study):
    make = (
        "[Experiment.open('study').create_run(f'r{0}-{{n}}', MergePlan(4, (Window({0}, {0} + 1),))) for n in range(20)]"
    )
    assert [code for code, _, _ in race(*[make.format(n) for n in range(3)])] == [0, 0, 0]
    assert len(study.runs()) == 61
    plans = [
        f"Experiment.open('study').create_run('one', MergePlan(4, (Window({n}, {n} + 1),))).plan" for n in range(3)
    ]
    results = race(*[f"print({plan}.windows[0])" for plan in plans])
    assert [code for code, _, _ in results] == [0, 0, 0], results  # none is merged yet: the last one's plan stands
    assert [out.strip() for _, out, _ in results] == ["0-1", "1-2", "2-3"]  # each is given the plan that it asked for
    assert str(study.run("one").plan.windows[0]) in {"0-1", "1-2", "2-3"}
    assert not list(study.folder.rglob("*.tmp"))


def test_two_commands_on_one_run_exclude_each_other(study):
    command = [sys.executable, "-m", "swm", "merge", "study", "first", "--windows", "1-2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    results = ended([subprocess.Popen(command, **pipes) for _ in range(2)])
    told = [err for code, _, err in results if code]
    assert len(told) <= 1  # the second may come after the first has ended
    assert all("first has a job running" in err for err in told)
    assert study.run("first").stage == "merged"


def test_deleting_waits_for_nobody_and_takes_nothing_from_a_job(study):
    run = study.create_run("first", MergePlan(4, (Window(1, 2),)))
    hold = python(WORK.format(target="Experiment.open('study').run('first')", rounds=25))
    assert wait_for(lambda: run.state().status == "running")
    remove = python(RACE.format(at=0, what="delete(Experiment.open('study'))"))
    results = ended([hold, remove])
    assert [code for code, _, _ in results] == [0, 1], results
    assert "first has a job running" in results[1][2]
    assert run.state().status == "done"


def test_a_folder_renamed_or_removed_during_a_job_ends_it_and_nothing_grows_in_its_place(study, home):
    process = python(WORK.format(target="Experiment.open('study')", rounds=300))
    assert wait_for(lambda: study.state().status == "running")
    study.folder.rename(study.folder.with_name("moved"))
    code, _, err = ended([process])[0]
    assert code == 1
    assert "study was deleted or renamed" in err
    assert not study.folder.exists()
    assert [e.name for e in list_experiments()[0] if not e.read_only] == ["moved"]


def test_a_job_outlives_the_app_that_started_it_and_is_found_again(study):
    click = "start(Experiment.open('study'), 'search', ['search', 'study', '--from', '0.01']); time.sleep(60)"
    app = python(RACE.format(at=0, what=click))
    assert wait_for(lambda: study.state().active and study.state().pid != app.pid)
    app.send_signal(signal.SIGKILL)
    ended([app])
    assert study.state().active  # what an app that starts now sees
    assert wait_for(lambda: not study.state().active)
    assert study.state().status == "done"
    assert kept_path(study, "rdsc").covered() == pytest.approx(1)


def test_after_a_new_start_of_the_machine_a_job_reads_interrupted(study):
    gone = {"pid": 2**22 - 1}
    reused = {"process_started": this_process()["process_started"] - 9999}  # another process has its number now
    for change in (gone, reused):
        study.write_state(replace(State("search", "running", heartbeat=time.time(), **this_process()), **change))
        assert study.state().status == "interrupted"
        assert "finished work is kept" in study.state().error


# ---- memory ---------------------------------------------------------------------------------------------------------

HUNGRY = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from swm.jobs.tracking import tracked
from swm.workspace.experiments import Experiment
with tracked(Experiment.open("study"), "measure") as tracker:
    taken = []
    while True:
        taken.append(bytearray(b"x" * 2**20))
"""


@pytest.fixture
def cgroup():
    """A memory cgroup of 120 MiB inside ours; skipped where it cannot be made."""
    ours = _memory_cgroups()
    folder = (ours[0] if ours else Path("/nowhere")) / f"swm-test-{os.getpid()}"
    try:
        folder.mkdir()
        limit = folder / ("memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes")
        limit.write_text(str(120 * 2**20))
    except OSError:
        pytest.skip("making a memory cgroup needs root and a writable /sys/fs/cgroup")
    yield folder
    assert wait_for(lambda: not (folder / "cgroup.procs").read_text().strip())
    folder.rmdir()


@pytest.mark.cold
def test_a_job_that_is_ended_for_memory_says_so(study, cgroup):
    process = subprocess.run(
        [sys.executable, "-c", HUNGRY, str(cgroup)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    state = study.state()
    assert state.status == "interrupted"
    assert "ran out of memory" in state.error
    assert "--dtype" in state.error


def test_killed_for_another_reason_says_nothing_of_memory(study):
    study.write_state(replace(State("search", "running", heartbeat=time.time(), **this_process()), pid=2**22 - 1))
    assert "memory" not in study.state().error
    study.write_state(
        replace(State("search", "running", heartbeat=time.time(), **this_process()), pid=2**22 - 1, memory_kills=-1)
    )
    assert "memory" not in study.state().error


def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded(model_folder, monkeypatch):
    monkeypatch.setattr("swm.disk.machine.free_memory_bytes", lambda: 1000)
    monkeypatch.setattr("swm.disk.machine.psutil.swap_memory", lambda: type("swap", (), {"free": 0}))
    with pytest.raises(ModelError, match=r"Loading .* needs [\d.,]+ GiB of memory, but 0.0 GiB are free"):
        load_model(str(model_folder))


def test_free_memory_knows_the_limit_of_its_container(tmp_path, monkeypatch):
    monkeypatch.setattr("swm.disk.machine._memory_cgroups", lambda: [tmp_path])
    assert free_memory_bytes() > 2**20
    for files in (
        {"memory.max": "5000\n", "memory.current": "4000\n", "memory.stat": "anon 1\ninactive_file 500\n"},
        {
            "memory.limit_in_bytes": "5000\n",
            "memory.usage_in_bytes": "4000\n",
            "memory.stat": "total_inactive_file 500\n",
        },
    ):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        assert free_memory_bytes() == 1500
        for name in files:
            (tmp_path / name).unlink()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 1\n")
    assert free_memory_bytes() > 2**20
    check_memory("x", 10)
