"""llama.cpp itself, through the npm package node-llama-cpp: it reads a file, splits text, answers and is timed."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from swm.disk.files import APP_FOLDER, home
from swm.errors import SettingsError

VERSION = "3.22.1"  # of node-llama-cpp; brings llama.cpp 0.5.0, built
BUILDS = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "arm64"): "mac-arm64-metal",
    ("Darwin", "x86_64"): "mac-x64",
}
SCRIPT = APP_FOLDER / "assets" / "llama_cpp" / "client.mjs"


def client_folder() -> Path:
    """Where the npm packages are: the environment variable SWM_LLAMA_CPP, or the folder llama.cpp of SWM_HOME."""
    chosen = os.environ.get("SWM_LLAMA_CPP")
    return Path(chosen).expanduser().absolute() if chosen else home() / "llama.cpp"


def client_version() -> str:
    """The version of node-llama-cpp that is installed; empty if none is."""
    file = client_folder() / "node_modules" / "node-llama-cpp" / "package.json"
    return str(json.loads(file.read_text(encoding="utf-8"))["version"]) if file.is_file() else ""


def client_missing() -> str:
    """Why llama.cpp cannot be started, and how to install it; empty if it can."""
    if not shutil.which("node"):
        return "Node.js is not installed (20 or newer is needed). Install it, for example: apt install nodejs npm"
    if (platform.system(), platform.machine()) not in BUILDS:
        return f"There is no built llama.cpp for this machine ({platform.system()}, {platform.machine()})."
    return "" if client_version() else f"llama.cpp is not installed. Run: {install_command()}"


def install_command() -> str:
    """What installs llama.cpp, built for this machine, without running scripts of packages."""
    build = BUILDS.get((platform.system(), platform.machine()), "linux-x64")
    return (
        f"npm install --prefix {shlex.quote(str(client_folder()))} --no-package-lock --no-audit --no-fund "
        f"--ignore-scripts --omit=optional node-llama-cpp@{VERSION} @node-llama-cpp/{build}@{VERSION}"
    )


class Client:
    """A running llama.cpp. Each request loads its file and frees it again."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors

    def ask(self, file: Path | str, **request: Any) -> dict[str, Any]:
        """The answer to a request, see `assets/llama_cpp/client.mjs`.

        Raises:
            SettingsError: if llama.cpp cannot load the file, or ended.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("llama.cpp was started without pipes.")
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"model": str(Path(file).absolute()), **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise SettingsError(f"llama.cpp ended while it read {file}: {self._last_error()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SettingsError(f"llama.cpp cannot run {file}: {answer['error'][:300]} {self._last_error()}".strip())
        return answer

    def logprobs(self, file: Path, texts: Sequence[Sequence[int]], threads: int = 1) -> list[list[float]]:
        """Log-probability of each text's tokens but the first, given those before it, in nats."""
        answer = self.ask(file, logprobs=[list(text) for text in texts], threads=threads)
        return [[float(number) for number in text] for text in answer["logprobs"]]

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read()[-20_000:].splitlines() if "error" in line.lower()]
        return lines[-1][:300] if lines else ""


@contextmanager
def llama_cpp() -> Iterator[Client]:
    """Starts llama.cpp on the CPU; ends it with the block.

    Raises:
        SettingsError: if Node.js or the npm packages are missing.
    """
    node = shutil.which("node")
    if (missing := client_missing()) or node is None:
        raise SettingsError(missing)
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "errors").open("w+", errors="replace") as errors:
        # node looks for packages from where a script lies; and the script may lie where nothing can be added
        (Path(folder) / "node_modules").symlink_to(client_folder() / "node_modules")
        script = shutil.copyfile(SCRIPT, Path(folder) / SCRIPT.name)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        process = subprocess.Popen([node, str(script)], **pipes)
        try:
            yield Client(process, errors)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):
            if pipe:
                pipe.close()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":  # for the Makefile
    sys.stdout.write(install_command())
