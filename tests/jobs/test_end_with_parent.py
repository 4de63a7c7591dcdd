"""A command that ends with its parent: started only if that parent is still there, and it becomes the command."""

import os
import signal
import subprocess
import sys

import pytest

from swm.jobs.end_with_parent import wrapped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the signal is Linux's")


def test_the_wrapped_command_runs_with_its_arguments_and_exit_code():
    code = "import sys; print(sys.argv[1:]); sys.exit(3)"
    done = subprocess.run(wrapped([sys.executable, "-c", code, "a b", "--c"]), capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("['a b', '--c']", 3)


def test_it_does_not_start_for_a_parent_that_has_gone():
    command = wrapped([sys.executable, "-c", "print('started')"])
    assert command[3] == str(os.getpid())
    command[3] = "1"
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 128 + signal.SIGTERM)
