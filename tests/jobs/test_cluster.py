"""Jobs on a real Ray cluster of two nodes: they report progress, can be cancelled, and resume after a lost node."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import yaml

from swm.cli.main import main
from swm.disk.files import read_json, write_json
from swm.errors import JobError
from swm.jobs.child import all_targets, cancel, create, start
from swm.jobs.cluster import _watch, cluster, watch_again
from swm.jobs.sweep import Sweep
from swm.jobs.sweep_file import load_grid
from swm.plan import MergePlan, Window
from swm.reporting.formats.recipe import recipe_json
from swm.stages.merge import merge_run
from swm.workspace.experiments import Experiment
from swm.workspace.people import audit_file, entries
from swm.workspace.runs import Run
from swm.workspace.state import State
from swm.workspace.tracked import STOP_FILE
from tests.conftest import need
from tests.jobs.sweep_cases import ROOT
from tests.jobs.test_child import wait_for
from tools.cluster import Nodes, free_port

pytestmark = [
    pytest.mark.apart,
    pytest.mark.skipif(importlib.util.find_spec("aiohttp_cors") is None, reason="ray[default] is not installed"),
]
QUICK = ("--batch", "2", "--length", "32", "--held-out", "2", "--rank", "2", "--repair", "none", "--save-every", "1000")


@pytest.fixture(scope="module")
def nodes():
    cluster = Nodes()
    yield cluster
    cluster.end()


@pytest.fixture
def there(nodes, monkeypatch, home):
    monkeypatch.setenv("SWM_EXECUTOR", nodes.address)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cluster() == nodes.address


def merged(experiment, name="a"):
    run = experiment.create_run(name, MergePlan(4, (Window(1, 2),)))
    merge_run(run)
    return run


def ended(target, seconds=90):
    assert wait_for(lambda: not target.state().active, seconds), target.state()
    return target.state()


def test_a_job_runs_on_the_cluster_and_tells_of_itself_here(there, model_folder, text_file):
    create("far", ["create", "far", "--model", str(model_folder), "--texts", str(text_file), "--count", "3",
                   "--length", "32", "--measure"])  # fmt: skip
    experiment = Experiment.open("far")
    first = experiment.state()
    assert first.active
    assert first.cluster_job.startswith("swm-")
    state = ended(experiment)
    assert (state.status, state.stage, state.cluster_job) == ("done", "measure", first.cluster_job)
    assert experiment.metrics_measured() == ["cka_skip4", "cka"]
    assert wait_for(lambda: "similarity of neighbouring layers" in experiment.log_tail())


@pytest.mark.long
def test_a_cluster_is_found_by_the_address_for_ray_clients(monkeypatch, model_folder, text_file):
    port = free_port()
    nodes = Nodes(port)
    try:
        monkeypatch.setenv("SWM_EXECUTOR", f"ray://127.0.0.1:{port}")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        create("far", ["create", "far", "--model", str(model_folder), "--texts", str(text_file), "--measure"])
        state = ended(Experiment.open("far"))
        assert (state.status, state.cluster_job[:4]) == ("done", "swm-")
    finally:
        nodes.end()


@pytest.mark.long
def test_a_job_is_cancelled_from_here_and_goes_on_where_it_was(there, experiment, text_file):
    run = merged(experiment)
    command = ["recover", "study", "a", "--steps", "100000", "--texts", str(text_file), *QUICK]
    start(run, "recover", command)
    assert wait_for(lambda: trained(run) > 3, 90), run.state()
    with pytest.raises(JobError, match="has a job running"):
        start(run, "recover", command)
    cancel(run)
    assert ended(run).status == "cancelled"
    kept = run.checkpoint_step()
    assert kept > 3  # it wrote a checkpoint first
    start(run, "recover", command)
    assert wait_for(lambda: trained(run) > kept, 90), run.state()
    cancel(run)
    assert ended(run).status == "cancelled"


def test_what_no_node_can_hold_is_refused_and_what_waits_can_be_cancelled(there, experiment, monkeypatch):
    monkeypatch.setenv("SWM_JOB_CPUS", "64")
    start(experiment, "measure", ["measure", "study"])
    time.sleep(3)
    waiting = experiment.state()
    assert (waiting.status, waiting.text) == ("queued", "waits for the cluster")
    audit_file().touch()  # as if somebody had logged in here before
    cancel(experiment)
    assert ended(experiment).status == "cancelled"
    assert [entry["outcome"] for entry in entries("study")] == ["cancelled"]
    monkeypatch.setenv("SWM_JOB_CPUS", "1")
    experiment.model_facts |= {"size_bytes": 2**45}
    with pytest.raises(
        JobError, match=r"needs about [\d,.]+ GiB of memory, but the cluster's largest node offers 12.0"
    ):
        start(experiment, "plan", ["plan", "study", "--planner", "best", "--layers", "3"])
    assert experiment.state().status == "failed"
    assert [entry["outcome"] for entry in entries("study")] == ["failed", "cancelled"]


@pytest.mark.long
def test_a_job_runs_on_the_node_that_has_its_memory(there, experiment):
    """The head offers 4 GiB, the other node 12."""
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    experiment.model_facts |= {"size_bytes": 7 * 2**30}
    large = {node.node_id for node in list_nodes(address=cluster()) if node.resources_total.get("worker")}
    assert len(large) == 1
    for _ in range(3):
        start(experiment, "measure", ["measure", "study"])
        assert ended(experiment).status == "done"
        job = JobSubmissionClient(cluster()).get_job_info(experiment.state().cluster_job)
        assert {job.driver_node_id} == large


def test_a_job_that_waits_is_watched_again_after_the_app_was_restarted(there, experiment, monkeypatch):
    code = "from swm.jobs.child import start; from swm.workspace.experiments import Experiment; "
    code += "start(Experiment.open('study'), 'measure', ['measure', 'study'])"
    app = {**os.environ, "SWM_JOB_CPUS": "64", "SWM_PERSON": "ann@example.org"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=app, check=True, timeout=60)
    assert experiment.state().person == "ann@example.org"
    monkeypatch.setattr("swm.workspace.state.STALE_SECONDS", 8.0)
    assert wait_for(lambda: experiment.state().status == "interrupted", 20)
    watch_again(lambda: all_targets([experiment]))
    assert wait_for(lambda: experiment.state().status == "queued", 20)
    time.sleep(10)
    assert experiment.state().status == "queued"
    cancel(experiment)
    assert ended(experiment).status == "cancelled"


def test_a_stopped_job_that_still_waits_is_cancelled_whoever_wrote_last(experiment, monkeypatch):
    """The thread that watches it may ask the cluster before a stop, and write "queued" after it."""

    class Waiting:
        def get_job_info(self, name):
            return SimpleNamespace(status=SimpleNamespace(value="PENDING"), message="")

    monkeypatch.setattr("swm.jobs.cluster.POLL_SECONDS", 0.05)
    first = State("measure", "queued", heartbeat=time.time(), cluster_job="swm-1")
    experiment.write_state(first)
    watching = threading.Thread(target=_watch, args=(Waiting(), experiment, first), daemon=True)
    watching.start()
    time.sleep(0.3)
    assert experiment.state().status == "queued"
    (experiment.folder / STOP_FILE).write_text("swm-1")
    experiment.write_state(first)
    assert wait_for(lambda: experiment.state().status == "cancelled", 10)
    watching.join(10)
    assert not watching.is_alive()


def test_the_cluster_of_the_secrets_file_counts_in_the_terminal_too(monkeypatch, tmp_path):
    monkeypatch.setattr("swm.jobs.cluster.APP_FOLDER", tmp_path)
    assert cluster() == ""
    (tmp_path / ".streamlit").mkdir()
    file = tmp_path / ".streamlit" / "secrets.toml"
    for text, address in (('SWM_EXECUTOR = "http://head:8265"', "http://head:8265"), ("broken =", ""), ("a = 1", "")):
        file.write_text(text)
        assert cluster() == (address if sys.version_info >= (3, 11) else "")
    file.write_text('SWM_EXECUTOR = "http://head:8265"')
    for here in ("local", ""):
        monkeypatch.setenv("SWM_EXECUTOR", here)
        assert cluster() == ""


@pytest.mark.long
def test_a_command_in_a_terminal_runs_there_and_gives_its_result_here(there, experiment):
    command = [sys.executable, "-m", "swm"]
    found = subprocess.run(
        [*command, "measure", "study", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["matrix"]) == 4
    assert experiment.state().cluster_job.startswith("swm-")
    wrong = subprocess.run(
        [*command, "plan", "study", "--layers", "9"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode == 1
    assert "9" in wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr


@pytest.mark.long
@pytest.mark.data
def test_answers_exports_repeats_and_experiments_of_a_terminal_come_from_there(there, experiment, tmp_path, text_file):
    """The same words, with their speed on stderr, as from this machine; files where they were asked for."""
    run = merged(experiment)

    def said(*words, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "swm", *words],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), done.stderr.strip().splitlines()

    asked = ("answer", "study", "a", "--prompt", "the number", "--tokens", "9")
    (words, speed), (expected, _) = said(*asked), said(*asked, SWM_EXECUTOR="local")
    assert words == expected
    assert re.fullmatch(r"\d tokens: the first after .*", speed[-1])
    said("export", "study", "a", str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        run.model_folder / "model.safetensors"
    ).read_bytes()
    need("olmo_eval")
    (tmp_path / "recipe.json").write_text(json.dumps({**json.loads(recipe_json(run)), "limit": 2}))
    said("repeat", str(tmp_path / "recipe.json"), "--name", "again")
    again = Experiment.open("again").run("a")
    assert again.state().cluster_job.startswith("swm-")
    assert again.scores()["tasks"]
    assert (again.model_folder / "model.safetensors").read_bytes() == (
        run.model_folder / "model.safetensors"
    ).read_bytes()
    model = experiment.settings.model
    said("create", "second", "--model", model, "--texts", str(text_file), "--count", "3", "--length", "32", "--measure")
    second = Experiment.open("second")
    assert second.state().cluster_job.startswith("swm-")
    assert second.similarity("cka_skip4")


@pytest.mark.long
@pytest.mark.data
def test_a_sweep_sends_its_runs_to_the_nodes(there, grid, tmp_path):
    need("olmo_eval")
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**grid, "recovery": "none", "plans": {"planner": "random", "ratio": [0.25, 0.5]}}))
    sweep = Sweep.create(load_grid(file))
    start(sweep, "sweep", ["sweep", str(file)])
    assert ended(sweep, 200).status == "done", sweep.log_tail()
    assert {cell.state() for cell in sweep.file.cells} == {"done"}
    for cell in sweep.file.cells:  # what a run says stands in its own log, not in that of the sweep
        run = Run(Experiment.open(cell.experiment), cell.run)
        assert run.log_tail()
        assert run.log_tail() not in sweep.log_tail(100)


@pytest.mark.long
def test_a_run_of_a_sweep_that_no_node_seems_to_hold_does_not_wait_for_ever(there, grid, tmp_path, monkeypatch):
    file = tmp_path / "large.yaml"
    file.write_text(yaml.safe_dump({**grid, "recovery": "none", "plans": {"planner": "random", "ratio": [0.25]}}))
    sweep = Sweep.create(load_grid(file))
    for cell in sweep.file.cells:
        main([*cell.create_command])
        record = Experiment.open(cell.experiment).folder / "experiment.json"
        data = read_json(record)
        data["model_facts"]["size_bytes"] = 2**45
        write_json(record, data)
    start(sweep, "sweep", ["sweep", str(file)])
    assert ended(sweep, 120).status == "done"  # each run had a node to itself; whether it fits is seen there


def test_a_cluster_that_does_not_answer_is_told(experiment, monkeypatch):
    monkeypatch.setenv("SWM_EXECUTOR", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(JobError, match=r"The Ray cluster http://127.0.0.1:\d+ does not answer.*Check SWM_EXECUTOR"):
        start(experiment, "measure", ["measure", "study"])
    assert not experiment.state().active


@pytest.fixture
def two_jobs(experiment, text_file, monkeypatch, home):
    """A cluster of its own, and a healing run on each of its nodes, which have one CPU each."""
    nodes = Nodes()
    try:
        monkeypatch.setenv("SWM_EXECUTOR", nodes.address)
        runs = [merged(experiment, name) for name in ("a", "b")]
        rest = ["--steps", "100000", "--texts", str(text_file), *QUICK]  # --save-every is far off
        for run in runs:
            start(run, "recover", ["recover", "study", run.name, *rest])
            assert wait_for(lambda run=run: trained(run) > 3, 90), run.state()
        yield nodes, runs
    finally:
        nodes.end()


def trained(run):
    """The last step of a healing that has a loss."""
    return max((event["step"] for event in run.events() if "loss" in event), default=0)


def check_lost(run):
    assert re.search(r"The cluster lost the job|process ended", run.state().error)
    assert trained(run) - run.checkpoint_step() <= 1


@pytest.mark.long
def test_a_lost_node_means_interrupted_and_one_step_is_lost_at_most(two_jobs):
    nodes, runs = two_jobs
    nodes.tell("worker")
    assert wait_for(lambda: "interrupted" in {run.state().status for run in runs}, 120)
    lost, other = sorted(runs, key=lambda run: run.state().active)
    with contextlib.suppress(ProcessLookupError):
        os.kill(lost.state().pid, signal.SIGKILL)  # a lost machine takes the job along, not only Ray's part of it
    assert wait_for(lambda: not lost.state().active, 90)
    check_lost(lost)
    cancel(other)
    assert ended(other).status == "cancelled"
    step = lost.checkpoint_step()
    start(lost, "recover", list(lost.state().command))
    assert wait_for(lambda: trained(lost) > step, 90), lost.state()
    cancel(lost)
    assert ended(lost).status == "cancelled"


@pytest.mark.long
def test_when_the_head_is_lost_a_job_goes_on_or_is_gone_on_with_on_another_cluster(two_jobs, monkeypatch):
    nodes, runs = two_jobs
    nodes.tell("head")
    time.sleep(10)
    for run in runs:
        if run.state().active:  # its node did not notice yet: the work goes on, and its state stays true
            done = trained(run)
            assert wait_for(lambda run=run, done=done: trained(run) > done or not run.state().active, 90)
        if run.state().active:
            cancel(run)
            assert ended(run).status in ("cancelled", "interrupted")
        else:
            check_lost(run)
    others = Nodes()  # another cluster
    try:
        monkeypatch.setenv("SWM_EXECUTOR", others.address)
        lost = runs[0]
        step = lost.checkpoint_step()
        assert step > 3
        start(lost, "recover", list(lost.state().command))
        assert wait_for(lambda: trained(lost) > step, 90), lost.state()
        cancel(lost)
        assert ended(lost).status == "cancelled"
        assert [event["step"] for event in lost.events() if "loss" in event][: step + 1] == list(range(1, step + 2))
    finally:
        others.end()
