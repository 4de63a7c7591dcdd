"""Jobs in real child processes: states, cancelling, one at a time, and messages of those that fail."""

import time

import pytest

from swm.errors import ExperimentError, JobError, SwmError
from swm.jobs.child import _wait_for, active_targets, call, cancel, create, start, stream
from swm.jobs.tracking import tracked
from swm.plan import MergePlan
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment
from swm.workspace.housekeeping import delete
from swm.workspace.state import State, this_process
from tests.jobs.child_cases import wait_for


def test_job_runs_in_a_child_and_leaves_its_result(experiment):
    start(experiment, "measure", ["measure", "study"])
    assert experiment.state().active
    assert [target.name for target, _ in active_targets([experiment])] == ["study"]
    assert wait_for(lambda: not experiment.state().active)
    assert experiment.state().status == "done"
    assert len(experiment.similarity("cka")["matrix"]) == 4


def test_a_new_experiment_is_there_once_its_measuring_has_begun(model_folder, text_file):
    made = ["--texts", str(text_file), "--count", "3", "--length", "32", "--measure"]
    create("new", ["create", "new", "--model", str(model_folder), *made])
    experiment = Experiment.open("new")
    assert experiment.state().stage == "measure"
    assert wait_for(lambda: not experiment.state().active)
    assert experiment.metrics_measured() == ["cka_skip4", "cka"]
    with pytest.raises(ExperimentError, match="already exists"):
        create("new", ["create", "new", "--model", str(model_folder), *made])
    with pytest.raises(JobError, match="no-such-folder"):
        create("other", ["create", "other", "--model", "/no-such-folder", *made])
    assert not (experiment.folder.parent / "other").exists()


def test_job_of_another_target_waits_for_the_machine_and_can_be_cancelled_while_it_waits(experiment):
    run = experiment.run("baseline")
    with tracked(experiment, "measure"):
        start(run, "evaluate", ["evaluate", "study", "baseline", "--limit", "1"])
        assert wait_for(lambda: run.state().text == "waiting for measure of study")
        assert run.state().status == "queued"
        cancel(run)
        assert wait_for(lambda: not run.state().active)
    assert run.state().status == "cancelled"


def test_child_that_cannot_start_is_reported(experiment):
    start(experiment, "measure", ["measure", "study", "--metric"])
    # for a moment it is interrupted: until whoever started it has seen how it ended
    assert wait_for(lambda: experiment.state().status == "failed")
    assert "expected one argument" in experiment.state().error


def test_child_with_nothing_to_do_is_done(experiment):
    start(experiment, "list", ["list"])
    assert wait_for(lambda: experiment.state().status == "done")
    assert experiment.state().error == ""


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


def test_a_command_that_says_a_lot_on_stderr_still_ends(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\nhead -c 1000000 /dev/zero | tr '\\0' x >&2\necho >&2\necho at the end >&2\necho done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr("swm.jobs.child.sys.executable", str(script))
    ends = []
    assert list(stream(["answer"], ends.append)) == ["done\n"]
    assert ends == ["at the end"]


def test_shipped_experiment_takes_no_jobs(experiment, monkeypatch):
    monkeypatch.setattr("swm.disk.names.SHIPPED", experiment.folder.parent)
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
