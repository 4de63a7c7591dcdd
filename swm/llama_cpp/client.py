"""llama.cpp itself, through the npm package node-llama-cpp: it reads a file, counts tokens, answers and is timed."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from swm.errors import SettingsError
from swm.workspace.files import home

VERSION = "3.22.1"  # of node-llama-cpp; brings llama.cpp 0.5.0, built
BUILDS = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "arm64"): "mac-arm64-metal",
    ("Darwin", "x86_64"): "mac-x64",
    ("Windows", "AMD64"): "win-x64",
}
SCRIPT = Path(__file__).parents[2] / "assets" / "llama_cpp" / "client.mjs"


def client_folder() -> Path:
    """Where the npm packages are: the environment variable SWM_LLAMA_CPP, or the folder llama.cpp of SWM_HOME."""
    return Path(os.environ.get("SWM_LLAMA_CPP") or home() / "llama.cpp")


def client_missing() -> str:
    """Why llama.cpp cannot be started, and how to install it; empty if it can."""
    if not shutil.which("node"):
        return "Node.js is not installed (18 or newer is needed). Install it, for example: apt install nodejs npm"
    if not (client_folder() / "node_modules" / "node-llama-cpp").is_dir():
        return f"llama.cpp is not installed. Run: {install_command()}"
    return ""


def install_command() -> str:
    """What installs llama.cpp, built for this machine, without running scripts of packages."""
    build = BUILDS.get((platform.system(), platform.machine()), "linux-x64")
    return (
        f"npm install --prefix {shlex.quote(str(client_folder()))} --no-package-lock --no-audit --no-fund "
        f"--ignore-scripts --omit=optional node-llama-cpp@{VERSION} @node-llama-cpp/{build}@{VERSION}"
    )


class Client:
    """A running llama.cpp. Each request loads its file and frees it again."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, file: Path | str, **request: Any) -> dict[str, Any]:
        """The answer to a request, see `assets/llama_cpp/client.mjs`.

        Raises:
            SettingsError: if llama.cpp cannot load the file, or ended.
        """
        sent, answers = _pipes(self._process)
        try:
            sent.write(json.dumps({"model": str(Path(file).absolute()), **request}) + "\n")
            sent.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SettingsError(f"llama.cpp ended while it read {file}. The file may need more memory than there is.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SettingsError(f"llama.cpp cannot run {file}: {answer['error'][:300]}")
        return answer

    def logprobs(self, file: Path, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each text's tokens but the first, given those before it, in nats."""
        answer: list[list[float]] = self.ask(file, logprobs=[list(text) for text in texts])["logprobs"]
        return answer


@contextmanager
def llama_cpp() -> Iterator[Client]:
    """Starts llama.cpp on the CPU; ends it with the block.

    Raises:
        SettingsError: if Node.js or the npm packages are missing.
    """
    node = shutil.which("node")
    if (missing := client_missing()) or node is None:
        raise SettingsError(missing)
    # The script is started from the packages' folder, since node looks for them from where a module lies.
    script = client_folder() / "client.mjs"
    shutil.copyfile(SCRIPT, script)
    process = subprocess.Popen(
        [node, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield Client(process)
    finally:
        _pipes(process)[0].close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        _pipes(process)[1].close()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("llama.cpp was started without pipes.")
    return process.stdin, process.stdout


if __name__ == "__main__":  # for the Makefile
    sys.stdout.write(install_command())
