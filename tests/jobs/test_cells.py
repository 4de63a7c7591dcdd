"""Tests of swm.jobs.cells."""

import sys
import threading

from swm.jobs.workers import run_cell


def test_a_run_that_is_killed_is_tried_again_and_one_that_fails_is_not(grid, home, monkeypatch):
    tries = home / "tries"
    home.mkdir()
    code = f"import os, sys; f = open({str(tries)!r}, 'a'); f.write('x'); f.flush(); "
    monkeypatch.setattr("swm.jobs.cells.swm_command", lambda command: [sys.executable, "-c", code + command[0]])
    assert run_cell(["os.kill(os.getpid(), 9)"], "e", "r", 2, {}) == "Killed by signal 9 on every attempt."
    assert len(tries.read_text()) == 3
    assert run_cell(["sys.exit('It is odd.')"], "e", "r", 2, {}) == "It is odd."
    assert len(tries.read_text()) == 4
    stop = threading.Event()
    threading.Timer(1, stop.set).start()
    assert run_cell(["import time; time.sleep(60)"], "e", "r", 2, {}, stop) == ""
