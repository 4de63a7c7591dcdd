"""Runs the app for the duration of a block: for screenshots, benchmarks and browser tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]


@contextmanager
def running_app(
    log: IO[bytes] | int = subprocess.DEVNULL, arguments: tuple[str, ...] = (), **environment: str
) -> Iterator[tuple[str, int]]:
    """Address and process id of the app, once it responds.

    Args:
        log: receives the app's output.
        arguments: of `swm app`, such as ("--demo", "demo").
        environment: variables added to the process's own, such as SWM_HOME.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "swm", "app"]
    command += ["--port", str(port), *arguments]
    app = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=log,
        stderr=log,
        env={**os.environ, "STREAMLIT_SERVER_HEADLESS": "true", "PYTHONFAULTHANDLER": "1", **environment},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_answer(f"{address}/_stcore/health")
        yield address, app.pid
    finally:
        app.terminate()
        try:
            app.wait(60)  # open pages and a busy machine make it slow to end
        except subprocess.TimeoutExpired:
            app.send_signal(signal.SIGABRT)  # its log then tells where each thread stands
            app.wait(60)
            raise


def wait_for_answer(address: str, seconds: float = 60) -> None:
    """Return once an address responds; raises TimeoutError if it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"{address} does not respond")
