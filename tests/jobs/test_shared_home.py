"""One home on several machines: locks that hold, a refusal where they do not, a machine that is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from swm.disk import files
from swm.disk.files import write_json
from swm.disk.machine import this_machine
from swm.errors import ExperimentError, JobError
from swm.jobs.tracking import tracked
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.workspace import shared_home
from swm.workspace.shared_home import (
    IN_USE_SECONDS,
    USER_FILE,
    check_machine,
    locks_reach_others,
    mount_of,
    names_locked,
)
from swm.workspace.state import State
from tests.jobs.machines import Machines, need_programs, shared_by_gluster, shared_by_sshfs
from tests.jobs.test_child import wait_for

ROOT = Path(__file__).parents[2]
LONG = "--preset quick --steps 100000 --batch 1 --length 16 --held-out 1 --save-every 5 --rank 2"
MOUNTS = [
    ("ext4", "rw,relatime", True),
    ("overlay", "rw", True),
    ("nfs4", "rw,vers=4.2,local_lock=none", True),
    ("nfs", "rw,vers=3,nolock,local_lock=all", False),
    ("nfs4", "rw,local_lock=flock", False),
    ("lustre", "rw,flock", True),
    ("lustre", "rw,localflock", False),
    ("cifs", "rw,vers=3.1.1", True),
    ("cifs", "rw,nobrl", False),
    ("fuse.glusterfs", "rw", True),
    ("fuse.sshfs", "rw", False),
    ("fuse.rclone", "rw", False),
    ("fuse.fuse-overlayfs", "rw", True),
    ("wekafs", "rw", True),
    ("9p", "rw", False),
    ("", "", True),
]


@pytest.fixture
def study(model_folder, text_file):
    return create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 4, 16))


@pytest.mark.parametrize(("kind", "options", "reach"), MOUNTS)
def test_whose_locks_reach_other_machines(kind, options, reach):
    assert locks_reach_others(kind, options) is reach


def test_the_mount_of_a_folder_is_the_innermost(monkeypatch, tmp_path):
    Part = namedtuple("Part", "mountpoint fstype opts")
    parts = [Part("/", "ext4", "rw"), Part(str(tmp_path / "a"), "nfs4", "ro"), Part(str(tmp_path), "xfs", "rw")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: parts)
    assert mount_of(tmp_path / "a" / "not there yet") == ("nfs4", "ro")
    assert mount_of(tmp_path / "ab") == ("xfs", "rw")
    parts.append(Part(str(tmp_path), "fuse.sshfs", "rw"))  # mounted over the other one
    assert mount_of(tmp_path / "ab") == ("fuse.sshfs", "rw")


def test_mounts_of_this_machine_are_read():
    assert mount_of(Path("/proc"))[0] == "proc"


@pytest.fixture
def without_locks(monkeypatch, home):
    """A home on a file system whose locks stay on one machine; gives a way to become another machine."""
    monkeypatch.setattr(shared_home, "mount_of", lambda path: ("fuse.sshfs", "rw"))

    def become(name):
        monkeypatch.setattr(shared_home, "this_machine", lambda: f"boot of {name}")
        monkeypatch.setattr("socket.gethostname", lambda: name)

    return become


def test_a_home_without_locks_is_for_one_machine_until_it_rests(without_locks, home):
    without_locks("ann")
    with names_locked():
        pass
    check_machine()
    without_locks("bob")
    with pytest.raises(JobError, match=r"fuse\.sshfs.* and ann uses it.*NFS 4.*15 minutes"), names_locked():
        pass
    user = json.loads((home / USER_FILE).read_text())
    (home / USER_FILE).write_text(json.dumps({**user, "time": time.time() - IN_USE_SECONDS - 1}))
    check_machine()
    without_locks("ann")
    with pytest.raises(JobError, match="and bob uses it"):
        check_machine()
    (home / USER_FILE).write_bytes(b"\xff{")
    check_machine()
    assert json.loads((home / USER_FILE).read_text())["host"] == "ann"


def test_a_home_with_locks_keeps_no_file(home):
    with names_locked():
        pass
    assert not (home / USER_FILE).exists()


ELSEWHERE = """
import socket, sys, time
socket.gethostname = lambda: "elsewhere"
from swm.jobs.tracking import tracked
from swm.workspace.experiments import Experiment
with tracked(Experiment.open("study"), "measure") as progress:
    while True:
        time.sleep(0.1)
        progress(1, 2, "working")
"""


def test_a_lock_that_does_not_hold_is_found_out_and_a_dead_machine_is_not_waited_for(study):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    elsewhere = subprocess.Popen([sys.executable, "-c", ELSEWHERE], cwd=ROOT, env=environment)
    try:
        assert wait_for(lambda: study.state().status == "running", 60)
        with pytest.raises(JobError, match="has a job running"), tracked(study, "measure"):
            pass
        (study.folder / ".job.lock").unlink()  # as on a file system that keeps locks to itself
        with (
            pytest.raises(JobError, match="on elsewhere, and its lock is not seen here"),
            tracked(study, "search"),
        ):
            pass
        assert study.state().host == "elsewhere"
        elsewhere.send_signal(signal.SIGKILL)
        elsewhere.wait(10)
        with tracked(study, "search"):
            assert study.state().status == "running"
    finally:
        elsewhere.kill()
        elsewhere.wait(10)


def test_a_job_that_was_taken_over_ends_and_leaves_the_others_state(study):
    def measure():
        with tracked(study, "measure") as tracker:
            write_json(study.folder / "state.json", {**study.read("state.json"), "host": "bob", "stage": "search"})
            tracker.write()

    with pytest.raises(JobError, match="was taken over by a job on bob"):
        measure()
    assert (study.read("state.json")["host"], study.state().stage) == ("bob", "search")


def test_what_is_written_of_an_earlier_job_takes_nothing_over(study):
    with tracked(study, "measure") as tracker:
        earlier = {**study.read("state.json"), "pid": 2, "status": "interrupted"}
        write_json(study.folder / "state.json", earlier)
        tracker.write()
    assert study.state().status == "done"


def test_a_lock_handed_over_as_its_job_ends_is_taken(study, monkeypatch):
    now = time.time()
    other = State("measure", "running", started=now, heartbeat=now, pid=5, process_started=1.0, host="bob")
    study.write_state(other)
    ended = threading.Timer(1, lambda: study.write_state(replace(other, status="done", heartbeat=now + 1)))
    ended.start()
    with tracked(study, "search"):
        pass
    ended.join()
    assert (study.state().stage, study.state().status) == ("search", "done")


def test_each_machine_has_a_device_of_its_own_and_its_containers_share_it(study, home, monkeypatch):
    with tracked(study, "measure"):
        monkeypatch.setattr("socket.gethostname", lambda: "a-container")
        assert (home / f".device-{this_machine()}.lock").exists()
    assert len(list(home.glob(".device-*.lock"))) == 1


def test_a_home_that_cannot_be_reached_any_more_is_said_to_be(monkeypatch):
    def gone(path):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))

    monkeypatch.setenv("SWM_HOME", "/mnt/far")
    monkeypatch.setattr(Path, "exists", gone)
    with pytest.raises(ExperimentError, match=r"^/mnt/far cannot be reached any more: Transport endpoint"):
        files.home()


@pytest.fixture
def two(tmp_path):
    """Machines ann and bob, and the folder at which they will mount a shared home."""
    need_programs()
    machines = Machines(tmp_path, ("ann", "bob"))
    (tmp_path / "mounted").mkdir()
    yield machines, tmp_path / "mounted"
    machines.close()


def command(folder, *words):
    environment = [f"SWM_HOME={folder}", "HF_HUB_OFFLINE=1", "OMP_NUM_THREADS=1", f"PYTHONPATH={ROOT}"]
    return ["env", *environment, sys.executable, "-m", "swm", *words]


def steps(machines, name, folder):
    """Steps that a machine sees the healing of run `one` has done."""
    events = machines.on(name, "cat", folder / "experiments/study/runs/one/events.jsonl", check=False)
    return max((json.loads(line).get("step", 0) for line in events.splitlines() if line.startswith("{")), default=0)


def state(machines, name, folder):
    """Host and status of the job of run `one`, as a machine sees them."""
    found = json.loads(machines.on(name, "cat", folder / "experiments/study/runs/one/state.json"))
    return found["host"], found["status"]


@pytest.mark.long
def test_two_machines_share_a_home_and_one_is_lost(two, model_folder, text_file, tmp_path):
    machines, folder = two
    need_programs("glusterd", "gluster", "mount.glusterfs")
    shared_by_gluster(machines, folder, ("ann", "bob"))
    create = ["create", "study", "--model", model_folder, "--texts", text_file, "--count", "4", "--length", "16"]
    machines.on("ann", *command(folder, *create))
    assert "study" in machines.on("bob", *command(folder, "list"))
    machines.on("bob", *command(folder, "merge", "study", "one", "--windows", "1-2", "--rule", "keep_first"))
    heal = command(folder, "recover", "study", "one", *LONG.split(), "--texts", text_file)
    machines.start("ann", *heal)
    assert wait_for(lambda: steps(machines, "bob", folder) > 12, 120)
    refused = machines.on("bob", *heal, check=False)
    assert "one has a job running" in refused
    assert state(machines, "bob", folder) == ("ann", "running")
    machines.on("ann", "pkill", "-9", "-f", "swm recover")
    before = steps(machines, "bob", folder)
    machines.start("bob", *heal)
    assert wait_for(lambda: steps(machines, "ann", folder) > before + 12, 120)
    machines.cut_off("bob")
    before = steps(machines, "ann", folder)
    machines.start("ann", "env", "SWM_WAIT=1", *heal)  # the lock ends when the server gives bob up
    assert wait_for(lambda: steps(machines, "ann", folder) > before + 12, 120)
    machines.cut_off("bob", False)
    assert wait_for(lambda: "swm recover" not in machines.on("bob", "ps", "-ef"), 120)
    before = steps(machines, "ann", folder)
    assert wait_for(lambda: steps(machines, "bob", folder) > before + 12, 60)
    assert state(machines, "bob", folder) == ("ann", "running")
    said = (tmp_path / "bob-started.log").read_text()
    assert "cannot be reached any more" in said or "taken over by a job on ann" in said


@pytest.mark.long
def test_two_machines_cannot_share_a_home_by_ssh(two, model_folder, text_file):
    machines, folder = two
    need_programs("sshfs", "sshd", "ssh-keygen")
    shared_by_sshfs(machines, folder, ("ann", "bob"))
    create = ["--model", model_folder, "--texts", text_file, "--count", "4", "--length", "16"]
    machines.on("ann", *command(folder, "create", "study", *create))
    refused = machines.on("bob", *command(folder, "create", "other", *create), check=False)
    assert "fuse.sshfs" in refused
    assert "and ann uses it" in refused
    assert "study" in machines.on("bob", *command(folder, "list"))
    machines.on("ann", *command(folder, "measure", "study"))
