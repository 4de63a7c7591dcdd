"""Forks that stand for new processes are like them."""

import os
import signal
import subprocess
import sys

import pytest

ALIKE = """
import os, sys
print([os.getppid(), os.getcwd(), sys.argv, __name__, os.environ["SWM_HOME"], os.getsid(0) == os.getpid(),
       len(os.listdir("/proc/self/fd")), sys.stdin.read()])
print("said", file=sys.stderr)
sys.exit(3)
"""


def told(options, **environment):
    command = [sys.executable, "-c", ALIKE, "a b", "--c"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "SWM_HOME": "here", **environment}, **options,
    ) as process:  # fmt: skip
        return (*process.communicate("read", timeout=60), process.returncode)


@pytest.mark.parametrize("options", [{}, {"start_new_session": True}])
def test_a_fork_is_what_a_new_process_is(options):
    warm = told(options)
    assert warm == told(options, SWM_COLD="1")
    assert warm[1:] == ("said\n", 3)


def test_a_fork_has_imported_already_and_python_itself_has_not(request):
    if request.config.getoption("--all"):
        pytest.skip("all are new processes")
    look = [sys.executable, "-c", "import sys; print('torch' in sys.modules)"]
    assert subprocess.run(look, capture_output=True, text=True).stdout == "True\n"
    cold = subprocess.run(look, capture_output=True, text=True, env={**os.environ, "SWM_COLD": "1"})
    assert cold.stdout == "False\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_it_ends_python(number):
    with subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.poll() is None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(60) == -number


@pytest.mark.parametrize(("code", "last"), [("1 / 0", "ZeroDivisionError: division by zero"), ("exit('why')", "why")])
def test_what_fails_says_so_and_ends_with_1(code, last):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, last)
