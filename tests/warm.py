"""Starts this project's Python processes as forks of one that has already imported what is heavy.

`python -m swm ...` takes some seconds to import torch, transformers and streamlit, and the tests start it more than a
hundred times. After `install()`, `subprocess.Popen` asks a process that has imported all of it, and does nothing else,
for a fork of itself, wherever the arguments are `python -m swm...`, `-m tests...` or `-c`. What starts so is a process
like any other: a child of the one that asked, with its own folder, environment, files, session, exit code and signals,
and may start others in the same way. Tests marked `cold`, and `pytest --all`, start Python itself.
"""

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable  # tests put scripts in its place
HEAVY = (
    "torch", "transformers", "peft", "lm_eval", "pandas", "plotly.graph_objects", "streamlit.web.cli",
    "streamlit.web.bootstrap", "swm.cli.main", "swm.stages.loading", "swm.stages.plan", "swm.studies.run",
)  # fmt: skip
READ_EARLY = (
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HOME",
    "LANG",
    "LC_",
    "LD_",
    "OMP_",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "PYTHONUTF8",
    "PYTHONWARN",
)
"""Beginnings of variables that count while Python starts and imports: a fork cannot be given others."""
COLD = "SWM_COLD"  # while it is set, Python itself is started
STARTS_OTHERS = ("app", "study", "sweep")
LARGEST_REQUEST = 1 << 20
PR_SET_CHILD_SUBREAPER = 36

start_cold = subprocess.Popen._execute_child
server = None  # connection to the process that forks
imported_with = dict(os.environ)
one_at_a_time = threading.Lock()


def install(at_once=False):
    """Start forks from now on (Linux); the process they are forks of starts at once, or with the first."""
    if sys.platform != "linux":
        return
    subprocess.Popen._execute_child = start
    if at_once:
        _start_server()


def start(popen, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startup, flags, shell, *rest):
    environment = dict(os.environ if env is None else env)
    pipes, session = rest[:6], rest[11]
    unusual = (
        executable or preexec_fn or pass_fds or shell or any(n not in (None, -1) for n in (*rest[7:11], *rest[12:]))
    )
    if unusual or not can_be_warm(args, environment, cwd or os.getcwd()):
        start_cold(popen, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startup, flags, shell, *rest)
        return
    asked = json.dumps([[str(a) for a in args[1:]], environment, session])
    files = [given if given != -1 else n for n, given in enumerate((pipes[0], pipes[3], pipes[5]))]
    with one_at_a_time:
        popen.pid = _asked_for(asked.encode(), files)
    popen._child_created = True
    popen._close_pipe_fds(*pipes)


def _asked_for(asked, files):
    """The pid of a new fork."""
    global server
    if server is None:
        _start_server()
    try:
        socket.send_fds(server, [asked], files)
        return int(server.recv(64))
    except BaseException:  # an answer that is left unread would be taken for the next one
        server.close()
        server = None
        raise


def can_be_warm(args, environment, folder):
    """Whether a command is Python that runs code of this project from the project's own folder."""
    if isinstance(args, (str, bytes, os.PathLike)) or COLD in environment or Path(folder) != ROOT:
        return False
    program, how, what = [*map(str, args), "", ""][:3]
    ours = how == "-c" or (how == "-m" and what.split(".")[0] in ("swm", "tests"))
    return program == PYTHON and ours and _early(environment) == _early(imported_with)


def _early(environment):
    return {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}


def _start_server():
    """Python itself, which imports and then forks; it ends with this process, whose children its forks become."""
    global server
    server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    atexit.register(server.close)
    _adopt()
    os.set_inheritable(theirs.fileno(), True)
    os.posix_spawn(PYTHON, [PYTHON, __file__, str(theirs.fileno())], imported_with)
    theirs.close()


def _adopt():
    """Let forks whose parent has ended become this process's children."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def serve(connection):
    """Fork for each request until the connection closes. Returns in a fork: what it is to become, and its files."""
    while True:
        request, files, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
        if not request:
            os._exit(0)
        read, write = os.pipe()
        between = os.fork()  # ends at once, which makes the fork a child of the process that asked
        if between == 0:
            between, child = os.getpid(), os.fork()
            if child == 0:
                while os.getppid() == between:
                    time.sleep(0.001)
                connection.close()
                os.close(read)
                os.close(write)
                return *json.loads(request), files
            os.write(write, str(child).encode())
            os._exit(0)
        os.close(write)
        os.waitpid(between, 0)
        connection.send(os.read(read, 64))
        for file in (read, *files):
            os.close(file)


def become(arguments, environment, session, files):
    """Turn this fork into the process that was asked for, and run it to its end."""
    if session:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stdout = sys.__stdout__ = _writer(1, "strict", environment)
    sys.stderr = sys.__stderr__ = _writer(2, "backslashreplace", environment)
    command, behind_end_with_parent = arguments[2:3], arguments[6:7]
    if {*command, *behind_end_with_parent} & {*STARTS_OTHERS}:
        _fork_server()
    else:
        subprocess.Popen._execute_child = start_cold
    os.execv = _run_instead
    _run(arguments)


def _writer(file, errors, environment):
    raw = io.FileIO(file, "w", closefd=False)
    unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    encoding, _, asked = environment.get("PYTHONIOENCODING", "utf-8").partition(":")
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=encoding,
        errors=asked or errors,
        write_through=unbuffered,
        line_buffering=file == 2,
    )


def _fork_server():
    """A process that forks for this one, as this one has imported all of it already."""
    global server
    server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _adopt()
    install()
    if os.fork() == 0:
        server.close()
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        _to_its_end(become, *serve(theirs))
    theirs.close()


def _run_instead(program, arguments):
    """In place of os.execv: the same process goes on, as after it."""
    if program != PYTHON:
        os.execve(program, arguments, os.environ)
    _run(arguments[1:])


def _run(arguments):
    how, what, *sys.argv[1:] = arguments
    sys.argv[0] = "-c"
    if how == "-c":
        sys.path[0] = ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


def _to_its_end(work, *arguments):
    """Run and exit as Python does, but for freeing every object."""
    code, interrupted = 0, False
    try:
        work(*arguments)
    except KeyboardInterrupt:
        traceback.print_exc()
        interrupted = True
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.path[0] = str(ROOT)
    for module in HEAVY:
        importlib.import_module(module)
    gc.freeze()
    assert threading.active_count() == 1  # another thread would be missing in every fork
    _to_its_end(become, *serve(socket.socket(fileno=int(sys.argv[1]))))
