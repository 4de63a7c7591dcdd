"""Take pictures of every page with the experiments that are there, by default those that ship with the program.

    python tools/screenshots.py [FOLDER] [--width 1280] [--scheme light|dark]

Needs Chromium and playwright (requirements-dev.txt). Writes docs/<page>.png.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic", "--no-first-run"]
TALLEST = 2600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--home", help="SWM_HOME to show instead of an empty one")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as empty:
        port = free_port()
        environment = {**os.environ, "SWM_HOME": options.home or empty}
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true"]
        app = subprocess.Popen([*command, "--server.port", str(port)], cwd=ROOT, env=environment)
        try:
            wait_for(f"http://127.0.0.1:{port}/_stcore/health")
            take_pictures(f"http://127.0.0.1:{port}", options)
        finally:
            app.terminate()
            app.wait(20)


def take_pictures(address: str, options: argparse.Namespace) -> None:
    from playwright.sync_api import sync_playwright

    pages = ["", *sorted(page.stem for page in (ROOT / "pages").glob("*.py"))]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name in pages:
            size = {"width": options.width, "height": 900}
            page = browser.new_page(viewport=size, color_scheme=options.scheme)
            page.goto(f"{address}/{name}")
            page.wait_for_selector("h1")
            page.wait_for_timeout(2500)  # charts are drawn after the page is
            height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
            page.set_viewport_size({**size, "height": min(max(height, 700), TALLEST)})
            page.wait_for_timeout(1000)
            page.screenshot(path=options.folder / f"{name or 'home'}.png")
            page.close()
        browser.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"{address} does not answer")


if __name__ == "__main__":
    main()
